"""The write path on a real server: what is answered is stored, what fails says how."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from relay import connect, embedded
from relay.connect import Database
from relay.errors import DatabaseUnavailable, KeyReused, NotStored, OutcomeUnknown
from relay.events.kinds import PaperGenerationProgress
from relay.history import History
from relay.processes import running
from relay.stream import functions, lane
from relay.stream.entry import NewEvent
from relay.stream.keys import GROUP, ShardKeys, StreamId, created_at, event_id, shard_of_event, shard_of_run
from relay.stream.lane import CALL_EVENTS, ENOUGH, LINKS, WORTH_A_CALL
from relay.stream.publish import Publisher
from tests.conftest import Servers
from tests.integration.conftest import publisher_to
from tests.waiting import until

LOG = ShardKeys(0).log


def event(run_id: str = "run-1", text: str = '{"n":1}') -> NewEvent:
    return NewEvent(run_id, PaperGenerationProgress.kind, text.encode())


@pytest.fixture
def client(servers: Servers) -> Iterator[redis.Redis]:
    opened = redis.Redis.from_url(servers.redis_url, protocol=2)
    yield opened
    opened.close()


def logged(client: redis.Redis, key: str = LOG) -> list[int]:
    found: Any = client.xrange(key)
    return [event_id(StreamId.parse(id), 0) for id, _ in found]


async def test_the_first_event_makes_library_log_and_group(publisher: Publisher, client: redis.Redis) -> None:
    client.function_flush()
    (id,) = await publisher.append([event()])
    assert logged(client) == logged(client, ShardKeys(0).run("run-1")) == [id]
    groups: Any = client.xinfo_groups(LOG)
    assert [group["name"] for group in groups] == [GROUP.encode()]


async def test_requests_at_the_same_time_share_calls_and_keep_their_own_ids(
    publisher: Publisher, client: redis.Redis
) -> None:
    await publisher.append([event()])
    client.config_resetstat()
    sizes = [number % 7 + 1 for number in range(200)]
    answers = await asyncio.gather(
        *(publisher.append([event(f"run-{number}")] * size) for number, size in enumerate(sizes))
    )
    assert [len(ids) for ids in answers] == sizes
    for number, ids in enumerate(answers):
        assert logged(client, ShardKeys(0).run(f"run-{number}"))[-len(ids) :] == ids
    assert len(logged(client)) == sum(sizes) + 1
    stats: Any = client.info("commandstats")
    assert stats["cmdstat_fcall"]["calls"] <= LINKS + 1 + sum(sizes) // CALL_EVENTS


@pytest.mark.parametrize(("events", "calls"), [(1, 2), (WORTH_A_CALL, 3)])
async def test_few_that_come_while_a_call_is_under_way_leave_together_once_it_is_answered(
    publisher: Publisher, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, events: int, calls: int
) -> None:
    monkeypatch.setattr(lane, "PATIENCE_S", 60)
    await publisher.append([event()])
    client.config_resetstat()
    link, held = publisher._lanes[0]._idle[-1], []
    ask = link.ask
    with monkeypatch.context() as slow:
        slow.setattr(link, "ask", lambda *words: held.append(words))
        first = asyncio.create_task(publisher.append([event()]))
        await until(lambda: bool(held), "the call to be under way")
    appended = []
    for count in (events, 1):
        appended.append(asyncio.create_task(publisher.append([event()] * count)))
        for _ in range(3):  # it is sent, where it leaves at once
            await asyncio.sleep(0)
    ask(*held[0])
    await asyncio.gather(first, *appended)
    stats: Any = client.info("commandstats")
    assert stats["cmdstat_fcall"]["calls"] == calls


async def test_many_requests_leave_while_the_event_loop_takes_in_others_and_fewer_once_it_has(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publisher.append([event()])
    link, calls, settled = publisher._lanes[0]._idle[-1], [], list[Any]()
    ask = link.ask

    def noted(*words: Any) -> None:
        calls.append(len(settled))
        ask(*words)

    monkeypatch.setattr(link, "ask", noted)
    for _ in range(ENOUGH - 1):
        publisher.submit([event()], None, settled.append)
    assert calls == []
    publisher.submit([event()], None, settled.append)
    assert len(calls) == 1
    publisher.submit([event()], None, settled.append)
    await until(lambda: len(settled) == ENOUGH + 1, "all to be stored")
    first, *others = settled
    assert others[: ENOUGH - 1] == list(range(first + 1, first + ENOUGH)), "those of one call"


async def test_the_same_key_and_events_are_stored_once_however_many_send_them(
    publisher: Publisher, client: redis.Redis
) -> None:
    answers = await asyncio.gather(*(publisher.append([event(), event()], "key") for _ in range(100)))
    assert len({tuple(ids) for ids in answers}) == 1
    assert logged(client) == answers[0]
    with pytest.raises(KeyReused):
        await publisher.append([event(text='{"n":2}')], "key")


async def test_ids_go_on_above_what_is_archived_when_the_log_is_lost(
    publisher: Publisher, client: redis.Redis, database: Database
) -> None:
    now: Any = client.time()
    archived = event_id(StreamId((now[0] + 3600) * 1000, 5), 0)
    insert = (
        "INSERT INTO rp_paper_generation_events (id, run_id, step, progress, step_progress, created_at)"
        " VALUES (%(id)s, 'run-1', 's', 0, 0, now()) RETURNING id"
    )
    await database.rows(insert, {"id": archived})
    (id,) = await publisher.append([event()])
    assert id > archived


async def test_ids_go_on_above_what_this_worker_gave_out_when_the_log_is_lost(
    publisher: Publisher, client: redis.Redis
) -> None:
    now: Any = client.time()
    await publisher.append([event()])
    client.execute_command("XSETID", LOG, str(StreamId((now[0] + 3600) * 1000, 5)))  # type: ignore[no-untyped-call]
    *_, highest = await publisher.append([event()] * 3)
    client.flushall()
    (id,) = await publisher.append([event()])
    assert id > highest


async def test_ids_of_a_worker_grow_also_when_somebody_else_makes_the_lost_log(
    publisher: Publisher, client: redis.Redis
) -> None:
    now: Any = client.time()
    await publisher.append([event()])
    client.execute_command("XSETID", LOG, str(StreamId((now[0] + 3600) * 1000, 5)))  # type: ignore[no-untyped-call]
    *_, highest = await publisher.append([event()] * 3)
    client.delete(LOG, ShardKeys(0).run("run-1"))
    client.xgroup_create(LOG, GROUP, "0", mkstream=True)
    (id,) = await publisher.append([event()])
    assert id > highest


async def test_a_log_is_not_made_while_nobody_knows_which_ids_are_taken(servers: Servers) -> None:
    async def nobody_knows() -> int:
        raise DatabaseUnavailable

    lonely = publisher_to(servers.redis_url, nobody_knows)
    with pytest.raises(NotStored):
        await lonely.append([event()])
    await lonely.close()


async def test_runs_spread_over_shards_and_a_batch_keeps_its_order(
    servers: Servers, database: Database
) -> None:
    sharded = publisher_to(servers.redis_url, History(database).highest, shards=4)
    events = [event(f"run-{number}") for number in range(20)] * 2
    ids = await sharded.append(events, "key")
    assert [shard_of_event(id) for id in ids] == [shard_of_run(sent.run_id, 4) for sent in events]
    assert len(set(ids)) == len(ids)
    assert all(one < other for one, other in zip(ids[:20], ids[20:], strict=True))
    assert await sharded.append(events, "key") == ids
    await sharded.close()


async def test_created_at_is_the_moment_of_the_append(publisher: Publisher, client: redis.Redis) -> None:
    (id,) = await publisher.append([event()])
    now: Any = client.time()
    seconds = datetime.fromisoformat(created_at(id)).timestamp()
    assert abs(now[0] + now[1] / 1e6 - seconds) < 5


class Breakable(NamedTuple):
    """A Valkey of one's own, and a publisher that writes to it."""

    pid: int
    client: redis.Redis
    publisher: Publisher


@pytest.fixture
async def breakable(tmp_path: Path) -> AsyncIterator[Breakable]:
    part, url = embedded.valkey(tmp_path)

    async def floor() -> int:
        return 0

    with running(part) as process:
        made = Publisher(lambda _: connect.append_link(url), floor, shards=1, deadline_s=20, remember_ms=1000)
        client = redis.Redis.from_url(url, protocol=2)
        yield Breakable(process.pid, client, made)
        await made.close()
        client.close()


async def test_a_server_that_is_gone_is_certain_not_to_have_stored(breakable: Breakable) -> None:
    await breakable.publisher.append([event()])
    os.kill(breakable.pid, signal.SIGKILL)
    with pytest.raises((NotStored, OutcomeUnknown)):
        await breakable.publisher.append([event()])
    with pytest.raises(NotStored):
        await breakable.publisher.append([event()])


async def test_a_server_that_does_not_answer_leaves_the_outcome_open(
    breakable: Breakable, monkeypatch: pytest.MonkeyPatch
) -> None:
    await breakable.publisher.append([event()])
    os.kill(breakable.pid, signal.SIGSTOP)
    try:
        with monkeypatch.context() as hurry:
            hurry.setattr(breakable.publisher._lanes[0], "_deadline_s", 0.5)
            waiting = []
            for _ in range(3):
                waiting.append(asyncio.create_task(breakable.publisher.append([event()])))
                await asyncio.sleep(0)
            with pytest.raises(OutcomeUnknown):
                await waiting[0]
            for behind in waiting[1:]:  # on a connection that was not made in time, and on none
                with pytest.raises(NotStored):
                    await behind
    finally:
        os.kill(breakable.pid, signal.SIGCONT)
    await breakable.publisher.append([event()])
    assert len(logged(breakable.client)) == 3, "the call that was not answered ran once, and once only"


async def test_a_cut_connection_is_not_repeated_by_itself(breakable: Breakable) -> None:
    await breakable.publisher.append([event()])
    breakable.client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises((NotStored, OutcomeUnknown)):
        await breakable.publisher.append([event()])
    await breakable.publisher.append([event()])
    assert len(logged(breakable.client)) == 2


async def test_nobody_waits_long_for_a_connection_that_does_not_answer(
    breakable: Breakable, monkeypatch: pytest.MonkeyPatch
) -> None:
    await breakable.publisher.append([event()])
    silent, asked = breakable.publisher._lanes[0]._idle[-1], []
    with monkeypatch.context() as mute:
        mute.setattr(silent, "ask", lambda packed, done, within_s: asked.append(done))
        lost = asyncio.create_task(breakable.publisher.append([event()]))
        await until(lambda: bool(asked), "the silent connection to be asked")
        for _ in range(3):  # also where a clock runs that was set for others
            async with asyncio.timeout(10):
                await breakable.publisher.append([event()])
    asked[0](redis.exceptions.ConnectionError())
    with pytest.raises(OutcomeUnknown):
        await lost
    assert len(logged(breakable.client)) == 4


async def test_a_connection_that_is_known_to_be_lost_costs_nobody_an_answer(breakable: Breakable) -> None:
    await breakable.publisher.append([event()])
    breakable.client.client_kill_filter(_type="normal", skipme=True)
    links = breakable.publisher._lanes[0]._links
    await until(lambda: not any(link.connected for link in links), "the loss to arrive")
    await breakable.publisher.append([event()])
    assert len(logged(breakable.client)) == 2


async def test_what_was_submitted_before_the_end_is_answered(breakable: Breakable) -> None:
    await breakable.publisher.append([event()])
    last = asyncio.gather(*(breakable.publisher.append([event()]) for _ in range(5)))
    await asyncio.sleep(0)
    await breakable.publisher.close()
    assert len(await last) == 5
    assert len(logged(breakable.client)) == 6


async def test_a_full_server_refuses_and_takes_again_when_there_is_room(breakable: Breakable) -> None:
    await breakable.publisher.append([event()])
    breakable.client.config_set("maxmemory", "1")
    with pytest.raises(NotStored):
        await breakable.publisher.append([event()])
    breakable.client.config_set("maxmemory", "0")
    await breakable.publisher.append([event()])
    assert len(logged(breakable.client)) == 2


async def test_why_appends_fail_is_logged_once_and_known_until_one_would_succeed(
    breakable: Breakable, caplog: pytest.LogCaptureFixture
) -> None:
    publisher, replica = breakable.publisher, "Redis is a replica, which only lets read"
    assert (await publisher.problem(), publisher.ever_stored) == (None, True), "as it opened the log"
    breakable.client.replicaof("127.0.0.1", "1")
    for _ in range(3):
        with pytest.raises(NotStored):
            await publisher.append([event()])
    assert (await publisher.problem(), publisher.ever_stored) == (replica, True)
    breakable.client.replicaof("NO", "ONE")
    assert (publisher.reason, await publisher.problem()) == (replica, None)
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said == [f"shard 0: events can not be stored: {replica}"]
    os.kill(breakable.pid, signal.SIGKILL)
    with pytest.raises((NotStored, OutcomeUnknown)):
        await publisher.append([event()])
    assert publisher.reason == "Redis does not answer"


async def test_a_library_that_is_gone_is_loaded_again(breakable: Breakable) -> None:
    await breakable.publisher.append([event()])
    breakable.client.function_flush()
    await breakable.publisher.append([event()])
    libraries: Any = breakable.client.function_list()
    assert [functions.VERSION in str(library) for library in libraries] == [True]


def waiting(servers: Servers, database: Database, asked: str) -> Publisher:
    """A publisher that wants events in so many files."""
    return Publisher(
        lambda _: connect.append_link(servers.redis_url, asked),
        History(database).highest,
        shards=1,
        deadline_s=2.8,
        remember_ms=60_000,
    )


async def test_an_event_counts_once_the_servers_own_file_holds_it(
    servers: Servers, database: Database, client: redis.Redis
) -> None:
    publisher = waiting(servers, database, "1,0")
    assert await publisher.append([event()]) == logged(client)
    await publisher.close()


async def test_an_event_does_not_count_where_a_replica_should_hold_it_and_there_is_none(
    servers: Servers, database: Database
) -> None:
    publisher = waiting(servers, database, "1,1")
    with pytest.raises(OutcomeUnknown):
        await publisher.append([event()])
    await publisher.close()
