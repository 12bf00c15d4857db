"""What a 204 is worth at the moment: how the event log keeps what it was given."""

import asyncio
from collections.abc import Iterable
from typing import Any, TypedDict

import redis.exceptions

from relay.link import SharedLink

UNKNOWN = "unknown"
"""What the server does not tell, since its operator or its provider does not let us ask."""


class InForce(TypedDict):
    """`appendonly` and `appendfsync` as the server has them, `waitaof` as RELAY_WAITAOF asks."""

    appendonly: str
    appendfsync: str
    waitaof: str | None


async def in_force(links: Iterable[SharedLink], waitaof: str | None) -> InForce:
    """What is in force, as far as the servers say; where they differ, all that they say."""
    found = await asyncio.gather(*(_of_one(link) for link in set(links)))
    appendonly, appendfsync = (", ".join(sorted(set(said))) for said in zip(*found, strict=True))
    return {"appendonly": appendonly, "appendfsync": appendfsync, "waitaof": waitaof}


async def _of_one(link: SharedLink) -> tuple[str, str]:
    try:
        reply = await link.ask("CONFIG", "GET", "append*")
    except (redis.exceptions.RedisError, OSError):  # mostly that we may not ask
        return await _by_info(link), UNKNOWN
    settings = {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}
    appendonly = settings.get("appendonly", UNKNOWN)
    return appendonly, settings.get("appendfsync", UNKNOWN) if appendonly == "yes" else "no file"


async def _by_info(link: SharedLink) -> str:
    try:
        info: Any = await link.ask("INFO", "persistence")
    except (redis.exceptions.RedisError, OSError):
        return UNKNOWN
    return "yes" if b"aof_enabled:1" in info else "no"
