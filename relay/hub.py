"""Who watches what in this worker, and the hand-over from replay to live.

There is one hub per shard, fed by the shard's tailer. A viewer is *held* while it reads what it
missed: news for it waits in its backlog. `release` sends what of that it does not have yet, and from
then on it is *live*: news goes straight to its connection. Whenever its place is in doubt, because the
tailer lost its own or because the viewer reads too slowly, it is held again and takes the same way
from its own position. There is no other way to become live.

Everything here is synchronous, so a dispatch can not be interrupted and never waits for a viewer.
"""

import asyncio
from collections.abc import Iterable, Sequence
from enum import Enum, IntEnum
from typing import Protocol

from relay.sse import KEEP_ALIVE, Frame, Framing
from relay.stream.keys import START

BACKLOG = 1000
"""Bursts of news that a held viewer keeps; beyond that it reads the run log again instead."""

SLICES = 15
"""Keep-alives go to one slice of the viewers at a time, so that they do not go out in one burst."""


class Sink(Protocol):
    """Where a viewer's bytes go. `chunked` says that it takes ready HTTP chunks."""

    chunked: bool

    def write(self, data: bytes) -> None: ...

    def pending(self) -> int:
        """Bytes written and not yet taken by the client's side."""
        ...


class State(Enum):
    REPLAYING = "held, and its own task is writing"
    HELD = "held, and nobody is writing"
    LIVE = "written to by the hub"
    OVER = "nothing more is written"


class Wake(IntEnum):
    """Why a viewer's task is to go on. Where there are several reasons, the highest counts."""

    CATCH_UP = 1  # it was held again
    SLOW = 2  # it was held because it does not read
    LEAVE = 3  # the server shuts down
    ENDED = 4  # the last frame is written
    GONE = 5  # its connection is lost


class Burst:
    """Consecutive frames of one run that go out in one write, encoded once for each way of writing."""

    __slots__ = ("_wire", "ends", "first", "frames", "last")

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames
        self.first = frames[0].id
        self.last = frames[-1].id
        self.ends = frames[-1].last
        self._wire: list[bytes | None] = [None] * (2 * len(Framing))

    def wire(self, framing: Framing, chunked: bool) -> bytes:
        mode = 2 * framing + chunked
        data = self._wire[mode]
        if data is None:
            data = b"".join(frame.block(framing) for frame in self.frames)
            data = self._wire[mode] = chunk(data) if chunked else data
        return data

    def after(self, position: int) -> "Burst | None":
        """What of it comes after `position`."""
        frames = [frame for frame in self.frames if frame.id > position]
        return Burst(frames) if frames else None


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of HTTP/1.1's chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


_KEEP_ALIVE_CHUNK = chunk(KEEP_ALIVE)


class Viewer:
    """One reader of one run's stream. `position` is the id of the last event written to it."""

    __slots__ = (
        "_awake",
        "_buffer_limit",
        "_why",
        "backlog",
        "framing",
        "missed",
        "position",
        "run_id",
        "sink",
        "state",
    )

    def __init__(self, run_id: str, sink: Sink, *, framing: Framing, buffer_limit: int) -> None:
        self.run_id = run_id
        self.sink = sink
        self.position = START
        self.framing = framing
        self.state = State.REPLAYING
        self.backlog: list[Burst] = []
        self.missed = False
        self._buffer_limit = buffer_limit
        self._awake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._why: Wake | None = None

    async def woken(self) -> Wake:
        """Sleeps until there is something for the viewer's task to do."""
        await self._awake
        self._awake = asyncio.get_running_loop().create_future()
        why, self._why = self._why, None
        assert why is not None  # noqa: S101 - wake() sets both
        return why

    def wake(self, why: Wake) -> None:
        self._why = max(self._why or why, why)
        if not self._awake.done():
            self._awake.set_result(None)

    @property
    def leaving(self) -> bool:
        """Whether its task has better things to do than to catch up."""
        return self._why is not None and self._why >= Wake.LEAVE

    def deliver(self, burst: Burst) -> None:
        """News of its run."""
        if self.state is State.LIVE:
            self._write(burst)
        elif self.state is not State.OVER and not self.missed:
            self.backlog.append(burst)
            if len(self.backlog) > BACKLOG:
                self._miss()

    def release(self) -> bool:
        """Makes the viewer live, after it was sent all up to its position.

        False: it missed something meanwhile, and has to read on first.
        """
        if self.missed:
            self.missed = False
            return False
        self.state = State.LIVE
        backlog, self.backlog = self.backlog, []
        for burst in backlog:
            self.deliver(burst)
        return True

    def hold(self, why: Wake = Wake.CATCH_UP) -> None:
        """Its place is in doubt: it has to read from its position again."""
        if self.state is State.LIVE:
            self.state = State.HELD
            self.wake(why)
        elif self.state is not State.OVER:
            self._miss()

    def keep_alive(self) -> None:
        """Shows proxies and the client that the stream lives, unless a block is half written."""
        if self.state in (State.LIVE, State.HELD):
            self.sink.write(_KEEP_ALIVE_CHUNK if self.sink.chunked else KEEP_ALIVE)

    def _miss(self) -> None:
        self.missed = True
        self.backlog.clear()

    def _write(self, burst: Burst) -> None:
        if burst.first <= self.position:
            rest = burst.after(self.position)
            if rest is None:
                return
            burst = rest
        sink = self.sink
        sink.write(burst.wire(self.framing, sink.chunked))
        self.position = burst.last
        if burst.ends:
            self.state = State.OVER
            self.wake(Wake.ENDED)
        elif sink.pending() > self._buffer_limit:
            self.hold(Wake.SLOW)


class Hub:
    """The viewers of one shard in this worker."""

    def __init__(self) -> None:
        self._runs: dict[str, set[Viewer]] = {}
        self._slices: list[set[Viewer]] = [set() for _ in range(SLICES)]
        self._turn = 0
        self.watched = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._slices))

    def register(self, viewer: Viewer) -> None:
        self._runs.setdefault(viewer.run_id, set()).add(viewer)
        min(self._slices, key=len).add(viewer)
        self.watched.set()

    def unregister(self, viewer: Viewer) -> None:
        viewer.state = State.OVER
        viewers = self._runs[viewer.run_id]
        viewers.discard(viewer)
        if not viewers:
            del self._runs[viewer.run_id]
        for slice in self._slices:
            slice.discard(viewer)
        if not self._runs:
            self.watched.clear()

    def watches(self, run_id: str) -> bool:
        return run_id in self._runs

    def dispatch(self, run_id: str, frames: Iterable[Frame]) -> None:
        """News of a run, in order, to all who watch it. What comes after the end is left out."""
        viewers = self._runs.get(run_id)
        kept: list[Frame] = []
        for frame in frames:
            kept.append(frame)
            if frame.last:
                break
        if viewers and kept:
            burst = Burst(kept)
            for viewer in viewers:
                viewer.deliver(burst)

    def hold_all(self) -> None:
        """The tailer lost its place: everybody has to read from the logs."""
        for viewers in self._runs.values():
            for viewer in viewers:
                viewer.hold()

    async def keep_alive(self, period_s: float) -> None:
        """Sends every viewer a comment once a period, for ever."""
        while True:
            await asyncio.sleep(period_s / SLICES)
            self._turn = (self._turn + 1) % SLICES
            for viewer in self._slices[self._turn]:
                viewer.keep_alive()
