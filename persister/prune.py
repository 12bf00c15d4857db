"""Lets go of what is old: rows of all kinds, and dead letters. Ids are time, so age is a range of ids.

In batches, each a transaction of its own: none locks for long, and one that is stopped has done what it did.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import psycopg2
import redis
from psycopg2.extensions import connection as Connection  # noqa: N812

from relay.errors import DatabaseUnavailable
from relay.events.registry import TABLES
from relay.stream.keys import EPOCH_MS, START, ShardKeys, event_id

BATCH = 5_000
"""Rows in one transaction: some 20 ms, for which nobody but a repeat of the same waits."""

_DELETE = """
    WITH gone AS (
        DELETE FROM {table}
        WHERE id IN (
            SELECT id FROM {table} WHERE id > %(after)s AND id < %(before)s ORDER BY id LIMIT %(limit)s
        )
        RETURNING id
    )
    SELECT count(*), max(id) FROM gone
"""


def parse_age(text: str) -> timedelta:
    """`90d` or `36h`. Raises ValueError."""
    found = re.fullmatch(r"([1-9]\d{0,4})([dh])", text)
    if found is None:
        raise ValueError("write an age as days or hours, such as 90d or 36h")
    return timedelta(**{{"d": "days", "h": "hours"}[found[2]]: int(found[1])})


def oldest_to_keep(age: timedelta, now_s: float | None = None) -> int:
    """The lowest id that an event of that age or younger can have."""
    then_ms = int(((time.time() if now_s is None else now_s) - age.total_seconds()) * 1000)
    return event_id((max(then_ms, EPOCH_MS), 0), 0)


def prune_rows(
    connect: Callable[[], Connection], before: int, batch: int = BATCH
) -> Iterator[tuple[str, int]]:
    """Deletes rows with id < before; answers each table with how many. Raises DatabaseUnavailable."""
    connection = connect()
    connection.autocommit = True
    try:
        for table in TABLES:
            yield table, _prune_table(connection, table, before, batch)
    except psycopg2.Error as error:
        raise DatabaseUnavailable from error
    finally:
        connection.close()


def _prune_table(connection: Connection, table: str, before: int, batch: int) -> int:
    """From the oldest on, each batch above the one before: what is deleted is not looked at again."""
    total, after = 0, START - 1
    with connection.cursor() as cursor:
        while True:
            cursor.execute(_DELETE.format(table=table), {"after": after, "before": before, "limit": batch})
            ((count, newest),) = cursor.fetchall()
            if not count:
                return total
            total, after = total + count, newest


def prune_dead_letters(clients: Sequence[redis.Redis], age: timedelta) -> int:
    """Removes dead letters that were buried longer ago; answers how many. Raises redis errors.

    `clients`: of each shard.
    """
    oldest_ms = int((time.time() - age.total_seconds()) * 1000)
    return sum(
        int(client.xtrim(ShardKeys(shard).dead_letters, minid=f"{oldest_ms}-0", approximate=False))
        for shard, client in enumerate(clients)
    )
