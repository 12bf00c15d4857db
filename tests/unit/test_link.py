"""Connections to Redis that end at a bad moment."""

import asyncio
from typing import Any

import pytest
import redis.exceptions

from relay.connect import Link, SharedLink


async def broken(*_: Any) -> None:
    """As uvloop's transports are, once the other side has closed them."""
    raise RuntimeError("unable to perform operation; the handler is closed")


async def nothing(*_: Any, **__: Any) -> None:
    return


def close(link: Link) -> None:
    link._connection.connect = nothing
    link._connection.disconnect = nothing
    link._connection.send_packed_command = broken


async def test_a_connection_that_was_closed_meanwhile_is_an_error_of_redis() -> None:
    link = Link("redis://127.0.0.1:1/0", 1.0)
    close(link)
    with pytest.raises(redis.exceptions.ConnectionError):
        await link.command("PING")


async def test_whoever_asks_is_answered_whatever_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedLink("redis://127.0.0.1:1/0")
    close(shared._link)
    with pytest.raises(redis.exceptions.ConnectionError):
        await shared.ask("PING")
    monkeypatch.setattr(shared, "_round", broken)
    with pytest.raises(redis.exceptions.ConnectionError):
        await shared.ask("PING")
    asking = shared._asking
    if asking is not None:
        with pytest.raises(RuntimeError):
            await asyncio.wait_for(asking, 5)
