"""The hand-over from replay to live, and what happens to viewers that do not read."""

import asyncio
import contextlib
import json
import time
from itertools import pairwise
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.hub import AT_A_TIME, BACKLOG, SLICES, Burst, Follower, Hub, State, Viewer, Wake, chunk
from relay.sse import KEEP_ALIVE, Frame, Framing

RUN = "run-1"


class Wire:
    """A connection that keeps what was written."""

    def __init__(self, *, chunked: bool = False) -> None:
        self.chunked = chunked
        self.written: list[bytes] = []
        self.unread = 0

    def write(self, data: bytes) -> int:
        self.written.append(data)
        return self.unread


def frame(id: int, *, last: bool = False) -> Frame:
    return Frame(id, RUN, [("n", b"%d" % id)], last=last)


def ids(wire: Wire) -> list[int]:
    blocks = b"".join(wire.written).split(b"\n\n")
    return [
        json.loads(block.removeprefix(b"data: "))["data"] for block in blocks if block.startswith(b"data: ")
    ]


def new_viewer(hub: Hub, wire: Wire, run_id: str = RUN) -> Viewer:
    viewer = Viewer(wire, framing=Framing.PLAIN, buffer_limit=100)
    hub.register(viewer, run_id)
    return viewer


@pytest.fixture
async def hub() -> Hub:
    return Hub()


async def test_a_held_viewer_is_not_written_to_and_loses_nothing(hub: Hub) -> None:
    viewer = new_viewer(hub, wire := Wire())
    hub.dispatch(RUN, [frame(1), frame(2)])
    hub.dispatch(RUN, [frame(3)])
    assert wire.written == []
    viewer.position = 2  # what its replay sent
    assert viewer.release()
    hub.dispatch(RUN, [frame(4)])
    assert ids(wire) == [3, 4]


async def test_news_of_another_run_or_without_viewers_goes_nowhere(hub: Hub) -> None:
    viewer = new_viewer(hub, wire := Wire())
    viewer.release()
    assert (hub.watches(RUN), hub.watches("run-2")) == (True, False)
    hub.dispatch("run-2", [frame(1)])
    hub.unregister(viewer, RUN)
    hub.dispatch(RUN, [frame(2)])
    assert wire.written == []
    assert (len(hub), hub.watched.is_set()) == (0, False)


async def test_the_end_of_a_run_is_the_last_that_is_written(hub: Hub) -> None:
    viewer = new_viewer(hub, wire := Wire())
    viewer.release()
    hub.dispatch(RUN, [frame(1), frame(2, last=True), frame(3)])
    hub.dispatch(RUN, [frame(4)])
    assert ids(wire) == [1, 2]
    assert await viewer.woken() is Wake.ENDED


async def test_a_viewer_that_does_not_read_is_held_until_it_does(hub: Hub) -> None:
    viewer = new_viewer(hub, wire := Wire())
    viewer.release()
    wire.unread = 101
    hub.dispatch(RUN, [frame(1)])
    assert await viewer.woken() is Wake.SLOW
    hub.dispatch(RUN, [frame(2)])
    assert ids(wire) == [1]
    wire.unread = 0
    assert viewer.release()
    assert ids(wire) == [1, 2]


@pytest.mark.parametrize(("unread", "state"), [(100, State.LIVE), (101, State.HELD)])
async def test_so_many_bytes_may_wait_for_a_viewer_and_no_more(hub: Hub, unread: int, state: State) -> None:
    wire, many = Wire(), Wire()
    viewer, follower = new_viewer(hub, wire), Follower(many, shards=1, buffer_limit=100)
    hub.register(follower, RUN)
    wire.unread = many.unread = unread
    for each in (viewer, follower):
        each.release()
    hub.dispatch(RUN, [frame(1)])
    hub.flush()
    assert (len(wire.written), viewer.state) == (1, state)
    assert (len(many.written), follower.state) == (1, state)


@pytest.mark.parametrize(("bursts", "kept"), [(BACKLOG, True), (BACKLOG + 1, False)])
async def test_so_much_news_is_kept_for_a_held_viewer_and_no_more(hub: Hub, bursts: int, kept: bool) -> None:
    viewer = new_viewer(hub, wire := Wire())
    for id in range(1, bursts + 1):
        hub.dispatch(RUN, [frame(id)])
    assert viewer.release() is kept
    assert ids(wire) == (list(range(1, bursts + 1)) if kept else [])


async def test_a_viewer_that_missed_too_much_reads_the_log_again(hub: Hub) -> None:
    viewer = new_viewer(hub, wire := Wire())
    for id in range(1, BACKLOG + 3):
        hub.dispatch(RUN, [frame(id)])
    assert not viewer.release()
    viewer.position = BACKLOG + 2
    assert viewer.release()
    assert (wire.written, viewer.state) == ([], State.LIVE)


async def test_all_are_held_when_the_tailer_loses_its_place(hub: Hub) -> None:
    live, replaying = new_viewer(hub, Wire()), new_viewer(hub, Wire())
    live.release()
    hub.hold_all()
    assert await live.woken() is Wake.CATCH_UP
    assert live.state is State.HELD
    assert not replaying.release(), "what it has read may end before the place where the tailer goes on"


async def test_the_weightiest_reason_to_wake_up_counts(hub: Hub) -> None:
    viewer = new_viewer(hub, Wire())
    viewer.wake(Wake.GONE)
    viewer.wake(Wake.CATCH_UP)
    assert viewer.leaving
    assert await viewer.woken() is Wake.GONE


async def test_whose_time_is_over_is_woken_and_nobody_else(hub: Hub) -> None:
    now = time.time()
    over = Viewer(Wire(), framing=Framing.PLAIN, buffer_limit=100, expires=now - 1)
    follower = Follower(Wire(), shards=1, buffer_limit=100, expires=now - 1)
    later = Viewer(Wire(), framing=Framing.PLAIN, buffer_limit=100, expires=now + 60)
    for viewer in (over, follower, later):
        hub.register(viewer, RUN)
    ever = new_viewer(hub, Wire())
    beating = asyncio.create_task(hub.keep_alive(0.0))
    assert [await viewer.woken() for viewer in (over, follower)] == [Wake.EXPIRED, Wake.EXPIRED]
    beating.cancel()
    assert not ever.leaving
    assert not later.leaving


async def test_keep_alives_reach_everybody_once_a_period_but_never_in_a_block(hub: Hub) -> None:
    wires = [Wire(chunked=bool(number % 2)) for number in range(2 * SLICES)]
    viewers = [new_viewer(hub, wire) for wire in wires]
    for viewer in viewers[1:]:
        viewer.release()
    beating = asyncio.create_task(hub.keep_alive(0.0))
    while not all(wire.written for wire in wires[1:]):  # noqa: ASYNC110 - nothing else tells
        await asyncio.sleep(0)
    beating.cancel()
    assert wires[0].written == [], "it is replaying"
    assert {data for wire in wires for data in wire.written} == {KEEP_ALIVE, chunk(KEEP_ALIVE)}


async def test_news_does_not_wait_for_the_keep_alives_of_many(hub: Hub) -> None:
    wires = [Wire() for _ in range(3 * SLICES * AT_A_TIME)]
    for wire in wires:
        new_viewer(hub, wire).release()
    beating = asyncio.create_task(hub.keep_alive(0.0))
    written = [0]
    while written[-1] < len(wires):
        await asyncio.sleep(0)
        written.append(sum(len(wire.written) for wire in wires))
    beating.cancel()
    assert max(now - before for before, now in pairwise(written)) == AT_A_TIME


async def test_keep_alives_go_on_behind_a_viewer_that_breaks_them(hub: Hub) -> None:
    wires = [Wire() for _ in range(SLICES)]
    for wire in wires:
        new_viewer(hub, wire).release()
    broken = Mock(side_effect=RuntimeError)
    wires[3].write = broken  # type: ignore[method-assign]
    while not all(wire.written for wire in wires if wire is not wires[3]):
        with contextlib.suppress(RuntimeError, TimeoutError):
            await asyncio.wait_for(hub.keep_alive(0.0), 0.01)
    assert broken.called


async def test_everybody_gets_the_same_bytes(hub: Hub) -> None:
    wires = [Wire(), Wire()]
    for wire in wires:
        new_viewer(hub, wire).release()
    hub.dispatch(RUN, [frame(1)])
    assert wires[0].written[0] is wires[1].written[0]


@given(
    st.lists(st.integers(1, 50), min_size=1, unique=True).map(sorted),
    st.integers(0, 50),
    st.sampled_from(Framing),
)
def test_a_burst_is_cut_at_a_position_and_chunked_whole(
    numbers: list[int], position: int, framing: Framing
) -> None:
    burst = Burst([frame(id) for id in numbers])
    rest = burst.after(position)
    assert [kept.id for kept in rest.frames] == [id for id in numbers if id > position] if rest else True
    assert (rest is None) == (numbers[-1] <= position)
    data = burst.encode(2 * framing)
    size, _, tail = burst.encode(2 * framing + 1).partition(b"\r\n")
    assert (int(size, 16), tail) == (len(data), data + b"\r\n")


@settings(max_examples=500, deadline=None)
@given(st.data())
async def test_whatever_happens_meanwhile_a_viewer_sees_each_event_once_in_order(data: st.DataObject) -> None:
    """A model of the whole hand-over: a log that grows, a tailer that lags behind it and now and then loses
    its place, and a viewer whose reads end somewhere between what was asked and what is answered."""
    hub, wire = Hub(), Wire()
    viewer = new_viewer(hub, wire)
    log: list[int] = []
    tailed = 0
    reading: int | None = None
    for _ in range(data.draw(st.integers(1, 60))):
        step = data.draw(st.sampled_from(["append", "tail", "lose", "ask", "answer", "stall"]))
        if step == "append":
            log.append(len(log) + 1)
        elif step == "tail" and tailed < len(log):
            until = data.draw(st.integers(tailed + 1, len(log)))
            hub.dispatch(RUN, [frame(id) for id in log[tailed:until]])
            tailed = until
        elif step == "lose":
            tailed = len(log)
            hub.hold_all()
        elif step == "stall" and viewer.state is State.LIVE:
            viewer.hold(Wake.SLOW)
        elif step == "ask" and reading is None and viewer.state is not State.LIVE:
            viewer.state, reading = State.REPLAYING, len(log)
        elif step == "answer" and reading is not None:
            wire.written += [frame(id).block(Framing.PLAIN) for id in log[viewer.position : reading]]
            viewer.position = max(viewer.position, reading)
            reading = None
            if not viewer.release():
                reading = len(log)
    while viewer.state is not State.LIVE:
        wire.written += [frame(id).block(Framing.PLAIN) for id in log[viewer.position :]]
        viewer.position = len(log)
        viewer.release()
    hub.dispatch(RUN, [frame(id) for id in log[tailed:]])
    assert ids(wire) == log
