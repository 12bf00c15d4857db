"""A viewer's connection, also when it is gone and nobody knows yet."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from relay.http.wire import BufferedWire, DirectWire
from relay.hub import Hub, Viewer, Wake
from relay.sse import Framing
from tests.unit.test_hub import RUN, frame


class Connection(asyncio.Protocol):
    """What the wire needs of our protocol class."""

    stream: Any = None

    def carry(self, stream: Any) -> None:
        self.stream = stream

    def __init__(self, made: "asyncio.Queue[Connection]") -> None:
        self.made = made
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.made.put_nowait(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Any, "asyncio.Queue[Connection]"]]:
    """The address of a server, and the connections that are made to it."""
    connections: asyncio.Queue[Connection] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(connections), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname(), connections
    finally:
        server.close()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_viewer_whose_transport_closed_unheard_hurts_nobody(loop_factory: Any) -> None:
    async def scenario() -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async with listening() as (address, connections):
            _, writer = await asyncio.open_connection(*address)
            connection = await connections.get()
            await check(connection, DirectWire(connection, send))  # type: ignore[arg-type]
            assert sent == []
            writer.close()
            connection.transport.close()

    async def check(connection: Connection, wire: DirectWire) -> None:
        hub = Hub()
        viewer = Viewer(wire, framing=Framing.PLAIN, buffer_limit=100)
        hub.register(viewer, RUN)
        viewer.release()
        wire.abort()
        await connection.lost.wait()
        hub.dispatch(RUN, [frame(1)])
        viewer.keep_alive()
        await wire.send(b"data")
        wire.abort()
        assert wire.write(b"data") == 0
        wire.attach(viewer)
        assert await viewer.woken(5) is Wake.GONE
        await wire.detach()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_bytes_arrive_in_order_whether_they_go_through_the_transport_or_past_it(loop_factory: Any) -> None:
    pieces = [b"%06d" % number * 10_000 for number in range(200)]
    unread: list[int] = []

    async def scenario() -> None:
        async def send(message: Any) -> None:
            wire._transport.write(message["body"])

        async with listening() as (address, connections):
            reader, writer = await asyncio.open_connection(*address)
            connection = await connections.get()
            wire = DirectWire(connection, send)  # type: ignore[arg-type]
            await wire.send(pieces[0])
            unread.extend(wire.write(piece) for piece in pieces[1:100])
            received = await reader.readexactly(len(b"".join(pieces[:100])))
            unread.extend(wire.write(piece) for piece in pieces[100:])
            received += await reader.readexactly(len(b"".join(pieces[100:])))
            assert received == b"".join(pieces)
            writer.close()
            connection.transport.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())
    assert unread[98] > 1_000_000, "nobody read, so it waited in the transport"
    assert unread[99] == 0, "all was read, so the next one went straight to the socket"


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_reset_is_heard_of_also_while_nothing_is_read(loop_factory: Any) -> None:
    async def scenario() -> None:
        async def send(message: Any) -> None:
            raise AssertionError("nobody sends")

        async with listening() as (address, connections):
            client = socket.create_connection(address)
            connection = await connections.get()
            wire = DirectWire(connection, send)  # type: ignore[arg-type]
            assert wire.write(b"data") == 0
            connection.transport.pause_reading()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            while not connection.lost.is_set():
                wire.write(b"data")
                await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(scenario(), 10))


async def test_a_buffer_is_sent_in_order_and_before_what_comes_after() -> None:
    sent: list[bytes] = []
    may_send = asyncio.Event()

    async def send(message: Any) -> None:
        await may_send.wait()
        sent.append(message["body"])

    async def receive() -> Any:
        await asyncio.Event().wait()

    wire = BufferedWire(receive, send)
    viewer = Viewer(wire, framing=Framing.PLAIN, buffer_limit=100)
    wire.attach(viewer)
    wire.write(b"one ")
    assert wire.write(b"two ") == 8
    last = asyncio.create_task(wire.send(b"three"))
    await asyncio.sleep(0)
    wire.write(b"and ")
    may_send.set()
    await last
    await wire.detach()
    assert b"".join(sent) == b"one two and three"
