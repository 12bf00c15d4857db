"""What serves one viewer, whatever it watches: the answer's life from its headers to the farewell."""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from relay import metrics
from relay.auth import Run
from relay.errors import NotAcceptable, RelayError, Unavailable
from relay.headers import PRIVATE
from relay.http.access import Access
from relay.http.asgi import PIECE_BYTES, header, query
from relay.http.problems import problem
from relay.http.seats import Seats
from relay.http.wire import Wire, wire_for
from relay.hub import Hub, State, Viewer, Wake
from relay.settings import Settings
from relay.sse import CLOSING, CONTENT_TYPE, KEEP_ALIVE, complaint, goodbye, greeting
from relay.stream.replay import Replay, Snapshot
from relay.stream.tail import Tailer

RETRY_MS = (1_000, 5_000)
"""When viewers come back after a cut: at random in between, so that not all come at once."""

CONNECT_S = 2.5
"""How long a new viewer waits for the event log before it gets a 503."""

RETRY_READ_S = 1.0
"""How long a connected viewer waits before it asks the stores again."""

_COMPLAINTS = {
    Wake.EXPIRED: "The token that this stream was opened with has expired; connect again with a new one.",
    Wake.FORBIDDEN: "This is not yours to see any more, or the key of your token was withdrawn; "
    "connect again to hear which.",
}

CLOSED = {
    Wake.GONE: "gone",
    Wake.ENDED: "ended",
    Wake.EXPIRED: "expired",
    Wake.FORBIDDEN: "forbidden",
    Wake.LEAVE: "drained",
}
"""How a stream's end is counted."""

_HEADERS = [
    (b"content-type", CONTENT_TYPE.encode() + b"; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
    *PRIVATE,
]


class Shard(NamedTuple):
    """What serves the viewers of a shard."""

    hub: Hub
    tailer: Tailer


class TornBlock(Exception):
    """A store failed while a block was half sent. The client drops the half when the connection ends."""


class Viewing(ABC):
    """One viewer's task. It sends what lies in the past, and sleeps while the hub sends what is new."""

    def __init__(
        self, viewer: Viewer, wire: Wire, send: Send, tailers: Iterable[Tailer], settings: Settings
    ) -> None:
        self.viewer = viewer
        self.settings = settings
        self._wire = wire
        self._send = send
        self._tailers = list(tailers)
        self._started = False

    @abstractmethod
    async def begin(self) -> bool:
        """Sends what the viewer asked for and makes it live. False: that was all. Raises RelayError."""

    @abstractmethod
    async def catch_up(self) -> bool:
        """Sends what follows the viewer's position and makes it live again. False: that was all."""

    @abstractmethod
    def join(self) -> None:
        """Has the hubs know of the viewer."""

    @abstractmethod
    def leave(self) -> None:
        """Has the hubs forget the viewer."""

    async def idle(self) -> Wake:
        """Waits until there is something to do."""
        return await self.viewer.woken() or Wake.CATCH_UP

    async def serve(self, scope: Scope, receive: Receive) -> None:
        """The whole answer."""
        self.join()
        self._wire.attach(self.viewer)
        closed = "gone"
        try:
            await self._ready(CONNECT_S)
            live, closed = await self.begin(), "ended"
            while live:
                why = await self.idle()
                live, closed = await self._go_on(why), CLOSED.get(why, "ended")
        except RelayError as error:
            closed = "unavailable"
            if self._started:
                self._wire.abort()
            else:
                await problem(error)(scope, receive, self._send)
        except (TimeoutError, TornBlock) as error:
            closed = "slow" if isinstance(error, TimeoutError) else "unavailable"
            self._wire.abort()
        finally:
            metrics.CLOSES[closed] += 1
            self.leave()
            await self._wire.detach()

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Sends data, after the headers and the greeting. TimeoutError: the viewer does not read."""
        async with asyncio.timeout(self.settings.slow_viewer_s):
            if not self._started:
                self._started = True
                await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                data = greeting(_retry_ms()) + data
            if data or last:
                await self._wire.send(data, last=last)

    async def write_initial(self, begin: bytes, run: Run, snapshot: Snapshot) -> None:
        """Sends a block with all that happened, piece by piece. `begin` is what comes before its `data`.

        Raises Unavailable before anything is sent of it, TornBlock after.
        """
        shown = run.shown(snapshot.changes, snapshot.newest, self.settings.stale_after_s)
        waiting = [begin, b'"data":{"run":%b,' % to_json(shown)]
        torn = False
        try:
            async for part in snapshot.lists:
                waiting.append(part)
                if sum(map(len, waiting)) > PIECE_BYTES:
                    await self._write_in_pieces(b"".join(waiting))
                    waiting.clear()
                    torn = True
        except Unavailable as error:
            if torn:
                raise TornBlock from error
            raise
        await self._write_in_pieces(b"".join([*waiting, b"}}", CLOSING]))

    async def _write_in_pieces(self, data: bytes) -> None:
        """Sends data of any size. A slow viewer has its time for each piece of it."""
        for place in range(0, len(data), PIECE_BYTES):
            await self.write(data[place : place + PIECE_BYTES])

    async def nothing_more(self) -> None:
        """Tells a reconnecting browser to stop."""
        await self._send({"type": "http.response.start", "status": 204, "headers": PRIVATE})
        await self._send({"type": "http.response.body"})

    async def _go_on(self, why: Wake) -> bool:
        """Does what the viewer was woken for. False: the stream is at its end."""
        match why:
            case Wake.GONE:
                return False
            case Wake.ENDED:
                await self.write(b"", last=True)
                return False
            case Wake.EXPIRED | Wake.FORBIDDEN:
                self.viewer.state = State.OVER  # nothing of the hub's after the last block
                await self.write(complaint(_COMPLAINTS[why]), last=True)
                return False
            case Wake.LEAVE:
                await self.write(goodbye(_retry_ms()), last=True)
                return False
            case Wake.SLOW:
                await self.write(KEEP_ALIVE)  # goes out once the client has read again
        return await self._resume()

    async def _resume(self) -> bool:
        """Catches up as soon as the stores allow."""
        metrics.CATCH_UPS.value += 1
        while not self.viewer.leaving:
            try:
                await self._ready(RETRY_READ_S)
                return await self.catch_up()
            except Unavailable:
                self.viewer.state = State.HELD  # no block is half written, so keep-alives may go out
                await asyncio.sleep(RETRY_READ_S * random.random())  # noqa: S311
        return True

    async def _ready(self, timeout_s: float) -> None:
        for tailer in self._tailers:
            await tailer.ready(timeout_s)


class LiveEndpoint(ABC):
    """A live endpoint: an ASGI application. The path parameters are in the scope."""

    def __init__(
        self,
        settings: Settings,
        access: Access,
        seats: Seats,
        replay: Callable[[], Replay],
        shards: Callable[[], list[Shard]],
    ) -> None:
        self.settings = settings
        self.access = access
        self.seats = seats
        self.replay = replay
        self.shards = shards

    @abstractmethod
    async def admit(self, scope: Scope, wire: Wire, send: Send) -> Viewing:
        """Checks the request; what serves it then. Raises a RelayError."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            viewing = await self.admit(scope, wire_for(scope, receive, send), send)
            _check_accept(scope)
            if scope["method"] == "HEAD":
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                await send({"type": "http.response.body"})
                return
            with self.seats.taken(scope["user"]):
                metrics.CONNECTS.value += 1
                await viewing.serve(scope, receive)
        except RelayError as error:
            await problem(error)(scope, receive, send)


def _retry_ms() -> int:
    return random.randint(*RETRY_MS)  # noqa: S311


def _check_accept(scope: Scope) -> None:
    """Raises NotAcceptable where the client wants no event stream."""
    accept = header(scope, b"accept")
    if accept and not any(wanted in accept for wanted in (b"text/event-stream", b"text/*", b"*/*")):
        raise NotAcceptable


def asked_position(scope: Scope) -> str:
    """The position to resume from: the header, or else the query; empty where there is none."""
    asked = (header(scope, b"last-event-id") or b"").decode("latin-1")
    return asked or next(iter(query(scope, "last_event_id")), "")


def asks_to_resume(scope: Scope) -> bool:
    return next(iter(query(scope, "resume")), "").lower() in ("true", "1")
