"""Rows 8 to 15: the event log."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay.stream.keys import GROUP
from tests.faults import disk
from tests.faults.conftest import Row
from tests.faults.oracle import Expected, Mark
from tests.faults.stores import seen
from tests.faults.world import KEYS, World


async def test_row_08_valkey_is_killed_and_comes_back_with_its_file(world: World, row: Row) -> None:
    """Calls get a 503 in time, then 204 again. Viewers stay connected, and none starts anew."""
    await world.up(webs=2)
    await world.load()
    async with world.fault():
        await world.valkey.kill()
        await world.trouble(5)
        await world.valkey.start()
    verdict = await world.over(Expected(unknown=True))
    assert all(len(watcher.connects) == 1 for watcher in world.watchers), "a viewer was disconnected"
    row(verdict)


async def power_loss(world: World, policy: str, at_stake: int = 0) -> None:
    """Row 9, with that `appendfsync`. `at_stake`: so many bytes have to be written and not synced."""
    valkey = await world.add_valkey(f"appendfsync {policy}")
    await valkey.stop()
    power = disk.PowerLoss(valkey, world.place)
    await valkey.start()
    await world.add_web()
    persister = await world.add_persister()
    await world.load()
    async with world.fault():
        persister.freeze()  # so that what is acknowledged is nowhere else
        await power.synced()
        await world.more(world.random.randint(50, 150))
        lost = await power.strike(at_stake)
        print(f"{lost} bytes were written and not synced")  # noqa: T201
        await valkey.start()
        persister.thaw()


async def test_row_09_the_power_fails_and_what_was_not_synced_is_gone(world: World, row: Row) -> None:
    """With `appendfsync always`, all that was acknowledged is on the disk, and so is all that viewers saw."""
    await power_loss(world, "always")
    row(await world.over(Expected(unknown=True)))


async def test_row_10_valkey_is_frozen_for_eight_seconds(world: World, row: Row) -> None:
    """Calls get a 503 at their deadline. What was under way may appear afterwards, and is not doubled by the
    repeats. Viewers pause, then go on in order."""
    await world.up(webs=2)
    await world.load()
    async with world.fault():
        world.valkey.freeze()
        await asyncio.gather(world.trouble(), world.last(8))
        world.valkey.thaw()
    row(await world.over(Expected(unknown=True)))


async def test_row_11_the_disk_is_full_under_valkey(world: World, row: Row) -> None:
    """Valkey ends itself rather than acknowledge what it can not write, also when it is started again while
    the disk is still full. Calls get a 503 until there is room; nothing is lost or doubled."""
    valkey = await world.add_valkey()
    await valkey.stop()
    disk.may_meet_a_full_disk(valkey)
    await valkey.start()
    await world.add_web()
    await world.add_persister()
    await world.load()
    async with world.fault():
        for _ in range(2):
            disk.fill_disk(valkey, world.random.randint(2000, 20_000))
            assert await valkey.ended() != 0
            await world.trouble(3)
            valkey.launch()
            disk.fill_disk(valkey, 0)
        await valkey.ended()
        await valkey.start()
    row(await world.over())


async def test_row_12_valkey_has_no_memory_left(world: World, row: Row) -> None:
    """Calls get a 503 that says `not stored`, and it is not: no half of an event either. Viewers and the
    archive go on."""
    await world.up()
    await world.load()
    async with world.fault():
        used = world.ask("INFO", "memory")["used_memory"]
        world.ask("CONFIG", "SET", "maxmemory", used + world.random.randint(0, 200_000))
        await world.trouble(30)
        await world.drained()
        world.ask("CONFIG", "SET", "maxmemory", 0)
    verdict = await world.over()
    assert world.statuses == {"204", "503 not-stored"}
    row(verdict)


async def test_row_13_the_tail_of_the_file_is_torn(world: World, row: Row) -> None:
    """Half a write at the end of the file was never acknowledged: Valkey starts without it, and nothing that
    was acknowledged is missing."""
    await world.up()
    await world.load()
    async with world.fault():
        await world.valkey.kill()
        disk.tear(world.valkey, world.random.random())
        await world.valkey.start()
    row(await world.over(Expected(unknown=True)))
    assert "Truncating the AOF" in world.valkey.output


@asynccontextmanager
async def behind(world: World, *launcher: str) -> AsyncIterator[None]:
    """A fault while that persister, the only one, is frozen and does not have what was acknowledged last."""
    await world.add_valkey()
    await world.add_web()
    persister = await world.add_persister(*launcher)
    await world.load()
    async with world.fault():
        persister.freeze()
        await world.more(world.random.randint(50, 150))
        yield
        persister.thaw()


async def flipped(world: World, *launcher: str) -> Mark:
    """Row 13b, with that persister; which event it is that is damaged in the shard log."""
    async with behind(world, *launcher):
        await world.pause()
        id, fields = world.ask("XREVRANGE", KEYS.log, "+", "-", "COUNT", 50)[world.random.randrange(50)]
        await world.valkey.kill()
        disk.flip(world.valkey, fields[b"e"], fields[b"e"].index(b"0.5") + 2)
        await world.valkey.start()
        world.go_on()
    return seen(id, fields).mark


async def test_row_13b_a_bit_of_the_file_is_flipped(world: World, row: Row) -> None:
    """Valkey, whose file has no checksums, takes another number for the right one. The persister does not:
    the entry is among the dead letters, with its reason. Viewers read the run log, which was not hit."""
    bad = await flipped(world)
    row(await world.over(Expected(dead=[bad])))
    ((_, letter),) = world.ask("XRANGE", KEYS.dead_letters, "-", "+")
    assert letter[b"reason"] == b"it is damaged: its checksum does not fit"


async def test_row_14_valkey_comes_back_empty_with_its_clock_behind(world: World, row: Row) -> None:
    """Ids go on above all that were ever given out, so the archive takes the new events in; the functions are
    loaded again, viewers start anew and are not deaf."""
    await world.up(webs=2)
    await world.load()
    async with world.fault():
        await world.pause()
        await world.drained()
        highest = max(id for (id,) in world.query("SELECT id FROM rp_paper_generation_events"))
        before = world.ledger.count
        await world.valkey.kill()
        disk.lose_everything(world.valkey)
        world.valkey.set_clock("-1h")
        await world.valkey.start()
        world.go_on()
    verdict = await world.over(Expected(resets=True))
    ids = [id for (id,) in world.query("SELECT id FROM rp_paper_generation_events")]
    assert len([id for id in ids if id > highest]) == world.ledger.count - before
    assert world.statuses <= {"204", "503 not-stored", "503 outcome-unknown"}
    row(verdict)


async def replaced_by_its_replica(world: World, **env: str) -> None:
    """Row 15: the replica is behind when the primary is lost, and takes over."""
    primary = await world.add_valkey()
    replication = await world.add_proxy(primary.port)
    replica = await world.add_replica(replication.port)
    proxy = await world.add_proxy(primary.port)
    parts = (world.add_web, world.add_web, world.add_persister)
    await asyncio.gather(*(add(redis_url=primary.url_by(proxy.port), **env) for add in parts))
    await world.load()
    async with world.fault():
        for connection in replication.connections:
            connection.mute = True
        if env:
            await world.trouble(6)
            before = world.ledger.count
            await world.trouble(round(12 * world.scale))
            assert world.ledger.count == before, "acknowledged while no replica had it"
        else:
            world.persisters[0].freeze()  # so that what is acknowledged is nowhere else
            await world.more(100)
        await primary.kill()
        world.valkey, proxy.target = replica, ("127.0.0.1", replica.port)
        world.ask("REPLICAOF", "NO", "ONE")
        await world.add_replica()
        world.persisters[0].thaw()


async def test_row_15_a_replica_that_is_behind_takes_over(world: World, row: Row) -> None:
    """With WAITAOF 1 1, nothing that was acknowledged is missing, and nothing is archived that would be sent
    again. Viewers who saw what is gone start anew."""
    await replaced_by_its_replica(world, RELAY_WAITAOF="1,1")
    row(await world.over(Expected(unknown=True, resets=True)))


async def lost_group(world: World, *launcher: str) -> None:
    """Row 14b, with that persister."""
    async with behind(world, *launcher):
        world.ask("XGROUP", "DESTROY", KEYS.log, GROUP)


async def test_row_14b_the_persisters_group_is_gone(world: World, row: Row) -> None:
    """The group is made again at the beginning of the log: what is archived already is left out, and what is
    not is archived."""
    await lost_group(world)
    row(await world.over())
