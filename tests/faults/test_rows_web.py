"""Rows 1 to 7: web workers and viewers."""

import asyncio
import time

import pytest

from tests.faults.conftest import Row
from tests.faults.oracle import Expected
from tests.faults.proxy import Toxics
from tests.faults.world import World
from tests.waiting import until

GOODBYE_S = 5.0
"""Far below the time after which a worker that stops cuts whoever is still there, on a busy machine too."""

EXIT_S = 15.0


async def test_row_01_a_worker_is_killed_between_the_call_and_the_answer(world: World, row: Row) -> None:
    """Its producers see a reset, send again elsewhere under the same key, and get a 204 for one entry. Its
    viewers come back elsewhere and go on by id."""
    await world.up()
    doomed = await world.add_web("failing", f"append_sent:{world.random.randint(100, 400)}")
    await world.load()
    async with world.fault():
        await doomed.ended()
    row(await world.over(Expected(unknown=True)))


async def test_row_02_a_worker_is_asked_to_stop_with_200_viewers(world: World, row: Row) -> None:
    """Calls under way are answered. The streams end in an orderly way and soon, with a time to come back, and
    no viewer ever sees a status that would make a browser give up. The worker is gone in time."""
    await world.up(webs=2)
    leaving, staying = world.webs

    def first_here_then_there() -> tuple[str, int]:
        return "127.0.0.1", (leaving if leaving in world.webs else staying).port

    await world.load(runs=4, viewers=50, watch=first_here_then_there)
    async with world.fault():
        asked = time.monotonic()
        assert await world.retire(leaving) in (0, -15)
        assert time.monotonic() - asked < EXIT_S
    verdict = await world.over()
    first = [watcher.connects[0] for watcher in world.watchers]
    assert len(first) == 200
    assert all(made.clean and made.said_retry for made in first), "a stream was not ended in an orderly way"
    assert max(made.ended for made in first) - asked < GOODBYE_S
    assert {made.status for watcher in world.watchers for made in watcher.connects} <= {200, None}
    assert not {status for status in world.statuses if status[0] == "5"}, "a call was not answered"
    row(verdict)


async def test_row_03_a_worker_is_frozen_for_ten_seconds(world: World, row: Row) -> None:
    """Its producers give up at their own deadline and send again. Its viewers hear nothing, and catch up in
    order once it goes on."""
    await world.up()
    await world.load(patience_s=2.0)
    async with world.fault():
        world.webs[0].freeze()
        await world.last(10)
        world.webs[0].thaw()
    row(await world.over(Expected(unknown=True, may_give_up=True)))


async def test_row_04_old_and_new_versions_work_side_by_side(world: World, row: Row) -> None:
    """A rolling upgrade, worker by worker and then the persister: 204 throughout, viewers go on by id at the
    other version, and both drain one group. (There is no release before this one. What stands for it has its
    functions under other names.)"""
    await world.add_valkey()
    old = await asyncio.gather(*(world.add_web("failing", "other_version") for _ in range(2)))
    before = await world.add_persister("failing", "other_version")
    await world.load()
    async with world.fault():
        for web in old:
            await world.add_web()
            await world.more(50)
            await world.retire(web)
            await world.more(50)
        await world.add_persister()
        await world.more(50)
        await before.stop()
    verdict = await world.over()
    assert not {status for status in world.statuses if status[0] in "45"}
    row(verdict)


async def test_row_05_viewers_are_cut_in_the_middle_of_a_frame(world: World, row: Row) -> None:
    """Half a frame is nothing: the next connection brings that event whole, and once."""
    await world.up()
    proxy = await world.add_proxy(world.webs[0].port)
    proxy.toxics = Toxics(cut_after=lambda: world.random.randint(600, 6000))
    await world.load(watch=lambda: ("127.0.0.1", proxy.port))
    verdict = await world.over()
    assert proxy.resets > 50
    row(verdict)


async def test_row_06_a_viewer_stops_reading_during_a_burst(world: World, row: Row) -> None:
    """Only that viewer is cut, and has everything after its return. Nobody else notices."""
    await world.up(RELAY_SLOW_VIEWER_S="2", RELAY_VIEWER_BUFFER_BYTES="65536")
    await world.load(runs=3)
    stalled = world.watch(world.producers[0].run_id, "the stalled viewer")
    stalled.receive_bytes = 4096
    await until(stalled.admitted.is_set, "the stalled viewer to be let in")
    burst = world.producers[0]
    async with world.fault():
        stalled.reads.clear()
        burst.text_bytes = 60_000
        beyond_all_buffers = burst.sent + 150
        await until(lambda: burst.sent > beyond_all_buffers, "the burst", 60)
        burst.text_bytes = 40
        await world.last(10 if world.short else 60)
        stalled.reads.set()
    verdict = await world.over()
    assert len(stalled.connects) > 1, "it was not cut"
    assert all(len(watcher.connects) == 1 for watcher in world.watchers if watcher is not stalled)
    row(verdict)


async def newcomers(world: World, count: int, points: str = "dawdle") -> None:
    """Row 7, with that many viewers."""
    await world.add_valkey()
    await world.add_web("failing", points)
    await world.add_persister()
    await world.load(runs=10, viewers=0)
    for producer in world.producers:
        producer.pause_s = 0.2
    for number in range(count):
        run_id = world.random.choice(world.producers).run_id
        world.watch(run_id, f"newcomer {number}")
        await world.more(1)


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_row_07_a_thousand_viewers_connect_during_a_burst(world: World, row: Row) -> None:
    """Whatever comes before, during and after a newcomer's replay, it has everything once and in order."""
    await newcomers(world, 1000)
    row(await world.over())
