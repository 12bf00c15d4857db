"""A primary dies under load, and another server takes over by itself: in a cluster, and under sentinels."""

import asyncio
import time

import pytest

from relay.stream.keys import shard_of_run
from tests.faults.conftest import Row
from tests.faults.failover import Cluster, Failover, Watched, ask
from tests.faults.oracle import Expected, Fault, Outcome, Verdict
from tests.faults.servers import Valkey
from tests.faults.world import World
from tests.waiting import until

SHARDS = 8
"""They are in the slots of all three primaries."""


async def up(world: World, servers: Failover, shards: int, **env: str) -> None:
    """The product on these servers, under load."""
    await world.add_failover(servers, shards)
    env["RELAY_SHARDS"] = str(shards)
    parts = (world.add_web, world.add_web, world.add_persister)
    await asyncio.gather(*(add(**env) for add in parts))
    await world.load(runs=12)


def cut_off(replica: Valkey, primary: Valkey) -> None:
    """The replica gets nothing any more, as if the network between the two had failed."""
    ask(replica, "CONFIG", "SET", "masterauth", "wrong")
    ask(primary, "CLIENT", "KILL", "TYPE", "replica")


def first_204_s(world: World, shards: set[int], killed: float) -> float | None:
    """From the kill to the first event of these shards that was acknowledged after it."""
    answers = (
        call.began + call.took_s - killed
        for call in world.ledger.calls
        if call.outcome is Outcome.ACKNOWLEDGED
        and call.began > killed
        and shard_of_run(call.mark.run_id, world.shards) in shards
    )
    return min(answers, default=None)


async def failover(world: World, servers: Failover, *, behind: bool = False) -> float:
    """The primary of a shard that has runs dies; after how many seconds its shards went on.

    `behind`: its replica has not got the last events.
    """
    shard = shard_of_run(world.producers[0].run_id, world.shards)
    dead = servers.primary(shard)
    shards = {its for its in range(world.shards) if servers.primary(its) is dead}
    async with world.fault():
        if behind:
            world.persisters[0].freeze()  # so that what is acknowledged is nowhere else
            for replica in servers.replicas(dead):
                cut_off(replica, dead)
            await world.more(200)
        killed = time.monotonic()
        await dead.kill()
        await servers.taken_over(shard, dead)
        await dead.start()
        if behind:
            world.persisters[0].thaw()
    took_s = await until(lambda: first_204_s(world, shards, killed), "the first 204 of its shards", 30)
    assert took_s is not None
    return took_s


async def ended(world: World, row: Row, took_s: float) -> Verdict:
    verdict = await world.over(Expected(resets=True), settle_s=20)
    print(f"{took_s:.1f} s from the kill to the first 204 of its shards")  # noqa: T201
    return verdict


async def died(world: World, row: Row, servers: Failover, shards: int, waitaof: str | None) -> None:
    """With RELAY_WAITAOF all is well. Without it, the log may miss what the replica had not got, and so may
    the archive, or it has an event that was sent again twice; but nothing else goes wrong."""
    await up(world, servers, shards, **({"RELAY_WAITAOF": waitaof} if waitaof else {}))
    verdict = await ended(world, row, await failover(world, servers))
    if waitaof:
        row(verdict)
    else:
        row.note(verdict)
        assert verdict.faults <= {Fault.LOST, Fault.DOUBLED, Fault.DISAGREEMENT}, verdict.text


@pytest.mark.long
@pytest.mark.parametrize("waitaof", ["1,1", None])
async def test_row_15b_a_primary_of_a_cluster_dies(world: World, row: Row, waitaof: str | None) -> None:
    """Its replica takes over, and its shards go on; the others did not notice."""
    await died(world, row, Cluster(world.place), SHARDS, waitaof)


@pytest.mark.long
@pytest.mark.parametrize("waitaof", ["1,1", None])
async def test_row_15c_a_primary_with_sentinels_dies(world: World, row: Row, waitaof: str | None) -> None:
    """A replica takes over, and everybody goes there."""
    await died(world, row, Watched(world.place), 1, waitaof)


@pytest.mark.long
async def test_row_15d_a_replica_of_a_cluster_that_is_behind_takes_over(world: World, row: Row) -> None:
    """With WAITAOF 1 1, nothing that was acknowledged is missing."""
    cluster = Cluster(world.place)
    await up(world, cluster, SHARDS, RELAY_WAITAOF="1,1")
    row(await ended(world, row, await failover(world, cluster, behind=True)))


@pytest.mark.long
async def test_without_waiting_for_the_replica_row_15d_is_red(world: World, row: Row) -> None:
    """What the replica had not got is lost; nothing else is, and nothing is doubled."""
    cluster = Cluster(world.place)
    await up(world, cluster, SHARDS)
    row.red(await ended(world, row, await failover(world, cluster, behind=True)), Fault.LOST)
