"""A call that is sent once, and what its failures mean: nothing was stored, or nobody knows."""

import asyncio
from typing import Any

import redis.exceptions

from relay.errors import NotStored, OutcomeUnknown, RelayError
from relay.link import REFUSED, Link
from relay.stream import functions
from relay.stream.trouble import NoFunctions

NO_LOG = "NOLOG"


class NoLog(NotStored):
    """The shard log does not exist."""


async def call(link: Link, packed: bytes) -> Any:
    """One call. Where the library is missing it did not run, so it is loaded and called again."""
    try:
        try:
            answer = await link.send(packed)
        except redis.exceptions.ResponseError as error:
            if functions.MISSING not in str(error):
                raise
            await _load(link)
            answer = await link.send(packed)
    except REFUSED as error:
        # The server refused before the first write: out of memory, read-only, a foreign key.
        raise (NoLog if str(error).startswith(NO_LOG) else NotStored) from error
    except (redis.exceptions.RedisError, OSError) as error:
        await link.drop()
        raise OutcomeUnknown from error
    except asyncio.CancelledError:
        await link.drop()
        raise
    return answer


async def _load(link: Link) -> None:
    try:
        await link.command("FUNCTION", "LOAD", "REPLACE", functions.LIBRARY)
    except redis.exceptions.NoPermissionError as error:
        raise NoFunctions from error


async def only_refused(link: Link, problem: Exception) -> None:
    """Returns where the first attempt was not run, so that it can be repeated. Raises what it ended in."""
    if isinstance(problem, REFUSED):
        return
    if isinstance(problem, RelayError):
        raise problem
    await link.drop()
    if isinstance(problem, redis.exceptions.TimeoutError):
        raise TimeoutError from problem
    raise OutcomeUnknown from problem


async def connect(link: Link) -> None:
    try:
        await link.connect()
    except (redis.exceptions.RedisError, OSError) as error:
        await link.drop()
        raise NotStored from error
