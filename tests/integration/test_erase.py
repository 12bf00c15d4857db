"""A run that is erased is gone from all four stores, and does not come back."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from persister.consumer import Consumer, Settlement
from persister.loop import Loop
from persister.settings import Settings
from persister.store import Store
from relay.cli import main
from relay.connect import database, persister_redis
from relay.erase import ERASED_S, Erased, StillHeld, erase
from relay.events.registry import TABLES
from relay.stream.entry import FIELD, NewEvent, decode, run_of
from relay.stream.keys import MAX_SHARDS, ShardKeys
from relay.stream.publish import Publisher
from tests.conftest import Servers
from tests.factories import event
from tests.sql import query

KEYS = ShardKeys(0)
GONE, STAYS = "run-to-erase", "run-to-keep"


@pytest.fixture
def persister(client: redis.Redis, archive: Store) -> Loop:
    return Loop(client, archive, 0, Settings(persister_name="p"))


def rows(servers: Servers, run_id: str) -> int:
    statements = [f"SELECT id FROM {table} WHERE run_id = %s" for table in TABLES]  # noqa: S608
    return sum(len(query(servers.database_url, statement, [run_id])) for statement in statements)


def traces(client: redis.Redis, run_id: str) -> list[Any]:
    """What Redis has of a run, in keys, streams and sets."""
    found: list[Any] = [key for key in client.scan_iter() if run_id.encode() in key]
    for stream in (KEYS.log, KEYS.dead_letters):
        entries: Any = client.xrange(stream)
        found += [id for id, fields in entries if run_of(fields[FIELD]) == run_id]
    names: Any = client.zrange(KEYS.runs, 0, -1)
    return found + [name for name in names if run_id.encode() in name]


async def test_a_run_is_erased_everywhere_and_others_stay(
    servers: Servers, client: redis.Redis, publisher: Publisher, persister: Loop
) -> None:
    for run_id in (GONE, STAYS):
        await publisher.append([event(run_id), event(run_id), NewEvent(run_id, "unheard_of", b'{"a":1}')])
        client.set(KEYS.owner(run_id), "7:42")
    while persister.step():
        pass
    await publisher.append([event(GONE), event(STAYS)])
    stays = traces(client, STAYS)
    assert (rows(servers, GONE), rows(servers, STAYS)) == (2, 2)
    connect = partial(database, servers.database_url)
    assert erase([client], connect, GONE) == Erased(entries=4, rows=2, dead_letters=1)
    while persister.step():
        pass
    assert (traces(client, GONE), rows(servers, GONE)) == ([], 0)
    assert (traces(client, STAYS), rows(servers, STAYS)) == (stays, 3)
    assert erase([client], connect, GONE) == Erased(0, 0, 0)


def test_it_is_erased_from_every_shard_whatever_the_environment_says_of_them(
    servers: Servers, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", servers.redis_url)
    monkeypatch.setenv("DATABASE_URL", servers.database_url)
    last = ShardKeys(MAX_SHARDS - 1)
    client.set(last.owner(GONE), "7:42")
    for stream in (last.log, last.run(GONE), last.dead_letters):
        client.xadd(stream, {FIELD: f"{GONE} unheard_of{{}}"})
    done = CliRunner().invoke(main, ["erase", GONE])
    assert done.output == "Erased: 1 entries, 0 rows, 1 dead letters.\n"
    assert [client.exists(last.owner(GONE), last.run(GONE)), client.xlen(last.log)] == [0, 0]


async def test_a_run_that_sends_meanwhile_is_counted_as_any(
    servers: Servers, client: redis.Redis, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publisher.append([event(GONE)])
    loop, ran = asyncio.get_running_loop(), list[str]()
    send: Callable[..., Any] = client.execute_command

    def meddled(*words: Any, **options: Any) -> Any:
        if words[0] in ("DEL", "ZREM"):
            asyncio.run_coroutine_threadsafe(publisher.append([event(GONE)]), loop).result(20)
            ran.append(str(words[0]))
        return send(*words, **options)

    monkeypatch.setattr(client, "execute_command", meddled)
    await asyncio.to_thread(erase, [client], partial(database, servers.database_url), GONE)
    assert {"DEL", "ZREM"} <= set(ran)
    await publisher.append([event(GONE)])
    assert client.zrange(KEYS.runs, 0, -1) == client.keys(KEYS.run("*")) == [KEYS.run(GONE).encode()]


async def test_what_a_persister_has_in_its_hands_is_waited_for_and_erased(
    servers: Servers, client: redis.Redis, publisher: Publisher, archive: Store
) -> None:
    await publisher.append([event(GONE), event(STAYS), event(GONE)])
    slow = Consumer(client, 0, Settings(persister_name="slow"), lambda: 0)
    batch = slow.claim()
    assert batch
    entries = [decode(*delivery, 0) for delivery in batch.deliveries]
    waits = threading.Event()
    erased: list[Erased] = []
    other = persister_redis(servers.redis_url)

    def run() -> None:
        erased.append(erase([other], partial(database, servers.database_url), GONE, waits.set))

    erasing = threading.Thread(target=run)
    erasing.start()
    assert waits.wait(20)
    assert not erased
    assert archive.insert(entries) == []
    slow.settle(Settlement(batch, {}))
    erasing.join(20)
    other.close()
    assert erased == [Erased(entries=2, rows=2, dead_letters=0)]
    assert (traces(client, GONE), rows(servers, GONE), rows(servers, STAYS)) == ([], 0, 1)


async def test_one_that_never_lets_go_is_an_error_and_the_archive_stays_as_it_is(
    servers: Servers, client: redis.Redis, publisher: Publisher, persister: Loop
) -> None:
    await publisher.append([event(GONE)])
    while persister.step():
        pass
    await publisher.append([event(GONE)])
    assert Consumer(client, 0, Settings(persister_name="stuck"), lambda: 0).claim()
    connect = partial(database, servers.database_url)
    with pytest.raises(StillHeld, match="run the same again"):
        erase([client], connect, GONE, patience_s=0)
    assert rows(servers, GONE) == 1
    assert erase([client], connect, GONE, held_s=0) == Erased(0, 1, 0)


@pytest.mark.parametrize("name", ["p", "another"])
async def test_only_what_nobody_asked_to_be_gone_is_reported_as_lost(
    servers: Servers, client: redis.Redis, publisher: Publisher, archive: Store, name: str
) -> None:
    await publisher.append([event(GONE), event(STAYS), event(GONE), event(STAYS)])
    batch = Consumer(client, 0, Settings(persister_name="p"), lambda: 0).claim()
    assert batch
    with pytest.raises(StillHeld):
        erase([client], partial(database, servers.database_url), GONE, patience_s=0)
    client.xdel(KEYS.log, batch.deliveries[3][0])
    persister = Loop(client, archive, 0, Settings(persister_name=name, persister_claim_s=0.001))
    while persister.step():
        pass
    assert (rows(servers, GONE), rows(servers, STAYS)) == (0, 1)
    assert (persister.lost, client.xlen(KEYS.dead_letters)) == (1, 0)
    assert 0 < int(client.ttl(KEYS.erased)) <= ERASED_S


async def test_a_persister_that_died_does_not_bring_it_back(
    servers: Servers, client: redis.Redis, publisher: Publisher, persister: Loop
) -> None:
    await publisher.append([event(GONE), event(STAYS)])
    assert Consumer(client, 0, Settings(persister_name="p"), lambda: 0).claim()
    connect = partial(database, servers.database_url)
    assert erase([client], connect, GONE, held_s=0) == Erased(1, 0, 0)
    while persister.step():
        pass
    assert (traces(client, GONE), rows(servers, GONE), rows(servers, STAYS)) == ([], 0, 1)
    assert client.xlen(KEYS.dead_letters) == 0
