"""The live endpoint: checks, replay, and then the hub.

A viewer's own task sends what lies in the past, with backpressure, and then sleeps; the hub writes what is
new straight to the connection. Under our own protocol class (`relay.http.protocol`) that is the transport;
under any other ASGI server it is a small buffer that a second task empties.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol
from urllib.parse import parse_qs

from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from relay.auth import Run
from relay.errors import NotAcceptable, RelayError, Unavailable
from relay.events.base import Message
from relay.events.registry import REGISTRY
from relay.http.access import Access
from relay.http.asgi import header
from relay.http.problems import problem
from relay.http.protocol import EXTENSION, StreamingProtocol
from relay.hub import Hub, Sink, State, Viewer, Wake
from relay.settings import Settings
from relay.sse import (
    CLOSING,
    CONTENT_TYPE,
    KEEP_ALIVE,
    Frame,
    Framing,
    goodbye,
    greeting,
    opening,
    parse_position,
)
from relay.stream.entry import Record, frame
from relay.stream.keys import shard_of_run
from relay.stream.replay import Page, Replay
from relay.stream.tail import Tailer

RETRY_MS = (1_000, 5_000)
"""When viewers come back after a cut: at random in between, so that not all come at once."""

CONNECT_S = 2.5
"""How long a new viewer waits for the event log before it gets a 503."""

RETRY_READ_S = 1.0
"""How long a connected viewer waits before it asks the stores again."""

PIECE_BYTES = 256 * 1024
"""Of a long `initial`, what is held in memory at a time."""

_HEADERS = [
    (b"content-type", CONTENT_TYPE.encode() + b"; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


class Shard(NamedTuple):
    """What serves the viewers of a shard."""

    hub: Hub
    tailer: Tailer


class Wire(Sink, Protocol):
    """A viewer's connection. The hub writes to it; the viewer's own task sends."""

    def serve(self, viewer: Viewer) -> contextlib.AbstractAsyncContextManager[None]:
        """Wakes the viewer's task when the connection is lost or the server shuts down."""
        ...

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Sends after all that was written, once the client has read most of that."""
        ...

    def abort(self) -> None:
        """Cuts the connection, with all that waits to be read."""
        ...


class DirectWire:
    """Our own protocol's transport: what the hub writes goes out without an awaited call."""

    chunked = True

    def __init__(self, connection: StreamingProtocol, send: Send) -> None:
        self._connection = connection
        self._send = send
        self.write = connection.transport.write
        self.pending = connection.transport.get_write_buffer_size

    @contextlib.asynccontextmanager
    async def serve(self, viewer: Viewer) -> AsyncIterator[None]:
        connection = self._connection
        connection.on_lost = lambda: viewer.wake(Wake.GONE)
        connection.on_shutdown = lambda: viewer.wake(Wake.LEAVE)
        if connection.transport.is_closing():
            viewer.wake(Wake.GONE)
        try:
            yield
        finally:
            connection.on_lost = connection.on_shutdown = None

    async def send(self, data: bytes, *, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    def abort(self) -> None:
        """Resets the connection: after a mere close the kernel would keep what the client does not read."""
        transport = self._connection.transport
        at_once = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        transport.abort()


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

    def write(self, data: bytes) -> None:
        self._buffer += data
        self._idle.clear()
        self._news.set()

    def pending(self) -> int:
        return len(self._buffer) + self._sending

    def abort(self) -> None:
        """ASGI has no way to cut a connection: the server does so when the application just returns."""

    @contextlib.asynccontextmanager
    async def serve(self, viewer: Viewer) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._pump()), asyncio.create_task(self._watch(viewer))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

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


class LiveStream:
    """`GET .../events`: an ASGI application. The path parameters are in the scope."""

    def __init__(
        self,
        settings: Settings,
        access: Access,
        replay: Callable[[], Replay],
        shards: Callable[[], list[Shard]],
    ) -> None:
        self._settings = settings
        self._access = access
        self._replay = replay
        self._shards = shards

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        run_id = scope["path_params"]["run_id"]
        try:
            run = await self._access.check(scope, scope["path_params"]["conversation_id"], run_id)
            _check_accept(scope)
            position, framing = _asked(scope)
        except RelayError as error:
            await problem(error)(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await send({"type": "http.response.body"})
            return
        shards = self._shards()
        shard = shards[shard_of_run(run_id, len(shards))]
        connection = scope.get("extensions", {}).get(EXTENSION)
        wire: Wire = DirectWire(connection, send) if connection else BufferedWire(receive, send)
        viewer = Viewer(run_id, wire, framing=framing, buffer_limit=self._settings.viewer_buffer_bytes)
        stream = _Stream(viewer, wire, send, self._replay(), shard.tailer, run, self._settings)
        shard.hub.register(viewer)
        try:
            async with wire.serve(viewer):
                await stream.serve(position)
        except RelayError as error:
            if stream.started:
                wire.abort()
            else:
                await problem(error)(scope, receive, send)
        except (TimeoutError, _TornBlock):
            wire.abort()
        finally:
            shard.hub.unregister(viewer)


class _TornBlock(Exception):
    """A store failed while a block was half sent. The client drops the half when the connection ends."""


class _Stream:
    """One viewer's task: what lies in the past, and the farewell. TimeoutError: the viewer does not read."""

    def __init__(
        self,
        viewer: Viewer,
        wire: Wire,
        send: Send,
        replay: Replay,
        tailer: Tailer,
        run: Run | None,
        settings: Settings,
    ) -> None:
        self._viewer = viewer
        self._wire = wire
        self._send = send
        self._replay = replay
        self._tailer = tailer
        self._run = run
        self._settings = settings
        self.started = False

    async def serve(self, position: int | None) -> None:
        """The whole response. Raises a RelayError, also before anything was sent."""
        viewer = self._viewer
        await self._tailer.ready(CONNECT_S)
        page: Page | None = None
        if position is not None:
            viewer.position = position
            page = await self._replay.after(viewer.run_id, position)
            if page is not None and not page.records and await self._is_over(page):
                await self._send({"type": "http.response.start", "status": 204, "headers": []})
                await self._send({"type": "http.response.body"})
                return
        live = await self._catch_up(page)
        while live:
            live = await self._go_on(await viewer.woken())

    async def _is_over(self, page: Page) -> bool:
        return bool(page.end or self._ended_before() or await self._replay.end(self._viewer.run_id))

    async def _go_on(self, why: Wake) -> bool:
        """Does what the viewer was woken for. False: the stream is at its end."""
        match why:
            case Wake.GONE:
                return False
            case Wake.ENDED:
                await self._write(b"", last=True)
                return False
            case Wake.LEAVE:
                await self._write(goodbye(_retry_ms()), last=True)
                return False
            case Wake.SLOW:
                await self._write(KEEP_ALIVE)  # goes out once the client has read again
        return await self._resume()

    async def _resume(self) -> bool:
        """Catches up as soon as the stores allow."""
        while not self._viewer.leaving:
            try:
                await self._tailer.ready(RETRY_READ_S)
                page = await self._replay.after(self._viewer.run_id, self._viewer.position)
                return await self._catch_up(page)
            except Unavailable:
                await asyncio.sleep(RETRY_READ_S * random.random())  # noqa: S311
        return True

    async def _catch_up(self, page: Page | None) -> bool:
        """Sends the past, from `page` on, and makes the viewer live. False: the run is over, and with it the
        stream."""
        viewer = self._viewer
        viewer.state = State.REPLAYING
        end = self._ended_before()
        while True:
            sent = self._send_initial() if page is None else self._send_page(page)
            end = await sent or end
            if not (page and page.more):
                end = end or _end_message(await self._replay.end(viewer.run_id))
                if end:
                    complete = Frame(viewer.position, viewer.run_id, [end], last=True)
                    await self._write(complete.block(viewer.framing), last=True)
                    return False
                if viewer.release():
                    return True
            page = await self._replay.after(viewer.run_id, viewer.position)

    def _ended_before(self) -> Message | None:
        """The last message, where the database knows that the run is over."""
        if self._run is None or not self._run.over:
            return None
        return "complete", to_json({"status": self._run.status})

    async def _send_page(self, page: Page) -> Message | None:
        """Sends the records, except the end, which comes last of all and is returned as message."""
        frames = [made for record in page.records if not record.ends_run and (made := frame(record))]
        await self._write(b"".join(made.block(self._viewer.framing) for made in frames))
        if page.records:
            self._viewer.position = page.records[-1].id
        return _end_message(page.end)

    async def _send_initial(self) -> Message | None:
        """Sends all that happened. Raises Unavailable before anything is sent of it, _TornBlock after."""
        if self._run is None:
            raise Unavailable("The archive is not available; connect again later.")
        viewer = self._viewer
        snapshot = await self._replay.snapshot(viewer.run_id)
        run = self._run.shown(snapshot.changes, self._settings.stale_after_s)
        waiting = bytearray(opening(snapshot.position, viewer.framing))
        waiting += b'{"type":"initial","data":{"run":%b,' % to_json(run)
        torn = False
        try:
            async for piece in snapshot.lists:
                waiting += piece
                if len(waiting) > PIECE_BYTES:
                    await self._write(bytes(waiting))
                    waiting.clear()
                    torn = True
        except Unavailable as error:
            if torn:
                raise _TornBlock from error
            raise
        await self._write(bytes(waiting) + b"}}" + CLOSING)
        viewer.position = snapshot.position
        return _end_message(snapshot.end)

    async def _write(self, data: bytes, *, last: bool = False) -> None:
        async with asyncio.timeout(self._settings.slow_viewer_s):
            if not self.started:
                self.started = True
                await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                data = greeting(_retry_ms()) + data
            if data or last:
                await self._wire.send(data, last=last)


def _end_message(end: Record | None) -> Message | None:
    if end is None:
        return None
    return REGISTRY[end.kind].messages(end.payload)[-1]


def _retry_ms() -> int:
    return random.randint(*RETRY_MS)  # noqa: S311


def _check_accept(scope: Scope) -> None:
    accept = header(scope, b"accept")
    if accept and not any(wanted in accept for wanted in (b"text/event-stream", b"text/*", b"*/*")):
        raise NotAcceptable


def _asked(scope: Scope) -> tuple[int | None, Framing]:
    """The position to resume from, if any, and how blocks are written. Raises MalformedPosition."""
    query = parse_qs(scope["query_string"].decode("latin-1"))
    last = (header(scope, b"last-event-id") or b"").decode("latin-1") or query.get("last_event_id", [""])[0]
    if last:
        return parse_position(last), Framing.RESUMABLE
    resume = query.get("resume", [""])[0].lower() in ("true", "1")
    return None, Framing.RESUMABLE if resume else Framing.PLAIN
