"""The persister on real servers: all that is in the log comes into the archive once, or says why not."""

import contextlib
import json
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.exceptions
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from persister.consumer import Batch, Consumer
from persister.dead_letters import DeadLetters
from persister.loop import Loop
from persister.settings import Settings
from persister.store import Store
from relay.connect import database, persister_redis
from relay.errors import DatabaseUnavailable
from relay.spans import Spans
from relay.stream import functions
from relay.stream.entry import FIELD, NewEvent, head_of, traced
from relay.stream.keys import GROUP, ShardKeys, StreamId, stream_id
from relay.stream.publish import Publisher
from tests.conftest import Servers
from tests.factories import entry, event
from tests.integration.draining import drain, pending
from tests.sql import rows, sql
from tests.waiting import wait_until

KEYS = ShardKeys(0)
ACL = Path(__file__).parents[2] / "deploy/redis/users.acl"


def nothing_archived() -> int:
    return 0


Make = Callable[..., Loop]


@pytest.fixture
def persister(servers: Servers, client: redis.Redis, archive: Store) -> Make:
    """Makes persisters of a name; by default they share one connection to each server."""

    def make(name: str = "p", use: Store | None = None, **settings: Any) -> Loop:
        chosen = Settings(persister_name=name, **settings)
        return Loop(client, use or archive, 0, chosen)

    return make


def claimed(client: redis.Redis, name: str, **settings: Any) -> Batch:
    """What a persister claims that dies then."""
    batch = Consumer(client, 0, Settings(persister_name=name, **settings), nothing_archived).claim()
    assert batch
    return batch


async def test_events_come_into_the_archive_as_they_are(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    sent = [event(substep="naïve ✓ \u2028", progress=0.1), event(substep=None, details=None)]
    ids = await publisher.append(sent)
    assert drain(persister()) == 2
    found = rows(servers.database_url, "id, run_id, step, substep, progress, step_progress, details")
    expected = [json.loads(new.text) for new in sent]
    assert [row[0] for row in found] == ids
    assert [dict(zip(expected[0], row[2:], strict=True)) for row in found] == expected
    assert pending(client) == 0
    null_details = rows(servers.database_url, "details IS NULL")
    assert null_details == [False, True], "a missing object is no row value, not the JSON word null"


async def test_the_end_of_a_run_gives_the_run_its_status(
    servers: Servers, publisher: Publisher, persister: Make
) -> None:
    with sql(servers.database_url) as cursor:
        cursor.execute("INSERT INTO conversations (id, user_id) VALUES (1, 1)")
        cursor.execute(
            "INSERT INTO research_pipeline_runs (run_id, conversation_id) VALUES ('run-1', 1), ('run-2', 1)"
        )
    end = '{"event_type":"run_finished","metadata":{"success":%s,"message":"why"}}'
    ends = [
        NewEvent(run, "run_finished", (end % success).encode())
        for run, success in (("run-1", "false"), ("run-2", "true"), ("run-1", "true"))
    ]
    await publisher.append(ends)
    drain(persister())
    found = rows(
        servers.database_url,
        "run_id, status, error_message, finished_at IS NOT NULL",
        "(SELECT *, run_id AS id FROM research_pipeline_runs) AS run",
    )
    assert found == [("run-1", "failed", "why", True), ("run-2", "completed", None, True)], (
        "the first end counts"
    )
    assert len(rows(servers.database_url, table="research_pipeline_run_events")) == 3


class DyingStore(Store):
    """A store whose process dies right after it committed."""

    def insert(self, entries: Any, *, by_copy: bool = True) -> Any:
        super().insert(entries, by_copy=by_copy)
        raise SystemExit


async def test_a_persister_that_died_after_the_commit_doubles_nothing(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    ids = await publisher.append([event() for _ in range(10)])
    dying = DyingStore(lambda: database(servers.database_url))
    with pytest.raises(SystemExit):
        drain(persister(use=dying))
    dying.close()
    assert (rows(servers.database_url), pending(client)) == (ids, 10)
    assert drain(persister()) == 10, "its own backlog comes first"
    assert (rows(servers.database_url), pending(client)) == (ids, 0)


async def test_a_stop_ends_a_backlog_after_the_batch_at_hand(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    ids = await publisher.append([event() for _ in range(6)])
    loop = persister(persister_batch=2)
    loop.stop()
    assert loop.step() == 2
    loop.run()
    assert (rows(servers.database_url), pending(client)) == (ids[:2], 0)


async def test_a_backlog_does_not_keep_a_persister_from_what_a_silent_peer_left(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    ids = await publisher.append([event() for _ in range(8)])
    claimed(client, "silent", persister_batch=2)
    loop = persister(persister_batch=2, persister_claim_s=0.001)
    for _ in range(3):
        loop.step()
    assert ids[0] in rows(servers.database_url)


async def test_what_a_silent_peer_left_is_taken_over(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    ids = await publisher.append([event() for _ in range(10)])
    assert len(claimed(client, "silent").deliveries) == 10
    patient, eager = persister("patient"), persister("eager", persister_claim_s=0.01)
    assert drain(patient) == 0, "the peer may still be at work"
    wait_until(lambda: drain(eager), "the abandoned entries")
    assert (rows(servers.database_url), pending(client)) == (ids, 0)


async def test_several_persisters_share_the_work(servers: Servers, publisher: Publisher) -> None:
    loops = [
        Loop(
            persister_redis(servers.redis_url),
            Store(lambda: database(servers.database_url)),
            0,
            Settings(persister_name=f"p{number}", persister_batch=20),
        )
        for number in range(3)
    ]
    threads = [threading.Thread(target=loop.run) for loop in loops]
    for thread in threads:
        thread.start()
    ids = []
    for _ in range(50):
        ids += await publisher.append([event(f"run-{number}") for number in range(20)])
    wait_until(lambda: len(rows(servers.database_url)) == len(ids), "all rows")
    client = persister_redis(servers.redis_url)
    wait_until(lambda: pending(client) == 0, "all settlements")
    for loop in loops:
        loop.stop()
    for thread in threads:
        thread.join()
    client.close()
    assert rows(servers.database_url) == ids
    assert sum(loop.figures.rows for loop in loops) == len(ids), "each batch was stored by one of them"
    assert min(loop.figures.rows for loop in loops) > 0


async def test_while_the_database_is_away_nothing_is_settled(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    def away() -> Any:
        raise DatabaseUnavailable

    ids = await publisher.append([event() for _ in range(5)])
    with pytest.raises(DatabaseUnavailable):
        drain(persister(use=Store(away)))
    assert pending(client) == 5
    drain(persister())
    assert rows(servers.database_url) == ids


async def test_functions_that_a_persister_may_not_load_are_waited_for_and_called_so(
    servers: Servers, publisher: Publisher, archive: Store, client: redis.Redis
) -> None:
    ids = await publisher.append([event()])
    (rules,) = (line for line in ACL.read_text().splitlines() if line.startswith("user relay_persister "))
    client.execute_command("ACL", "SETUSER", *rules.split()[1:])  # type: ignore[no-untyped-call]
    client.function_flush()
    url = f"redis://relay_persister:PERSISTER_PASSWORD@{servers.redis_url.rpartition('@')[2]}"
    with contextlib.closing(persister_redis(url)) as bounded:
        loop = Loop(bounded, archive, 0, Settings(persister_name="p"))
        thread = threading.Thread(target=loop.run)
        thread.start()
        expected = "Redis lacks this version's functions, which this user may not load; run `relay migrate`"
        wait_until(lambda: loop.figures.trouble == expected, "the persister to say so")
        client.function_load(functions.LIBRARY)
        wait_until(lambda: rows(servers.database_url) == ids, "the event")
        loop.stop()
        thread.join()
    client.acl_deluser("relay_persister")
    assert loop.figures.retries["redis"] > 0 == loop.figures.retries["postgres"]


async def test_a_schema_that_is_not_there_yet_is_waited_for(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    ids = await publisher.append([event()])
    with sql(servers.database_url) as cursor:
        cursor.execute("ALTER TABLE rp_paper_generation_events RENAME TO elsewhere")
        with pytest.raises(DatabaseUnavailable):
            drain(persister())
        cursor.execute("ALTER TABLE elsewhere RENAME TO rp_paper_generation_events")
    drain(persister())
    assert rows(servers.database_url) == ids


BAD = [
    (b'{"step":"a\\u0000b","progress":0,"step_progress":0}', "NUL"),
    (b'{"step":null,"progress":0,"step_progress":0}', "a missing value"),
    (b'{"step":"s","progress":1e999,"step_progress":0}', "a number out of range"),
    (b'{"step":"s", not json at all}', "no JSON"),
]


@pytest.mark.parametrize(("text", "what"), BAD, ids=[what for _, what in BAD])
async def test_a_bad_event_goes_to_the_dead_letters_and_all_others_to_the_archive(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis, text: bytes, what: str
) -> None:
    events = [event() for _ in range(99)]
    ids = await publisher.append(
        [*events[:70], NewEvent("run-1", "paper_generation_progress", text), *events[70:]]
    )
    assert drain(persister()) == 100
    assert rows(servers.database_url) == ids[:70] + ids[71:]
    (letter,) = DeadLetters([client])
    assert letter.entry is not None
    assert (letter.entry.id, letter.entry.text, bool(letter.reason)) == (ids[70], text, True)
    assert text.decode() not in letter.reason
    as_it_is = what in ("no JSON", "a number out of range")
    assert letter.shown()["event"] == (text.decode() if as_it_is else json.loads(text))
    assert pending(client) == 0


async def test_what_is_no_event_at_all_goes_to_the_dead_letters(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    await publisher.append([event(), NewEvent("run-1", "from_the_future", b'{"n":1}')])
    client.xadd(KEYS.log, {"some": "thing"})
    client.xadd(KEYS.log, {FIELD: head_of("run-1", "run_log") + event().text})
    client.xadd(KEYS.log, entry(event('run-1","id":"1')))
    drain(persister())
    assert [letter.reason for letter in DeadLetters([client])] == [
        "its kind is not known to this version",
        "it does not have the field of an event",
        "it is damaged: its checksum does not fit",
        "it is damaged: it does not begin with a run and a kind",
    ]
    assert (len(rows(servers.database_url)), pending(client)) == (1, 0)


async def test_an_entry_that_was_deleted_under_a_persister_is_reported_and_let_go(
    publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    await publisher.append([event()])
    client.xdel(KEYS.log, claimed(client, "p").deliveries[0][0])
    loop = persister("p")
    drain(loop)
    assert (loop.lost, pending(client)) == (1, 0)


async def test_a_persister_finds_the_log_where_it_was_set_back_to(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    """As its operator does where the archive came back from an older copy."""
    ids = await publisher.append([event() for _ in range(10)])
    loop = persister()
    drain(loop)
    with sql(servers.database_url) as cursor:
        cursor.execute("DELETE FROM rp_paper_generation_events")
    client.xgroup_setid(KEYS.log, GROUP, "0")
    assert drain(loop) == 10, "it looks again when there was no news"
    assert (rows(servers.database_url), pending(client)) == (ids, 0)


async def test_a_dead_letter_is_requeued_under_its_own_id_and_in_its_trace(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis, archive: Store
) -> None:
    bad = NewEvent("run-1", "paper_generation_progress", b'{"step":null,"progress":0,"step_progress":0}')
    ids = await publisher.append([traced(bad, f"00-{'1' * 32}-{'2' * 16}-01")])
    drain(persister())
    letters = DeadLetters([client])
    (letter,) = letters
    spans, exporter = Spans("persister", "http://127.0.0.1:9"), InMemorySpanExporter()
    with sql(servers.database_url) as cursor, spans.exporting(exporter):
        assert letters.requeue(letter, archive, spans), "the cause is still there"
        cursor.execute("ALTER TABLE rp_paper_generation_events ALTER step DROP NOT NULL")
        assert letters.requeue(letter, archive, spans) is None
        assert (rows(servers.database_url), list(letters)) == (ids, [])
        cursor.execute("DELETE FROM rp_paper_generation_events")
        cursor.execute("ALTER TABLE rp_paper_generation_events ALTER step SET NOT NULL")
    outcomes = [(span.context.trace_id, span.status.is_ok) for span in exporter.get_finished_spans()]
    assert outcomes == [(int("1" * 32, 16), False), (int("1" * 32, 16), True)]


async def test_a_lost_log_is_drained_again_from_its_beginning(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    first = await publisher.append([event()])
    loop = persister()
    drain(loop)
    client.flushall()
    second = await publisher.append([event()])
    drain(loop)
    assert rows(servers.database_url) == first + second


async def test_a_log_that_a_persister_makes_begins_above_the_archive(
    servers: Servers, publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    now: Any = client.time()
    await publisher.append([event()])
    client.execute_command("XSETID", KEYS.log, f"{(now[0] + 3600) * 1000}-0")  # type: ignore[no-untyped-call]
    archived = await publisher.append([event()])
    loop = persister()
    drain(loop)
    client.flushall()
    assert drain(loop) == 0
    info: Any = client.xinfo_stream(KEYS.log)
    assert StreamId.parse(info["last-generated-id"]) > stream_id(archived[-1])


async def test_only_what_is_archived_and_old_is_trimmed(
    publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    await publisher.append([event() for _ in range(500)])
    for _ in range(2):
        claimed(client, "slow", persister_batch=100)
    any_of_them = Consumer(client, 0, Settings(), nothing_archived)
    assert any_of_them.trim(timedelta(0)) == 0, "the first ones are claimed"
    drain(persister("slow"))
    assert any_of_them.trim(timedelta(hours=1)) == 0, "they are in the retention window"
    assert any_of_them.trim(timedelta(seconds=-1)) > 0


async def test_a_run_log_that_ends_with_a_dead_letter_gets_its_expiry(
    publisher: Publisher, persister: Make, client: redis.Redis
) -> None:
    await publisher.append([event("bad"), event("bad", details={"text": "a\x00b"}), event("new")])
    await publisher.append([NewEvent("new", "of_a_later_version", b'{"a":1}')])
    await publisher.append([event("damaged"), NewEvent("damaged", "paper_generation_progress", b"no object")])
    client.xadd(KEYS.log, {FIELD: "/ is a name that no run has"})
    drain(persister())
    assert len(list(DeadLetters([client]))) == 4
    assert pending(client) == 0
    assert min(client.pttl(KEYS.run(run_id)) for run_id in ("bad", "new", "damaged")) > 0
