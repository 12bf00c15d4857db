"""Rows 1 to 7: web workers and viewers."""

from tests.faults.conftest import Row
from tests.faults.oracle import Expected
from tests.faults.world import World


async def test_row_01_a_worker_is_killed_between_the_call_and_the_answer(world: World, row: Row) -> None:
    """Its producers see a reset, send again elsewhere under the same key, and get a 204 for one entry. Its
    viewers come back elsewhere and go on by id."""
    await world.up()
    doomed = await world.add_web("failing", f"append_sent:{world.random.randint(100, 400)}")
    await world.load()
    async with world.fault():
        await doomed.ended()
    verdict = await world.over(Expected(unknown=True))
    row(verdict)
