"""How far everybody is behind, asked of both servers."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from relay import durability, lag
from relay.connect import shared_link
from relay.link import SharedLink
from relay.stream import functions
from relay.stream.keys import GROUP, ShardKeys, StreamId

KEYS = ShardKeys(0)


@pytest.fixture
async def link(store: redis.Redis) -> AsyncIterator[SharedLink]:
    options = store.get_connection_kwargs()
    made = shared_link(f"redis://:{options.get('password') or ''}@{options['host']}:{options['port']}/0")
    yield made
    await made.close()


def log_of(store: redis.Redis, *ages_s: int) -> list[bytes]:
    """A log with its group, of entries that old."""
    store.xgroup_create(KEYS.log, GROUP, "0", mkstream=True, entries_read=0)
    now: Any = store.time()
    return [store.xadd(KEYS.log, {"e": "{}"}, id=f"{(now[0] - age) * 1000}-0") for age in ages_s]  # type: ignore[misc]


def claim(store: redis.Redis, ids: list[bytes], position: bytes = b"0-0") -> None:
    """A persister takes these, which follow the position."""
    store.function_load(functions.LIBRARY, replace=True)
    words = [GROUP, "p", position, 0, ids[-1], len(ids)]
    answer: Any = store.fcall(functions.CLAIM, 3, KEYS.log, KEYS.claims, KEYS.erased, *words)
    assert answer == [position, 1]


async def test_where_there_is_no_log_nobody_is_behind(store: redis.Redis, link: SharedLink) -> None:
    assert await lag.look(link, 0) is None
    store.xadd(KEYS.log, {"e": "{}"})
    assert await lag.look(link, 0) is None, "and where there is no group"


async def test_the_oldest_event_that_is_not_archived_is_what_counts(
    store: redis.Redis, link: SharedLink
) -> None:
    ids = log_of(store, 300, 200, 100)
    store.xadd(KEYS.dead_letters, {"reason": "x"})
    seen = await lag.look(link, 0)
    assert seen is not None
    assert (seen.entries, seen.pending, seen.waiting, seen.dead_letters) == (3, 0, 3, 1)
    assert seen.top == StreamId.parse(ids[-1])
    assert 99 <= seen.newest_age_s < 110
    assert 299 <= seen.oldest_age_s < 310, "nobody has taken it"

    claim(store, ids[:1])
    claim(store, ids[1:2], ids[0])
    store.hdel(KEYS.claims, "0-0")
    seen = await lag.look(link, 0)
    assert seen is not None
    assert (seen.pending, seen.waiting) == (1, 1)
    assert 199 <= seen.oldest_age_s < 210, "a persister has it"

    claim(store, ids[2:], ids[1])
    store.delete(KEYS.claims)
    seen = await lag.look(link, 0)
    assert seen is not None
    assert (seen.pending, seen.waiting, seen.oldest_age_s) == (0, 0, 0.0)


async def test_what_is_trimmed_makes_nobody_look_behind(store: redis.Redis, link: SharedLink) -> None:
    ids = log_of(store, 3, 2, 1)
    claim(store, ids[:2])
    store.delete(KEYS.claims)
    store.xtrim(KEYS.log, minid=ids[2].decode(), approximate=False)
    seen = await lag.look(link, 0)
    assert seen is not None
    assert (seen.entries, seen.waiting) == (1, 1)


async def test_how_the_log_is_kept_is_what_the_server_says(store: redis.Redis, link: SharedLink) -> None:
    settings: Any = store.config_get("append*")
    kept = await durability.in_force([link], "1,0")
    assert kept["appendonly"] == settings["appendonly"]
    assert kept["appendfsync"] == (settings["appendfsync"] if settings["appendonly"] == "yes" else "no file")
    assert kept["waitaof"] == "1,0"


async def test_where_we_may_not_ask_for_settings_the_rest_is_still_told(
    store: redis.Redis, link: SharedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Any = store.config_get("appendonly")
    options = store.get_connection_kwargs()
    store.execute_command("ACL", "SETUSER", "few", "reset", "on", ">few", "+info", "+ping")  # type: ignore[no-untyped-call]
    few = shared_link(f"redis://few:few@{options['host']}:{options['port']}/0")
    try:
        kept = await durability.in_force([few], None)
    finally:
        await few.close()
        store.execute_command("ACL", "DELUSER", "few")  # type: ignore[no-untyped-call]
    assert kept == {"appendonly": settings["appendonly"], "appendfsync": "unknown", "waitaof": None}
