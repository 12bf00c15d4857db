"""Rows 21 to 27: persisters, and what PostgreSQL does to them."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence

import psutil
import psycopg2
import pytest

from relay import connect
from relay.stream.entry import NewEvent
from relay.stream.group import parsed
from relay.stream.publish import Publisher
from tests.acceptance.running import CLIENT, CONVERSATION, viewer
from tests.faults import disk
from tests.faults.clients import digest
from tests.faults.conftest import Row
from tests.faults.oracle import Call, Expected, Fault, Gauge, Mark, Outcome
from tests.faults.servers import Persister, until_in_thread
from tests.faults.world import KEYS, SETTLE_S, World
from tests.sql import sql

GOOD = {"step": "paper_writeup", "substep": None, "progress": 0.5, "step_progress": 0.5}
POISON = {**GOOD, "step": None}
"""What no webhook lets through: the archive's column does not take it."""


async def slip_in(world: World, events: int, poisoned: int) -> Mark:
    """Appends a batch of a run of its own past all checks, with one bad event in it; which one that is."""
    run_id = f"run-{world.seed}-poisoned"
    await world.claim(run_id)
    world.watch(run_id, f"viewer of {run_id}")
    marks, batch = [], []
    for number in range(events):
        details = {"number": number, "text": f"event {number}"}
        event = {**(POISON if number == poisoned else GOOD), "details": details}
        marks.append(Mark(run_id, number, digest(f"event {number}")))
        batch.append(NewEvent(run_id, "paper_generation_progress", json.dumps(event).encode()))
        world.ledger.attempt(marks[-1])
    began = time.monotonic()
    await _append(world, batch)
    for mark in marks:
        took_s = time.monotonic() - began
        world.ledger.told(Call(mark, Outcome.ACKNOWLEDGED, began, took_s, "204"))
    return marks[poisoned]


async def _append(world: World, batch: Sequence[NewEvent]) -> None:
    async def floor() -> int:
        return 0

    publisher = Publisher(
        lambda _: connect.append_link(world.valkey.url), floor, shards=1, deadline_s=2.8, remember_ms=60_000
    )
    await publisher.append(batch)
    await publisher.close()


def pending_of(world: World, persister: Persister) -> int:
    """How many entries are with that persister."""
    claims = parsed(world.ask("HGETALL", KEYS.claims))
    return sum(claim.entries for claim in claims if claim.persister == persister.part.name)


async def history(world: World) -> tuple[int, float]:
    """The status of history, and how long it took."""
    path = f"/conversations/{CONVERSATION}/idea/research-run/{world.producers[0].run_id}"
    began = time.monotonic()
    url = f"{world.webs[0].url}{path}/paper-generation-progress?limit=1"
    answer = await asyncio.to_thread(CLIENT.get, url, headers=viewer())
    return answer.status_code, time.monotonic() - began


async def history_is_back(world: World) -> None:
    async def back() -> bool:
        return (await history(world))[0] == 200

    deadline = time.monotonic() + SETTLE_S
    while not await back():
        assert time.monotonic() < deadline, "history does not come back"


def nobody_noticed(world: World) -> None:
    """Webhook and viewers know nothing of the archive."""
    assert world.statuses == {"204"}
    assert all(len(watcher.connects) <= 1 for watcher in world.watchers), "a viewer was disconnected"


POINTS = ["before_insert", "after_commit", "after_bury"]
SIMILAR = ["before_claim", "after_insert", "half_settled", "after_settle", "before_bury"]
"""For a peer, these are as `before_insert` or as `after_commit`, or there is nothing to do."""


@pytest.mark.parametrize(
    "point", [*POINTS, *(pytest.param(point, marks=pytest.mark.long) for point in SIMILAR)]
)
async def test_row_21_a_persister_is_killed(world: World, row: Row, point: str) -> None:
    """At any moment between a claim and what comes after it, also around a dead letter: a peer takes over,
    and each event is archived once, or buried once."""
    await world.add_valkey()
    await world.add_web()
    buries = point.endswith("bury")
    doomed = await world.add_persister("failing", f"{point}:{1 if buries else world.random.randint(5, 30)}")
    await world.load()
    dead = []
    async with world.fault():
        if buries:
            dead.append(await slip_in(world, 50, world.random.randrange(50)))
        await doomed.ended()
        await world.more(world.random.randint(50, 150))
        await world.add_persister()
    verdict = await world.over(Expected(dead=dead))
    nobody_noticed(world)
    row(verdict)


def caught_at_work(world: World, persister: Persister) -> bool:
    """Freezes it, and whether it has a batch at hand then; else it goes on."""
    persister.freeze()
    if pending_of(world, persister) > 0:
        return True
    persister.thaw()
    return False


async def test_row_22_a_peer_takes_over_from_a_frozen_persister_that_comes_back(
    world: World, row: Row
) -> None:
    """What the zombie then inserts is there already, and what it acknowledges too."""
    await world.add_valkey()
    await world.add_web()
    zombie = await world.add_persister("points", "linger:2")
    await world.load()
    async with world.fault():
        await until_in_thread(lambda: caught_at_work(world, zombie), "a batch at hand", SETTLE_S)
        await world.add_persister()
        await until_in_thread(lambda: pending_of(world, zombie) == 0, "the peer to take over", SETTLE_S)
        zombie.thaw()
        await world.more(200)
    verdict = await world.over()
    nobody_noticed(world)
    row(verdict)


SLOW_ROWS = """
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END $$;
    CREATE TRIGGER dawdle BEFORE INSERT ON rp_paper_generation_events FOR EACH ROW EXECUTE FUNCTION dawdle();
"""
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


def deadlocks(world: World) -> int:
    ((count,),) = world.query(DEADLOCKS)
    return int(count)


async def opposite_orders(world: World, *points: str) -> None:
    """Row 23, with persisters that have these points beside: each takes what the other is at work on, and one
    has it backwards. Rows are made slow, so that their transactions overlap; mistakes have time until they
    meet."""
    await world.add_postgres()
    world.gauges.append(lambda: Gauge("deadlocks", 0, deadlocks(world)))
    await world.add_valkey()
    await world.add_web()
    for order in ("impatient", "backwards"):
        await world.add_persister("points", "+".join([order, *points]), RELAY_PERSISTER_CLAIM_S="0.001")
    await world.load(runs=12)
    with sql(world.database_url) as cursor:
        async with world.fault():
            await asyncio.to_thread(cursor.execute, SLOW_ROWS)
            await world.more(1000)
            if points:
                await until_in_thread(lambda: deadlocks(world) > 0, "what must not be", SETTLE_S)
            await asyncio.to_thread(cursor.execute, "DROP TRIGGER dawdle ON rp_paper_generation_events")


async def test_row_23_two_persisters_hold_the_same_entries_in_opposite_order(world: World, row: Row) -> None:
    """Both insert in the order of the ids, so that neither waits for the other in a circle."""
    await opposite_orders(world)
    verdict = await world.over()
    nobody_noticed(world)
    row(verdict)


@pytest.mark.long
async def test_with_rows_in_the_order_they_came_row_23_is_red(world: World, row: Row) -> None:
    await opposite_orders(world, "unsorted")
    row.red(await world.over(), Fault.NOT_QUIET)


@pytest.mark.timeout(1500)
async def test_row_24_postgresql_crashes_and_then_is_away_for_long(world: World, row: Row) -> None:
    """Nobody but history notices; it says 503, and is complete afterwards. (25 seconds stand for ten minutes
    without FAULT_LONG: the persister's waits are at their longest after ten, and nothing else counts the
    time.)"""
    postgres = await world.add_postgres()
    await world.up()
    await world.load()
    if world.long:
        for producer in world.producers:
            producer.pause_s = 0.5
    for seconds in (0, 600 if world.long else 25):
        async with world.fault():
            postgres.send(signal.SIGQUIT)  # an immediate shutdown, as of a crash
            await postgres.ended()
            await world.more(50)
            status, took_s = await history(world)
            assert status == 503
            assert took_s < 6
            await world.last(seconds)
            await postgres.start()
        await history_is_back(world)
    verdict = await world.over()
    nobody_noticed(world)
    row(verdict)


async def test_row_25_postgresql_is_frozen(world: World, row: Row) -> None:
    """It takes connections, and answers nothing: history says 503 at its deadline, and comes back with it."""
    postgres = await world.add_postgres()
    await world.up()
    await world.load()
    async with world.fault():
        postgres.freeze()
        frozen = asyncio.create_task(world.last(10))
        for _ in range(3):
            status, took_s = await history(world)
            assert status == 503
            assert took_s < 6
        await frozen
        postgres.thaw()
    await history_is_back(world)
    verdict = await world.over()
    nobody_noticed(world)
    row(verdict)


def backend_of(world: World, persister: Persister) -> int | None:
    """The process that serves a persister in PostgreSQL, once it is connected."""
    ports = {made.laddr.port for made in psutil.Process(persister.pid).net_connections("tcp")}
    listed = world.query("SELECT pid, client_port FROM pg_stat_activity WHERE client_port IS NOT NULL")
    return next((int(pid) for pid, port in listed if port in ports), None)


async def test_row_25b_one_persisters_connection_is_frozen(world: World, row: Row) -> None:
    """The stuck persister gives up and ends, to be started again; a peer goes on meanwhile."""
    await world.add_postgres()
    await world.add_valkey()
    await world.add_web()
    stuck = await world.add_persister(RELAY_PERSISTER_STUCK_S="4")
    await world.load()
    async with world.fault():
        backend = await until_in_thread(lambda: backend_of(world, stuck), "the persister's backend", 20)
        assert backend
        os.kill(backend, signal.SIGSTOP)
        assert await stuck.ended(30) == 1
        await world.add_persister()
        await world.more(200)
        os.kill(backend, signal.SIGCONT)
    verdict = await world.over()
    assert "started again" in stuck.output
    nobody_noticed(world)
    row(verdict)


@contextlib.contextmanager
def read_only(world: World) -> Iterator[None]:
    for value in ("on", "off"):
        with sql(world.database_url) as cursor:
            cursor.execute("SET default_transaction_read_only = off")
            cursor.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            cursor.execute("SELECT pg_reload_conf()")
        if value == "on":
            yield


@contextlib.contextmanager
def disk_full(world: World) -> Iterator[None]:
    """The table moves to a small disk, which is filled, and later has room again."""
    with (
        disk.small(world.place / "small", world.place / "postgres" / "data") as small,
        contextlib.closing(psycopg2.connect(world.database_url)) as connection,
    ):
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLESPACE small LOCATION %s", [str(small)])
            cursor.execute("ALTER TABLE rp_paper_generation_events SET TABLESPACE small")
            disk.fill(small / "filler")
            yield
            assert "(53100)" in world.persisters[0].output
            (small / "filler").unlink()
            cursor.execute("ALTER TABLE rp_paper_generation_events SET TABLESPACE pg_default")
            cursor.execute("DROP TABLESPACE small")


@contextlib.contextmanager
def no_connections(world: World) -> Iterator[None]:
    """Others hold all of them, also those that the relay had."""
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            with contextlib.suppress(psycopg2.OperationalError):
                while True:
                    connection = psycopg2.connect(world.database_url)
                    stack.enter_context(contextlib.closing(connection))
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity "
                    "WHERE application_name = 'rp-relay'"
                )
        yield


REFUSALS = {"read-only": read_only, "disk full": disk_full, "too many connections": no_connections}


@pytest.mark.parametrize(
    "refusal",
    [pytest.param(name, marks=[pytest.mark.long] if place else []) for place, name in enumerate(REFUSALS)],
)
async def test_row_26_postgresql_refuses(world: World, row: Row, refusal: str) -> None:
    """The persister tries again and again; nothing is acknowledged, and nothing is buried."""
    await world.add_postgres()
    await world.up()
    await world.load()
    async with world.fault():
        with REFUSALS[refusal](world):
            await until_in_thread(
                lambda: pending_of(world, world.persisters[0]) > 0, "a batch that is refused", SETTLE_S
            )
            await world.last(10)
            assert pending_of(world, world.persisters[0]) > 0
            assert world.ask("XLEN", KEYS.dead_letters) == 0
    verdict = await world.over()
    nobody_noticed(world)
    row(verdict)


async def test_row_27_one_bad_event_in_a_batch_of_500(world: World, row: Row) -> None:
    """Viewers get it, 499 others are archived, and it is among the dead letters with its reason."""
    await world.up()
    await world.load()
    async with world.fault():
        bad = await slip_in(world, 500, world.random.randrange(500))
    verdict = await world.over(Expected(dead=[bad]))
    rows = world.query(f"SELECT count(*) FROM rp_paper_generation_events WHERE run_id = '{bad.run_id}'")  # noqa: S608
    assert rows == [(499,)]
    ((_, letter),) = world.ask("XRANGE", KEYS.dead_letters, "-", "+")
    assert letter[b"reason"] == b"NotNullViolation (23502)"
    nobody_noticed(world)
    row(verdict)
