"""A viewer's connection, under our own protocol class and under any other ASGI server.

A viewer's own task sends what lies in the past, with backpressure. The hub writes what is new: under
`relay.http.protocol` straight to the transport, elsewhere into a small buffer that a second task empties.
"""

import asyncio
from typing import Protocol

from starlette.types import Receive, Scope, Send

from relay.direct import Direct
from relay.http.guard import cut
from relay.http.protocol import EXTENSION, StreamingProtocol
from relay.hub import Sink, Viewer, Wake


class Wire(Sink, Protocol):
    """A viewer's connection. The hub writes to it; the viewer's own task sends."""

    def attach(self, viewer: Viewer) -> None:
        """From now on wakes the viewer's task when the connection is lost or the server shuts down."""
        ...

    async def detach(self) -> None:
        """Ends that."""
        ...

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Sends after all that was written, once the client has read most of that."""
        ...

    def abort(self) -> None:
        """Cuts the connection, with all that waits to be read."""
        ...


class DirectWire(Direct):
    """Our own protocol's transport: what the hub writes goes out without an awaited call. One viewer that is
    gone does not stop the hub."""

    __slots__ = ("_connection", "_send", "_viewer")

    chunked = True

    def __init__(self, connection: StreamingProtocol, send: Send) -> None:
        super().__init__(connection.transport)
        self._connection = connection
        self._send = send
        self._viewer: Viewer | None = None

    def attach(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._connection.carry(self)
        if self._transport.is_closing():
            viewer.wake(Wake.GONE)

    async def detach(self) -> None:
        self._connection.stream = self._viewer = None

    def lost(self) -> None:
        super().lost()
        if self._viewer is not None:
            self._viewer.wake(Wake.GONE)

    def leave(self) -> None:
        if self._viewer is not None:
            self._viewer.wake(Wake.LEAVE)

    async def send(self, data: bytes, *, last: bool = False) -> None:
        self.doubt()
        if not self._transport.is_closing():
            await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    def abort(self) -> None:
        cut(self._transport)


class BufferedWire:
    """Any other server: what the hub writes waits in a buffer that a second task sends."""

    chunked = False

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._buffer = bytearray()
        self._sending = 0
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: list[asyncio.Task[None]] = []

    def write(self, data: bytes) -> int:
        self._buffer += data
        self._idle.clear()
        self._news.set()
        return len(self._buffer) + self._sending

    def abort(self) -> None:
        """ASGI has no way to cut a connection: the server does so when the application just returns."""

    def attach(self, viewer: Viewer) -> None:
        self._tasks = [asyncio.create_task(self._pump()), asyncio.create_task(self._watch(viewer))]

    async def detach(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def send(self, data: bytes, *, last: bool = False) -> None:
        await self._idle.wait()
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def _pump(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            data = bytes(self._buffer)
            self._buffer.clear()
            self._sending = len(data)
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._sending = 0
            if not self._buffer:
                self._idle.set()

    async def _watch(self, viewer: Viewer) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        viewer.wake(Wake.GONE)


def wire_for(scope: Scope, receive: Receive, send: Send) -> Wire:
    """The best that this server offers."""
    connection = scope.get("extensions", {}).get(EXTENSION)
    return DirectWire(connection, send) if connection else BufferedWire(receive, send)
