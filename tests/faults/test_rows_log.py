"""Rows 8 to 15: the event log."""

from tests.faults.conftest import Row
from tests.faults.oracle import Expected
from tests.faults.world import World


async def test_row_08_valkey_is_killed_and_comes_back_with_its_file(world: World, row: Row) -> None:
    """Calls get a 503 in time, then 204 again. Viewers stay connected, and none starts anew."""
    await world.up(webs=2)
    await world.load()
    async with world.fault():
        await world.valkey.kill()
        await world.trouble(5)
        await world.valkey.start()
    row(await world.over(Expected(unknown=True)))


async def test_row_10_valkey_is_frozen_for_eight_seconds(world: World, row: Row) -> None:
    """Calls get a 503 at their deadline. What was under way may appear afterwards, and is not doubled by the
    repeats. Viewers pause, then go on in order."""
    await world.up(webs=2)
    await world.load()
    async with world.fault():
        world.valkey.freeze()
        await world.last(8)
        world.valkey.thaw()
    row(await world.over(Expected(unknown=True)))
