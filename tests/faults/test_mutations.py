"""The matrix would notice: each known mistake, put into the product, turns its row red.

The rows are the same as elsewhere; only the verdict is expected to be another one.
"""

import pytest

from tests.faults.conftest import Row
from tests.faults.oracle import Expected, Fault
from tests.faults.test_rows_log import flipped, lost_group, power_loss, replaced_by_its_replica
from tests.faults.test_rows_network import lost_answers
from tests.faults.test_rows_web import newcomers
from tests.faults.world import World

AT_STAKE = 8192
"""More than all events that are under way, so that some of it was acknowledged."""


async def test_without_a_sync_before_the_answer_row_09_is_red(world: World, row: Row) -> None:
    await power_loss(world, "everysec", AT_STAKE)
    verdict = await world.over(Expected(unknown=True, resets=True), settle_s=5)
    row.red(verdict, Fault.LOST)


@pytest.mark.long
async def test_without_a_look_at_the_seal_row_13b_is_red(world: World, row: Row) -> None:
    bad = await flipped(world, "failing", "seal_unseen")
    row.red(await world.over(Expected(dead=[bad]), settle_s=5), Fault.NOT_QUIET)


@pytest.mark.long
async def test_without_waiting_for_the_replica_row_15_is_red(world: World, row: Row) -> None:
    await replaced_by_its_replica(world)
    row.red(await world.over(Expected(resets=True), settle_s=5), Fault.LOST)


async def test_with_a_driver_that_repeats_calls_row_16b_is_red(world: World, row: Row) -> None:
    await lost_answers(world, "failing", "retry_on")
    row.red(await world.over(), Fault.DOUBLED)


@pytest.mark.long
async def test_without_holding_newcomers_row_07_is_red(world: World, row: Row) -> None:
    await newcomers(world, 100, "dawdle+no_held_state")
    row.red(await world.over(settle_s=5), Fault.LOST, Fault.DISAGREEMENT)


@pytest.mark.long
async def test_with_a_group_at_the_end_of_the_log_row_14b_is_red(world: World, row: Row) -> None:
    await lost_group(world, "failing", "group_at_the_end")
    row.red(await world.over(settle_s=5), Fault.LOST)


async def test_with_an_acknowledgement_before_the_commit_row_21_is_red(world: World, row: Row) -> None:
    await world.add_valkey()
    await world.add_web()
    doomed = await world.add_persister(
        "failing", f"acknowledge_first+before_insert:{world.random.randint(5, 30)}"
    )
    await world.load()
    async with world.fault():
        await doomed.ended()
        await world.add_persister()
    row.red(await world.over(settle_s=5), Fault.LOST)
