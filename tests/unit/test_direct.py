"""The shortest way to a connection, and the bytes that took another one."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple
from unittest.mock import Mock

import pytest

from relay.direct import Direct

SIZE = 4 * 1024 * 1024
"""More than sockets hold."""


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


def taken(ends: Ends) -> bytes:
    """What is there to be read, without a turn of the event loop: there is room in the socket afterwards."""
    ends.reader.setblocking(False)
    got = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            got += ends.reader.recv(1 << 20)
    return got


async def everything(ends: Ends, got: bytes, size: int) -> bytes:
    """So many bytes, read as they come."""
    while len(got) < size:
        got += await asyncio.get_running_loop().sock_recv(ends.reader, size)
    return got


async def test_what_is_written_is_there_at_once(ends: Ends) -> None:
    assert ends.direct.write(b"now") == 0
    assert taken(ends) == b"now", "without a turn of the event loop"


async def test_what_the_other_side_does_not_take_is_counted_and_keeps_its_order(ends: Ends) -> None:
    waiting = ends.direct.write(b"a" * SIZE)
    assert 0 < waiting < SIZE
    got = taken(ends)
    assert ends.direct.write(b"b") == waiting + 1
    assert await everything(ends, got, SIZE + 1) == b"a" * SIZE + b"b"
    assert ends.direct.write(b"c") == 0, "nothing waits any more"
    assert taken(ends) == b"c"


async def test_it_does_not_overtake_what_went_to_the_transport(ends: Ends) -> None:
    ends.direct.write(b"first")
    ends.transport.write(b"a" * SIZE)
    ends.direct.doubt()
    got = taken(ends)
    assert ends.direct.write(b"b") > 1
    assert await everything(ends, got, 5 + SIZE + 1) == b"first" + b"a" * SIZE + b"b"


async def test_what_is_written_after_the_loss_goes_nowhere(ends: Ends) -> None:
    ends.direct.write(b"first")
    ends.direct.lost()
    ends.transport.abort()
    assert ends.direct.write(b"second") == 0
    assert taken(ends) == b"first"


async def test_a_transport_without_a_socket_takes_nothing() -> None:
    closed = Mock(asyncio.Transport)
    closed.get_extra_info.return_value = None
    closed.is_closing.return_value = True
    assert Direct(closed).write(b"data") == 0
    closed.write.assert_not_called()
