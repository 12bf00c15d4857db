"""Takes a run out of everything that the relay keeps: both logs, the archive, the dead letters.

The order is what makes it final. First the logs, so that no persister is given any of it any more. Then
persisters finish what they were given before. Only then the archive and the dead letters, which by now have
got all that they will ever get. Stopped in between, the same again completes it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg2
import redis
from psycopg2.extensions import connection as Connection  # noqa: N812

from relay.errors import DatabaseUnavailable, Unavailable
from relay.events.registry import TABLES
from relay.stream.entry import FIELD, run_of
from relay.stream.group import claims, last_delivered
from relay.stream.keys import ERASURE, ShardKeys, StreamId

PAGE = 200
"""Entries in one read: an event may have 256 kB."""

HELD_S = 400.0
"""How long a persister may hold what it was given: it claims two batches ahead, and ends itself where one
step takes longer than RELAY_PERSISTER_STUCK_S, by default two minutes. So three times that, and
what it takes until it notices."""

ERASED_S = 86_400
"""How long a persister can tell what was erased from what was lost: longer than it is away."""

PATIENCE_S = 2 * HELD_S
POLL_S = 0.1


class StillHeld(Unavailable):
    default = (
        "Persisters still hold entries that they were given before; the run is out of the logs, "
        "so run the same again once they go on."
    )


class Erased(NamedTuple):
    """How much of a run there was."""

    entries: int
    rows: int
    dead_letters: int


def erase(
    clients: Sequence[redis.Redis],
    connect: Callable[[], Connection],
    run_id: str,
    waiting: Callable[[], None] = lambda: None,
    held_s: float = HELD_S,
    patience_s: float = PATIENCE_S,
) -> Erased:
    """Erases a run; again does no harm. `waiting` is called once where persisters have to be waited for.

    `clients`: of each shard. Raises StillHeld, DatabaseUnavailable or redis errors.
    """
    everywhere = [(client, ShardKeys(shard)) for shard, client in enumerate(clients)]
    entries = 0
    for client, keys in everywhere:
        removed = _remove(client, keys.log, run_id, keys.erased)
        client.zrem(keys.runs, keys.run(run_id))  # first: an append that opens it anew enters it again
        client.delete(keys.run(run_id))
        _wait_for_persisters(client, keys, waiting, held_s, patience_s)
        entries += len(removed)
    rows = _remove_rows(connect, run_id)
    letters = sum(len(_remove(client, keys.dead_letters, run_id)) for client, keys in everywhere)
    for client, keys in everywhere:
        client.delete(keys.owner(run_id))
    return Erased(entries, rows, letters)


def _remove(client: redis.Redis, stream: str, run_id: str, erased: str | None = None) -> list[bytes]:
    """Deletes the run's entries from a stream, with a note of it in the set `erased`; answers their ids."""
    removed: list[bytes] = []
    for page in _pages(client, stream):
        ids = [id for id, fields in page if run_of(fields.get(FIELD, b"")) == run_id]
        if ids:
            if erased:  # before, since a persister that read them may claim them at once
                client.sadd(erased, ERASURE + uuid4().bytes, *ids)
                client.expire(erased, ERASED_S)
            client.xdel(stream, *ids)
            removed += ids
    return removed


def _pages(client: redis.Redis, stream: str) -> Iterator[list[tuple[bytes, dict[bytes, bytes]]]]:
    start = "-"
    while True:
        page: Any = client.xrange(stream, start, "+", PAGE)
        if not page:
            return
        yield page
        start = f"({page[-1][0].decode()}"


def _wait_for_persisters(
    client: redis.Redis, keys: ShardKeys, waiting: Callable[[], None], held_s: float, patience_s: float
) -> None:
    """Until nothing that was delivered up to now is in a persister's hands. Raises StillHeld."""
    last = last_delivered(client, keys.log)
    deadline = time.monotonic() + patience_s
    told = False
    while last and _held(client, keys, last, held_s):
        if time.monotonic() > deadline:
            raise StillHeld
        if not told:
            waiting()
            told = True
        time.sleep(POLL_S)


def _held(client: redis.Redis, keys: ShardKeys, last: StreamId, held_s: float) -> bool:
    """Whether one of the entries up to `last` is with a persister that may still be at work on it."""
    seconds, micros = client.time()
    now_ms = seconds * 1000 + micros // 1000
    held_ms = held_s * 1000
    return any(
        claim.position < last and 0 <= now_ms - claim.since_ms < held_ms for claim in claims(client, keys)
    )


def _remove_rows(connect: Callable[[], Connection], run_id: str) -> int:
    """Deletes the run and its rows of all kinds, all or nothing. Raises DatabaseUnavailable."""
    connection = connect()
    rows = 0
    try:
        with connection, connection.cursor() as cursor:
            for table in (*TABLES, "research_pipeline_runs"):
                cursor.execute(f"DELETE FROM {table} WHERE run_id = %s", [run_id])  # noqa: S608
                rows += cursor.rowcount
    except psycopg2.Error as error:
        raise DatabaseUnavailable from error
    finally:
        connection.close()
    return rows
