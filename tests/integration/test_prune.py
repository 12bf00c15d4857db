"""Retention: what is older goes, a batch at a time, and nothing that is younger."""

import time
from datetime import timedelta
from functools import partial

import pytest
import redis
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from persister.__main__ import main
from persister.prune import oldest_to_keep, parse_age, prune_rows
from relay.connect import database
from relay.events.registry import TABLES
from relay.stream.keys import EPOCH_MS, MAX_SHARDS, SEQUENCES, ShardKeys, event_id
from tests.conftest import Servers
from tests.sql import query, sql

DAY_MS = 86_400_000
NOW_MS = EPOCH_MS + 400 * DAY_MS


def insert(servers: Servers, ids: list[int]) -> None:
    with sql(servers.database_url) as cursor:
        cursor.executemany(
            "INSERT INTO rp_run_log_events (id, run_id, message, level, created_at) "
            "VALUES (%s, 'r', 'm', 'info', now())",
            [(id,) for id in ids],
        )


def remaining(servers: Servers) -> list[int]:
    return [id for (id,) in query(servers.database_url, "SELECT id FROM rp_run_log_events ORDER BY id")]


@pytest.mark.parametrize("batch", [1, 7, 5_000])
def test_rows_that_are_older_go_and_the_others_stay(servers: Servers, batch: int) -> None:
    before = oldest_to_keep(timedelta(days=90), NOW_MS / 1000)
    ids = [event_id((NOW_MS - age * DAY_MS, 3), 5) for age in range(130, 50, -1)]
    insert(servers, [*ids, before - 1, before])
    pruned = dict(prune_rows(partial(database, servers.database_url), before, batch))
    assert pruned == {table: 41 if table == "rp_run_log_events" else 0 for table in TABLES}
    assert remaining(servers) == sorted([before, *[id for id in ids if id > before]])
    assert sum(rows for _, rows in prune_rows(partial(database, servers.database_url), before, batch)) == 0


@given(
    st.integers(0, 1 << 40),
    st.integers(0, SEQUENCES - 1),
    st.integers(0, MAX_SHARDS - 1),
    st.integers(1, 10**6),
)
def test_no_event_that_is_young_enough_has_an_id_below_the_bound(
    since_ms: int, sequence: int, shard: int, hours: int
) -> None:
    made_ms = EPOCH_MS + since_ms
    bound = oldest_to_keep(timedelta(hours=hours), (made_ms + hours * 3_600_000) / 1000)
    assert bound <= event_id((made_ms, sequence), shard)


def test_the_command_says_what_went_also_of_the_dead_letters(
    servers: Servers, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", servers.redis_url)
    monkeypatch.setenv("DATABASE_URL", servers.database_url)
    now_ms = int(time.time() * 1000)
    insert(servers, [event_id((now_ms - age_h * 3_600_000, 0), 0) for age_h in (50, 49, 47)])
    dead_letters = ShardKeys(3).dead_letters  # the environment speaks of one shard
    for age_h in (50, 47):
        client.xadd(dead_letters, {"id": "1-1", "reason": "x"}, id=f"{now_ms - age_h * 3_600_000}-0")
    done = CliRunner().invoke(main, ["prune", "--older-than", "48h"])
    assert done.exit_code == 0, done.output
    assert "rp_run_log_events\t2\n" in done.output
    assert done.output.endswith("dead letters\t1\n")
    assert (len(remaining(servers)), client.xlen(dead_letters)) == (1, 1)
    assert CliRunner().invoke(main, ["dead-letters", "list"]).output.startswith("3/")


@pytest.mark.parametrize("text", ["90", "d", "0d", "-1d", "1w", "1.5d", "90 d", "99999999d"])
def test_an_age_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="90d or 36h"):
        parse_age(text)
    assert "90d or 36h" in CliRunner().invoke(main, ["prune", "--older-than", text]).output


def test_ages_are_days_or_hours() -> None:
    assert (parse_age("90d"), parse_age("36h")) == (timedelta(days=90), timedelta(hours=36))
