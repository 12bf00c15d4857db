"""The shortest way to a connection, and the bytes that took another one."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from relay.direct import Direct


class Ends(NamedTuple):
    transport: asyncio.Transport
    direct: Direct
    reader: socket.socket


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    yield Ends(transport, Direct(transport), theirs)
    transport.abort()
    theirs.close()


async def everything(ends: Ends, size: int) -> bytes:
    """So many bytes, read as they come."""
    ends.reader.setblocking(False)
    got = b""
    while len(got) < size:
        got += await asyncio.get_running_loop().sock_recv(ends.reader, size)
    return got


async def test_what_is_written_is_there_at_once(ends: Ends) -> None:
    assert ends.direct.write(b"now") == 0
    assert ends.reader.recv(3) == b"now", "without a turn of the event loop"


async def test_what_the_other_side_does_not_take_is_counted_and_keeps_its_order(ends: Ends) -> None:
    size = 4 * 1024 * 1024
    waiting = ends.direct.write(b"a" * size)
    assert 0 < waiting < size
    assert ends.direct.write(b"b") == waiting + 1
    assert await everything(ends, size + 1) == b"a" * size + b"b"
    assert ends.direct.write(b"c") == 0, "nothing waits any more"
    assert ends.reader.recv(1) == b"c"


async def test_it_does_not_overtake_what_went_to_the_transport(ends: Ends) -> None:
    ends.direct.write(b"first")
    size = 4 * 1024 * 1024
    ends.transport.write(b"a" * size)
    ends.direct.doubt()
    assert ends.direct.write(b"b") > 1
    assert await everything(ends, 5 + size + 1) == b"first" + b"a" * size + b"b"


async def test_what_is_written_after_the_loss_goes_nowhere(ends: Ends) -> None:
    ends.direct.write(b"first")
    ends.direct.lost()
    ends.transport.abort()
    assert ends.direct.write(b"second") == 0
    ends.reader.settimeout(5)
    assert ends.reader.recv(5) == b"first"
