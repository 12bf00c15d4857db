"""Rows 20 and 28 to 30: trimming under a stopped worker, clocks, a cold start, and too few files."""

import asyncio
import contextlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.acceptance.running import environment_with
from tests.faults.conftest import Row
from tests.faults.oracle import Expected
from tests.faults.servers import ROOT, START_S, Server
from tests.faults.test_rows_archive import nobody_noticed
from tests.faults.world import KEYS, World
from tests.sql import sql
from tests.waiting import until


@pytest.mark.parametrize("moment", [pytest.param("whenever", marks=pytest.mark.long), "while it dispatches"])
async def test_row_20_the_log_is_trimmed_past_a_stopped_worker(world: World, row: Row, moment: str) -> None:
    """Its tailer does not trust its place when it goes on, so its viewers read what they missed from the run
    logs, and none starts anew. (The shard log keeps what is younger than a minute at least; a tailer
    mistrusts its place after half a minute, here after three seconds, so that the row is short.)"""
    await world.add_valkey()
    await world.add_web()
    itself = f"+stops_in_dispatch:{world.random.randint(20, 60)}" if moment != "whenever" else ""
    stopped = await world.add_web("points", f"impatient:3{itself}")
    await world.add_persister()
    producing, watching = world.webs[0].port, stopped.port
    await world.load(
        address=lambda: ("127.0.0.1", producing), watch=lambda: ("127.0.0.1", watching), silence_s=60
    )
    async with world.fault():
        if itself:
            is_stopped = psutil.Process(stopped.pid).status
            await until(lambda: is_stopped() == psutil.STATUS_STOPPED, "the worker to stop itself")
        else:
            stopped.freeze()
        await world.more(200)
        await world.last(12)
        await world.pause()
        await world.drained()
        assert world.ask("XTRIM", KEYS.log, "MAXLEN", 0) > 200
        world.go_on()
        await world.more(50)
        stopped.thaw()
    verdict = await world.over()
    nobody_noticed(world)
    row(verdict)


AHEAD, BEHIND = "+50m", "-1h"
"""Not a whole hour ahead: the tests' viewers have tokens for an hour, which would then rightly be refused."""


@pytest.mark.parametrize("part", ["web", "persister", "valkey"])
@pytest.mark.parametrize(
    "offsets",
    [
        pytest.param((AHEAD, BEHIND), id="ahead"),
        pytest.param((BEHIND, AHEAD), id="behind", marks=pytest.mark.long),
    ],
)
async def test_row_28_a_clock_is_wrong(world: World, row: Row, part: str, offsets: tuple[str, str]) -> None:
    """By about an hour, in either direction, and then in the other: ids grow all the same, which the oracle
    sees, and history is in their order."""
    await world.up()
    await world.load()
    server: Server = {"web": world.webs[0], "persister": world.persisters[0], "valkey": world.valkey}[part]
    right = server.part
    for offset in offsets:
        async with world.fault():
            await server.stop()
            server.part = right
            server.set_clock(offset)
            await server.start()
            await world.more(100)
    row(await world.over(Expected(resets=False)))


MIGRATORS = 3


async def test_row_29_a_cold_start_of_everything_at_once(world: World, row: Row, place: Path) -> None:
    """Four workers, two persisters, and migrations from three places, on an empty PostgreSQL and an empty
    Valkey: none crashes, and there is one schema, one group, and one version of the functions."""
    await _empty_postgres(world)
    await world.add_valkey()
    stores = {"REDIS_URL": world.valkey.url, "DATABASE_URL": world.database_url}
    migrate = [sys.executable, "-m", "relay", "migrate"]
    environment = environment_with(**stores, PYTHONPATH=str(ROOT))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((place / "migrate.log").open("wb"))
        migrations = [
            stack.enter_context(subprocess.Popen(migrate, env=environment, stdout=log, stderr=log))
            for _ in range(MIGRATORS)
        ]
        await asyncio.gather(*(world.add_web() for _ in range(4)), *(world.add_persister() for _ in range(2)))
        await until(lambda: all(made.poll() is not None for made in migrations), "the migrations", START_S)
    assert [made.returncode for made in migrations] == [0] * MIGRATORS, (place / "migrate.log").read_text()
    await world.load()
    verdict = await world.over()
    assert all(server.alive for server in (*world.webs, *world.persisters))
    assert len(world.query("SELECT * FROM alembic_version")) == 1
    assert len(world.ask("FUNCTION", "LIST")) == 1
    assert len(world.ask("XINFO", "GROUPS", KEYS.log)) == 1
    nobody_noticed(world)
    row(verdict)


async def _empty_postgres(world: World) -> None:
    await world.add_postgres()
    with sql(world.database_url) as cursor:
        cursor.execute("DROP SCHEMA public CASCADE")
        cursor.execute("CREATE SCHEMA public")


FILES, VIEWERS = 256, 300
TURNED_AWAY_S = 8.0
"""With what 300 viewers in one event loop cost the test itself."""


async def test_row_30_there_are_fewer_files_than_viewers(world: World, row: Row) -> None:
    """A worker may open 256 files, and 300 viewers come: those beyond what it can serve are refused at once,
    with a status or a closed connection, the others are not hurt, and events get their 204, also over new
    connections."""
    await world.add_valkey()
    web = await world.add_web("points", f"few_files:{FILES}")
    await world.add_persister()
    await world.load(runs=4, viewers=1)
    crowd = []
    async with world.fault():
        for number in range(VIEWERS):
            made = world.watch(world.producers[number % 4].run_id, f"viewer {number} of the crowd")
            crowd.append(made)
        await until(lambda: all(made.admitted.is_set() or made.connects for made in crowd), "answers", 60)
        await world.pause()
        for producer in world.producers:
            producer.hang_up()
        world.go_on()
        await world.more(300)
        seated = [made for made in crowd if made.admitted.is_set()]
        refused = [made for made in crowd if not made.admitted.is_set()]
        statuses = Counter(made.connects[0].status for made in refused)
        print(f"{len(seated)} were let in, the others were told {dict(statuses)}")  # noqa: T201
        assert len(seated) > FILES / 2
        assert refused
        assert set(statuses) <= {None, 429, 503}
        assert max(made.connects[0].ended - made.connects[0].began for made in refused) < TURNED_AWAY_S
        for made in refused:
            made.leave()
            world.watchers.remove(made)
    assert all(len(made.connects) == 0 for made in seated), "somebody was hurt"
    assert web.alive
    verdict = await world.over()
    assert world.statuses == {"204"}
    row(verdict)
