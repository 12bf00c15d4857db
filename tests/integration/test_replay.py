"""The past on real servers: run log and archive as one, with no hole in between."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import psycopg2
import pytest
import redis

from persister.loop import Loop
from persister.settings import Settings
from persister.store import Store
from relay import connect
from relay.connect import Database
from relay.errors import DatabaseUnavailable, Unavailable
from relay.history import (
    PAGE,
    History,
    get_latest_paper_generation_event,
    list_paper_generation_events,
)
from relay.link import SharedLink
from relay.stream.entry import NewEvent, Record
from relay.stream.keys import START, ShardKeys, created_at
from relay.stream.publish import Publisher
from relay.stream.replay import AT_ONCE as PAGES_AT_ONCE
from relay.stream.replay import Replay
from tests.conftest import Servers
from tests.factories import event
from tests.sql import sql
from tests.waiting import until

RUN = "run-1"
LOG = ShardKeys(0).run(RUN)
USER = 1


END = NewEvent(
    RUN, "run_finished", b'{"event_type":"run_finished","metadata":{"success":true,"message":null}}'
)


@pytest.fixture
async def replay(servers: Servers, database: Database) -> AsyncIterator[Replay]:
    client = connect.shared_link(servers.redis_url)
    yield Replay([client], History(database), AT_ONCE)
    await client.close()


@pytest.fixture
def persister(client: redis.Redis, archive: Store) -> Loop:
    return Loop(client, archive, 0, Settings(persister_name="p"))


@pytest.fixture
def client(servers: Servers) -> Iterator[redis.Redis]:
    opened = redis.Redis.from_url(servers.redis_url, protocol=2)
    yield opened
    opened.close()


AT_ONCE = 5
"""Events in a page."""


async def everything_after(replay: Replay, position: int) -> list[int] | None:
    """The ids of all that follows, page by page; None where the position can not be continued."""
    ids: list[int] = []
    while page := await replay.after(RUN, ids[-1] if ids else position, USER):
        ids += [record.id for record in page.records]
        if not page.more:
            return ids
    return None


async def initial(replay: Replay) -> tuple[int, dict[str, Any]]:
    snapshot = await replay.snapshot(RUN, USER)
    pieces = [piece async for piece in snapshot.lists]
    return snapshot.position, json.loads(b"{" + b"".join(pieces) + b"}")


async def test_what_is_only_in_the_run_log_is_replayed_from_it(publisher: Publisher, replay: Replay) -> None:
    ids = await publisher.append([event() for _ in range(12)])
    assert await everything_after(replay, ids[3]) == ids[4:]
    assert await everything_after(replay, ids[-1]) == []
    assert await everything_after(replay, START) == ids


@pytest.mark.parametrize(("missed", "pages"), [(AT_ONCE - 1, [4]), (AT_ONCE, [5, 0]), (AT_ONCE + 1, [5, 1])])
@pytest.mark.parametrize("archived", [False, True])
async def test_a_page_holds_so_many_events_and_no_more(
    publisher: Publisher,
    replay: Replay,
    persister: Loop,
    client: redis.Redis,
    missed: int,
    pages: list[int],
    archived: bool,
) -> None:
    position, *following = await publisher.append([event() for _ in range(1 + missed)])
    if archived:
        persister.step()
        client.delete(LOG)
    for length in pages:
        page = await replay.after(RUN, position, USER)
        assert page is not None
        assert [record.id for record in page.records] == following[:length]
        assert page.more == (length == AT_ONCE)
        position, following = following[length - 1] if length else position, following[length:]
    assert not following


async def test_an_entry_that_is_damaged_hides_none_behind_it(
    publisher: Publisher, replay: Replay, client: redis.Redis
) -> None:
    (first,) = await publisher.append([event()])
    client.xadd(LOG, {"some": "words"})
    ids = await publisher.append([event() for _ in range(12)])
    following = await everything_after(replay, first)
    assert following is not None
    assert [id for id in following if id in ids] == ids
    _, lists = await initial(replay)
    assert [shown["id"] for shown in lists["paper_generation_progress"]] == [first, *ids]


async def test_a_row_of_a_later_version_hides_none_behind_it(
    publisher: Publisher, replay: Replay, persister: Loop, client: redis.Redis, servers: Servers
) -> None:
    later = NewEvent(RUN, "gpu_shortage", b'{"event_type":"gpu_shortage","metadata":{}}')
    ids = await publisher.append([event(), later, *(event() for _ in range(12))])
    persister.step()
    client.delete(LOG)
    with sql(servers.database_url) as cursor:
        cursor.execute("UPDATE research_pipeline_run_events SET event_type = 'later'")
    assert await everything_after(replay, ids[0]) == ids[1:]


@pytest.mark.parametrize("kept", [0, 1, 7])
async def test_what_the_run_log_lost_is_replayed_from_the_archive(
    publisher: Publisher, replay: Replay, persister: Loop, client: redis.Redis, kept: int
) -> None:
    ids = await publisher.append([event() for _ in range(17)])
    persister.step()
    client.xtrim(LOG, maxlen=kept, approximate=False)
    late = await publisher.append([event() for _ in range(3)])
    for position in (START, ids[0], ids[8], ids[-1], late[0]):
        expected = [id for id in ids + late if id > position]
        assert await everything_after(replay, position) == expected
    if kept == 0:
        client.delete(LOG)
        assert await everything_after(replay, ids[2]) == ids[3:]


async def test_a_position_that_nobody_knows_is_not_continued(
    publisher: Publisher, replay: Replay, persister: Loop
) -> None:
    ids = await publisher.append([event(), event("run-2"), event()])
    persister.step()
    for foreign in (ids[0] - 1, ids[1], ids[2] + 1, 2**53 - 1):
        assert await replay.after(RUN, foreign, USER) is None


async def test_the_end_is_seen_also_from_behind_it(publisher: Publisher, replay: Replay) -> None:
    ids = await publisher.append([event(), END])
    before, behind = await replay.after(RUN, ids[0], USER), await replay.after(RUN, ids[1], USER)
    assert before is not None
    assert behind is not None
    assert [record.id for record in before.records] == [ids[1]]
    assert behind.records == []
    assert before.end == behind.end
    assert before.end is not None


@pytest.mark.parametrize("archived", [0, 4, 11])
@pytest.mark.parametrize("trimmed", [False, True])
async def test_a_snapshot_holds_all_that_happened_once(
    publisher: Publisher, replay: Replay, persister: Loop, client: redis.Redis, archived: int, trimmed: bool
) -> None:
    ids = await publisher.append([event() for _ in range(archived)]) if archived else []
    if archived:
        persister.step()
    if archived and trimmed:
        client.xtrim(LOG, maxlen=1, approximate=False)
    ids += await publisher.append([event() for _ in range(6)])
    position, lists = await initial(replay)
    assert position == ids[-1]
    assert (await replay.snapshot(RUN, USER, upto=ids[0])).newest == ids[-1]
    assert [shown["id"] for shown in lists["paper_generation_progress"]] == ids
    assert [lists[key] for key in ("stage_progress", "logs", "substage_events", "artifacts", "events")] == [
        []
    ] * 5


async def test_the_snapshot_of_a_run_without_events_is_empty_and_at_the_start(replay: Replay) -> None:
    position, lists = await initial(replay)
    assert (position, any(lists.values())) == (START, False)
    assert (await replay.snapshot(RUN, USER)).changes == {}


async def test_log_and_archive_show_an_event_alike(
    publisher: Publisher, replay: Replay, persister: Loop, client: redis.Redis
) -> None:
    await publisher.append([event(), END])
    _, logged = await initial(replay)
    persister.step()
    client.delete(LOG)
    _, archived = await initial(replay)
    assert logged == archived


async def test_a_run_that_sent_anything_has_begun_also_once_its_log_is_gone(
    publisher: Publisher, replay: Replay, persister: Loop, client: redis.Redis
) -> None:
    await publisher.append([event()])
    persister.step()
    for _ in range(2):
        assert (await replay.snapshot(RUN, USER)).changes == {"status": "running"}
        client.delete(LOG)


async def test_a_run_that_begins_and_ends_between_log_and_archive_is_over(
    publisher: Publisher, servers: Servers, database: Database, persister: Loop
) -> None:
    class Late(History):
        async def newest(self, run_id: str) -> int:
            await publisher.append([event(), END])
            persister.step()
            return await super().newest(run_id)

    client = connect.shared_link(servers.redis_url)
    snapshot = await Replay([client], Late(database), AT_ONCE).snapshot(RUN, USER)
    await client.close()
    assert snapshot.end is not None
    assert snapshot.position == snapshot.newest == snapshot.end.id


class Torn(Replay):
    """Something is appended to all runs after one was read and before the next one is."""

    publisher: Publisher

    def between(self, publisher: Publisher) -> "Torn":
        self.publisher, self._first_is_read = publisher, asyncio.Event()
        return self

    async def _logged_page(self, run_id: str, start: str, user_id: int) -> Sequence[Record]:
        if run_id != RUN:
            await self._first_is_read.wait()
            await self.publisher.append([event(), event("run-2")])
        found = await super()._logged_page(run_id, start, user_id)
        self._first_is_read.set()
        return found


async def test_a_page_of_many_runs_ends_where_all_of_them_were_read(
    publisher: Publisher, servers: Servers, database: Database
) -> None:
    ids = await publisher.append([event(), event("run-2")])
    link = connect.shared_link(servers.redis_url)
    torn = Torn([link], History(database), AT_ONCE).between(publisher)
    page = await torn.after_all([RUN, "run-2"], START, USER)
    assert page is not None
    assert [record.id for record in page.records] == ids
    await link.close()


async def test_an_archive_that_is_away_is_asked_only_where_it_is_needed(
    publisher: Publisher, servers: Servers
) -> None:
    ids = await publisher.append([event() for _ in range(3)])
    client = connect.shared_link(servers.redis_url)
    away = Database("postgresql://127.0.0.1:1/none", 1)
    replay = Replay([client], History(away), AT_ONCE)
    assert await everything_after(replay, ids[0]) == ids[1:]
    with pytest.raises(DatabaseUnavailable):
        await replay.after(RUN, ids[0] - 1, USER)
    away.close()
    await client.close()


async def test_a_log_that_is_away_is_no_end_of_the_events(database: Database) -> None:
    client = connect.shared_link("redis://127.0.0.1:1/0")
    with pytest.raises(Unavailable):
        await Replay([client], History(database), AT_ONCE).after(RUN, 5, USER)
    await client.close()


class Elsewhere(SharedLink):
    """A node that has given the shard away."""

    async def ask(self, *words: str | int) -> Any:
        raise redis.exceptions.ResponseError("MOVED 13907 127.0.0.1:6379")


async def test_a_log_that_is_at_another_node_is_not_taken_for_none(database: Database) -> None:
    link = Elsewhere(connect.tail_link("redis://127.0.0.1:1/0"))
    with pytest.raises(Unavailable):
        await Replay([link], History(database), AT_ONCE).top(0)


async def test_history_is_read_in_pages_however_long_it_is(
    publisher: Publisher, persister: Loop, database: Database
) -> None:
    ids: list[int] = []
    for _ in range(3):
        ids += await publisher.append([event() for _ in range(PAGE)])
        persister.step()
    history = History(database)
    pages = [page async for page in history.payloads("rp_paper_generation_events", RUN, ids[-1] + 1)]
    assert len(pages) == 3
    shown = [row["id"] for page in pages for row in json.loads(b"[" + page + b"]")]
    assert shown == ids
    assert await history.newest(RUN) == await history.highest() == ids[-1]


async def test_rows_come_back_as_named_tuples(
    publisher: Publisher, persister: Loop, servers: Servers
) -> None:
    sent = [event(), event()]
    ids = await publisher.append(sent)
    persister.step()
    connection = psycopg2.connect(servers.database_url)
    rows = list_paper_generation_events(connection, RUN)
    assert [row.id for row in rows] == ids
    assert [row.details for row in rows] == [json.loads(new.text)["details"] for new in sent]
    assert [row.created_at.isoformat(timespec="milliseconds") for row in rows] == [
        created_at(id) for id in ids
    ]
    assert get_latest_paper_generation_event(connection, RUN) == rows[-1]
    assert get_latest_paper_generation_event(connection, "run-2") is None
    connection.close()


async def test_a_storm_of_one_user_does_not_starve_another(replay: Replay, publisher: Publisher) -> None:
    """Fifty viewers of one user come back, each to another place of a long run, and one of another user."""
    ids = await publisher.append([event() for _ in range(100)])
    few = await publisher.append([event("run-2") for _ in range(6 * AT_ONCE)])
    read = 0

    async def come_back(position: int) -> None:
        nonlocal read
        while (page := await replay.after(RUN, position, USER)) and page.records:
            position, read = page.records[-1].id, read + 1

    storm = [asyncio.create_task(come_back(position)) for position in ids[:50]]
    await until(lambda: read > 0, "the storm to begin")
    before, got = read, [few[0]]
    while (page := await replay.after("run-2", got[-1], USER + 1)) and page.records:
        got += [record.id for record in page.records]
    meanwhile = read - before
    await asyncio.gather(*storm)
    assert got == few
    pages = 7
    assert meanwhile <= pages * (PAGES_AT_ONCE + 2)
    assert read > 10 * meanwhile / pages, "it was a storm"
