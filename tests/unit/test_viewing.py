"""A viewer's task between the past and the hub, with a replay that says what the test wants."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from relay.auth import Run
from relay.errors import Unavailable
from relay.http.asgi import PIECE_BYTES
from relay.http.stream import RunViewing
from relay.http.viewing import Shard
from relay.hub import Hub, State, Viewer, Wake
from relay.metrics import CLOSES
from relay.settings import Settings
from relay.sse import KEEP_ALIVE, Framing
from relay.stream.entry import Record
from relay.stream.replay import Page, Snapshot
from tests.unit.test_hub import Wire as Written

GREETING = b": connected\nretry: 12345\n\n"
RUN = Run("run-1", 7, "running", None, "2026-01-01T00:00:00+00:00", None, None)
NOTHING = Page((), None, more=False)
END = Record(9, "run-1", "run_finished", b'{"metadata":{"success":true},"created_at":""}')


class Wire(Written):
    """A connection whose own task's data lands where the hub's does."""

    def attach(self, viewer: Viewer) -> None:
        return

    async def detach(self) -> None:
        return

    aborted = False

    async def send(self, data: bytes, *, last: bool = False) -> None:
        self.write(data)

    def abort(self) -> None:
        self.aborted = True


class Replay:
    """Answers the same for ever."""

    def __init__(self, page: Page | Unavailable, end: Record | None = None) -> None:
        self.page = page
        self.last = end
        self.asked_for_end = 0
        self.events = 1

    async def after(self, run_id: str, position: int, user_id: int) -> Page:
        if isinstance(self.page, Unavailable):
            raise self.page
        return self.page

    async def end(self, run_id: str) -> Record | None:
        self.asked_for_end += 1
        return self.last

    async def snapshot(self, run_id: str, user_id: int) -> Snapshot:
        return Snapshot(11, 11, self.last, {}, self._lists())

    async def _lists(self) -> AsyncIterator[bytes]:
        yield b'"events":['
        yield b",".join([b"1"] * self.events) + b"]"
        if isinstance(self.page, Unavailable):
            raise self.page


class Tailer:
    async def ready(self, timeout_s: float) -> None:
        return


def viewing(replay: Replay, position: int | None) -> tuple[RunViewing, Viewer, list[Any]]:
    started: list[Any] = []

    async def send(message: Any) -> None:
        started.append(message)

    wire = Wire()
    viewer = Viewer(wire, framing=Framing.RESUMABLE, buffer_limit=100)
    tailer: Any = Tailer()
    reads: Any = replay
    shard = Shard(Hub(), tailer)
    made = RunViewing(viewer, wire, send, shard, Settings(), reads, 1, "run-1", RUN, position)
    return made, viewer, started


async def test_an_end_that_the_viewer_has_behind_it_is_the_end() -> None:
    made, _, started = viewing(Replay(NOTHING, END), position=11)
    assert await made.begin() is False
    assert started[0]["status"] == 204


@pytest.mark.parametrize("first", [True, False])
async def test_an_end_that_came_in_the_meantime_waits_for_what_came_before_it(first: bool) -> None:
    made, viewer, started = viewing(Replay(NOTHING, END), position=5)
    assert await (made.begin() if first else made.catch_up()) is True
    assert viewer.state is State.LIVE
    assert [message["status"] for message in started] == [200]


@pytest.mark.parametrize("ended", [True, False])
async def test_all_that_happened_has_the_end_in_it_so_nobody_looks_for_that_again(ended: bool) -> None:
    replay = Replay(NOTHING, END if ended else None)
    made, _, _ = viewing(replay, position=None)
    assert await made.begin() is not ended
    assert replay.asked_for_end == 0


async def test_all_that_happened_goes_out_in_pieces_that_a_slow_viewer_can_take() -> None:
    replay = Replay(NOTHING)
    replay.events = PIECE_BYTES
    made, viewer, _ = viewing(replay, position=None)
    await made.begin()
    sink = viewer.sink
    assert isinstance(sink, Wire)
    assert max(map(len, sink.written)) <= PIECE_BYTES + len(GREETING)
    block = b"".join(sink.written).partition(b"data: ")[2]
    assert len(json.loads(block)["data"]["events"]) == PIECE_BYTES


@pytest.mark.parametrize(("events", "torn"), [(1, False), (PIECE_BYTES, True)])
async def test_a_block_that_can_not_be_ended_is_torn_once_a_part_of_it_is_out(
    events: int, torn: bool
) -> None:
    replay = Replay(Unavailable())
    replay.events = events
    made, viewer, started = viewing(replay, position=None)
    await made.serve({"type": "http"}, asyncio.Queue[Any]().get)
    sink = viewer.sink
    assert isinstance(sink, Wire)
    assert sink.aborted is torn
    assert started[0]["status"] == (200 if torn else 503)


async def test_while_the_stores_are_away_the_stream_is_kept_alive() -> None:
    made, viewer, _ = viewing(Replay(NOTHING), position=5)
    assert await made.begin()
    made._replay.page = Unavailable()  # type: ignore[attr-defined]
    viewer.state = State.REPLAYING
    resuming = asyncio.create_task(made._resume())
    while viewer.state is not State.HELD:  # noqa: ASYNC110 - nothing else tells
        await asyncio.sleep(0)
    viewer.keep_alive()
    sink = viewer.sink
    assert isinstance(sink, Wire)
    assert sink.written[-1] == KEEP_ALIVE
    viewer.wake(Wake.GONE)
    assert await resuming


class Unread(Wire):
    """A connection that takes nothing."""

    async def send(self, data: bytes, *, last: bool = False) -> None:
        await asyncio.Event().wait()

    def abort(self) -> None:
        return


def ended(before: dict[str, int]) -> dict[str, int]:
    return {reason: count - before[reason] for reason, count in CLOSES.items() if count != before[reason]}


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (Wake.GONE, "gone"),
        (Wake.LEAVE, "drained"),
        (Wake.ENDED, "ended"),
        (Wake.EXPIRED, "expired"),
        (Wake.FORBIDDEN, "forbidden"),
    ],
)
async def test_the_end_of_a_stream_is_counted_with_its_reason(why: Wake, reason: str) -> None:
    made, viewer, _ = viewing(Replay(NOTHING), position=5)
    before = dict(CLOSES)
    serving = asyncio.create_task(made.serve({"type": "http"}, asyncio.Queue[Any]().get))
    while viewer.state is not State.LIVE:  # noqa: ASYNC110 - nothing else tells
        await asyncio.sleep(0)
    viewer.wake(why)
    await serving
    assert ended(before) == {reason: 1}


@pytest.mark.parametrize(
    ("replay", "reason"),
    [(Replay(NOTHING), "slow"), (Replay(Unavailable()), "unavailable"), (Replay(NOTHING, END), "ended")],
)
async def test_a_stream_that_ends_early_is_counted_too(replay: Replay, reason: str) -> None:
    made, _, _ = viewing(replay, position=11)
    if reason == "slow":
        made._wire = Unread()
        made.settings = Settings(slow_viewer_s=0.01)
    before = dict(CLOSES)
    await made.serve({"type": "http"}, asyncio.Queue[Any]().get)
    assert ended(before) == {reason: 1}
