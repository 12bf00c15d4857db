"""A viewer's connection, also when it is gone and nobody knows yet."""

import asyncio
from typing import Any

import pytest
import uvloop

from relay.http.wire import BufferedWire, DirectWire
from relay.hub import Hub, Viewer, Wake
from relay.sse import Framing
from tests.unit.test_hub import RUN, frame


class Connection(asyncio.Protocol):
    """What the wire needs of our protocol class."""

    on_lost: Any = None
    on_shutdown: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.lost = asyncio.Event()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_viewer_whose_transport_closed_unheard_hurts_nobody(loop_factory: Any) -> None:
    async def scenario() -> None:
        sent: list[Any] = []
        connections: list[Connection] = []

        async def send(message: Any) -> None:
            sent.append(message)

        def connected() -> Connection:
            connections.append(Connection())
            return connections[-1]

        loop = asyncio.get_running_loop()
        server = await loop.create_server(connected, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        while not connections:  # noqa: ASYNC110 - the loop accepts in its own time
            await asyncio.sleep(0)
        try:
            await check(connections[0], DirectWire(connections[0], send))  # type: ignore[arg-type]
            assert sent == []
        finally:
            writer.close()
            connections[0].transport.close()
            server.close()

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
        assert wire.pending() == 0
        async with wire.serve(viewer):
            assert await viewer.woken(5) is Wake.GONE

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


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
    async with wire.serve(viewer):
        wire.write(b"one ")
        wire.write(b"two ")
        assert wire.pending() == 8
        last = asyncio.create_task(wire.send(b"three"))
        await asyncio.sleep(0)
        wire.write(b"and ")
        may_send.set()
        await last
    assert b"".join(sent) == b"one two and three"
    assert wire.pending() == 0
