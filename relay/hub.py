"""Who watches what in this worker, and the hand-over from replay to live.

There is one hub per shard, fed by the shard's tailer. A viewer is *held* while it reads what it
missed: news for it waits in its backlog. `release` sends what of that it does not have yet, and from
then on it is *live*: news goes straight to its connection. Whenever its place is in doubt, because the
tailer lost its own or because the viewer reads too slowly, it is held again and takes the same way
from its own position. There is no other way to become live.

Everything here is synchronous, so a dispatch can not be interrupted and never waits for a viewer.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, IntEnum
from typing import NoReturn, Protocol

from relay import metrics
from relay.sse import KEEP_ALIVE, Frame, Framing, join_positions
from relay.stream.keys import START, shard_of_event

BACKLOG = 1000
"""Bursts of news that a held viewer keeps; beyond that it reads the run log again instead."""

SLICES = 15
"""Keep-alives go to one slice of the viewers at a time, so that they do not go out in one burst."""

AT_A_TIME = 16
"""Keep-alives between which nothing else is done: some 0.3 ms, for which news may have to wait."""


class Sink(Protocol):
    """Where a viewer's bytes go. `chunked` says that it takes ready HTTP chunks."""

    chunked: bool

    def write(self, data: bytes) -> int:
        """Answers how many bytes the client's side has not taken yet, of this and of what came before."""
        ...


class State(Enum):
    REPLAYING = "held, and its own task is writing"
    HELD = "held, and nobody is writing"
    LIVE = "written to by the hub"
    OVER = "nothing more is written"


_LIVE = State.LIVE


class Wake(IntEnum):
    """Why a viewer's task is to go on. Where there are several reasons, the highest counts."""

    CATCH_UP = 1  # it was held again
    SLOW = 2  # it was held because it does not read
    EXPIRED = 3  # its token is valid no more
    FORBIDDEN = 4  # what it watches is not its any more
    LEAVE = 5  # the server shuts down
    ENDED = 6  # the last frame is written
    GONE = 7  # its connection is lost


_FRAMINGS = tuple(Framing)
MODES = 2 * len(Framing)
"""Ways of writing a burst: each framing, as it is and chunked."""


class Burst:
    """Consecutive frames of one run that go out in one write, encoded once for each way of writing.

    What comes after the end of the run is in `whole`, but not in `frames`, which viewers of the run get.
    `wire` has the bytes in each mode that somebody needed; see `encode`.
    """

    __slots__ = ("ends", "first", "frames", "last", "whole", "wire")

    def __init__(self, whole: Sequence[Frame]) -> None:
        self.whole = self.frames = whole
        self.ends = False
        for place, frame in enumerate(whole, 1):
            if frame.last:
                self.frames, self.ends = whole[:place], True
                break
        self.first = whole[0].id
        self.last = self.frames[-1].id
        self.wire: list[bytes | None] = [None] * MODES

    def encode(self, mode: int) -> bytes:
        """The frames as bytes. The mode is twice the framing, and one more where they are to be chunked."""
        framing = _FRAMINGS[mode // 2]
        data = b"".join([frame.block(framing) for frame in self.frames])
        data = self.wire[mode] = chunk(data) if mode % 2 else data
        return data

    def after(self, position: int) -> "Burst | None":
        """What of it comes after `position`."""
        frames = [frame for frame in self.whole if frame.id > position]
        return Burst(frames) if frames else None


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of HTTP/1.1's chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


_KEEP_ALIVE_CHUNK = chunk(KEEP_ALIVE)


class Viewer:
    """One reader of a run's stream. `position` is the id of the last event written to it, `expires` when it
    loses its right to read, in seconds since 1970, and `reader` by what right it does, for who asks again."""

    __slots__ = (
        "_awake",
        "_buffer_limit",
        "_mode",
        "_put",
        "_why",
        "backlog",
        "expires",
        "framing",
        "missed",
        "position",
        "reader",
        "sink",
        "state",
    )

    def __init__(
        self,
        sink: Sink,
        *,
        framing: Framing,
        buffer_limit: int,
        expires: float = math.inf,
        reader: object = None,
    ) -> None:
        self.sink = sink
        self.expires = expires
        self.reader = reader
        self.position = START
        self.framing = framing
        self.state = State.REPLAYING
        self.backlog: list[Burst] = []
        self.missed = False
        self._mode = 2 * framing + sink.chunked
        self._put = sink.write
        self._buffer_limit = buffer_limit
        self._awake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._why: Wake | None = None

    async def woken(self, timeout_s: float | None = None) -> Wake | None:
        """Sleeps until there is something for the viewer's task to do; None: the time is up."""
        if timeout_s is None:
            await self._awake
        else:
            await asyncio.wait([self._awake], timeout=timeout_s)
        why, self._why = self._why, None
        if why is not None:
            self._awake = asyncio.get_running_loop().create_future()
        return why

    def wake(self, why: Wake) -> None:
        self._why = max(self._why or why, why)
        if not self._awake.done():
            self._awake.set_result(None)

    @property
    def leaving(self) -> bool:
        """Whether its task has better things to do than to catch up."""
        return self._why is not None and self._why >= Wake.EXPIRED

    def deliver(self, burst: Burst) -> None:
        """News of its run. This is what an event costs for each of its viewers."""
        if self.state is _LIVE:
            if burst.first > self.position:
                self._write(burst)
            elif (rest := burst.after(self.position)) is not None:
                self._write(rest)
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
        self.position = burst.last
        unread = self._put(burst.wire[self._mode] or burst.encode(self._mode))
        if burst.ends:
            self.state = State.OVER
            self.wake(Wake.ENDED)
        elif unread > self._buffer_limit:
            self.hold(Wake.SLOW)


class Follower(Viewer):
    """One reader of many runs, over all shards: `positions` has its place in each.

    The blocks of a shard have to go out in the order of their ids, whatever run they are of, or a viewer that
    is cut could not resume. So news is gathered, and `flush` writes it once a batch of the tailer is through.
    """

    __slots__ = ("_news", "positions")

    def __init__(self, sink: Sink, *, shards: int, buffer_limit: int, expires: float = math.inf) -> None:
        super().__init__(sink, framing=Framing.LABELLED, buffer_limit=buffer_limit, expires=expires)
        self.positions = [START] * shards
        self._news: list[Frame] = []

    def release(self) -> bool:
        released = super().release()
        self.flush()
        return released

    def flush(self) -> None:
        """Writes the news that was gathered, in order, and leaves out what it has already."""
        if self.state is not State.LIVE or not self._news:
            return
        news, self._news = self._news, []
        data = b"".join(self.blocks(sorted(news, key=lambda frame: frame.id)))
        if data and self._put(chunk(data) if self.sink.chunked else data) > self._buffer_limit:
            self.hold(Wake.SLOW)

    def blocks(self, frames: Iterable[Frame]) -> Iterator[bytes]:
        """The blocks of frames that it does not have yet. Moves its position."""
        for frame in frames:
            shard = shard_of_event(frame.id)
            if frame.id > self.positions[shard]:
                self.positions[shard] = frame.id
                yield frame.block(self.framing, join_positions(self.positions))

    def _write(self, burst: Burst) -> None:
        self._news += burst.whole


class Hub:
    """The viewers of one shard in this worker."""

    def __init__(self) -> None:
        self._runs: dict[str, set[Viewer]] = {}
        self._slices: list[set[Viewer]] = [set() for _ in range(SLICES)]
        self._turn = 0
        self._followers: set[Follower] = set()
        self.watched = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._slices))

    def register(self, viewer: Viewer, run_id: str) -> None:
        """Lets a viewer watch a run; a follower any number of them."""
        self._runs.setdefault(run_id, set()).add(viewer)
        if not any(viewer in slice for slice in self._slices):
            min(self._slices, key=len).add(viewer)
        if isinstance(viewer, Follower):
            self._followers.add(viewer)
        self.watched.set()

    def unregister(self, viewer: Viewer, *run_ids: str) -> None:
        """Forgets a viewer, and with it the runs that nobody else watches."""
        viewer.state = State.OVER
        for run_id in run_ids:
            viewers = self._runs.get(run_id, set())
            viewers.discard(viewer)
            if not viewers:
                self._runs.pop(run_id, None)
        for slice in self._slices:
            slice.discard(viewer)
        self._followers.discard(viewer)
        if not self._runs:
            self.watched.clear()

    def watches(self, run_id: str) -> bool:
        return run_id in self._runs

    def runs(self) -> list[str]:
        """The runs that somebody watches."""
        return list(self._runs)

    def watching(self, run_id: str) -> list[Viewer]:
        """Who watches a run."""
        return list(self._runs.get(run_id, ()))

    def dispatch(self, run_id: str, frames: Sequence[Frame]) -> None:
        """News of a run, in order, to all who watch it."""
        viewers = self._runs.get(run_id)
        if viewers and frames:
            burst = Burst(frames)
            metrics.FRAMES.value += len(frames)
            metrics.DELIVERIES.value += len(frames) * len(viewers)
            for viewer in viewers:
                viewer.deliver(burst)

    def flush(self) -> None:
        """All runs' news is through that came together."""
        for follower in self._followers:
            follower.flush()

    def hold_all(self) -> None:
        """The tailer lost its place: everybody has to read from the logs."""
        for viewers in self._runs.values():
            for viewer in viewers:
                viewer.hold()

    async def keep_alive(self, period_s: float) -> NoReturn:
        """Sends every viewer a comment once a period, for ever, or wakes it where its time is over."""
        while True:
            await asyncio.sleep(period_s / SLICES)
            # Kept beside the task: where that is started again, it is the next slice's turn.
            self._turn = (self._turn + 1) % SLICES
            now = time.time()
            for place, viewer in enumerate(tuple(self._slices[self._turn]), 1):
                viewer.keep_alive()
                if viewer.expires <= now:
                    viewer.wake(Wake.EXPIRED)
                if place % AT_A_TIME == 0:
                    await asyncio.sleep(0)
