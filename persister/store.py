"""Entries into PostgreSQL: one transaction a batch, idempotent by id.

A batch goes by COPY first. Where the server refuses that, because a row is bad or is there already, it goes
as one JSON array for each kind, which the server unpacks and from which it leaves out what it has. A row that
it can not take at all is found by halving, and all the others are stored. Rows are sorted by id, so that two
persisters that hold the same rows lock them in the same order.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import psycopg2
import psycopg2.errors
from psycopg2.extensions import connection as Connection  # noqa: N812

from persister import copy
from relay.errors import DatabaseUnavailable
from relay.events.base import Kind
from relay.events.registry import HIGHEST_ID, REGISTRY
from relay.stream.entry import Entry
from relay.stream.keys import START

log = logging.getLogger(__name__)

BAD_DATA = ("22", "23", "54")
"""Classes of SQLSTATE that say that the row is at fault, not the server: data, constraints, limits."""

_EVENTS = """
    SELECT id, run_id, {columns}, occurred_at, created_at
    FROM jsonb_to_recordset(%(events)s::jsonb)
         AS event(id bigint, run_id text, {typed}, occurred_at timestamptz, created_at timestamptz)
"""

_INSERT = f"""
    INSERT INTO {{table}} (id, run_id, {{columns}}, occurred_at, created_at)
    {_EVENTS}
    ORDER BY id
    ON CONFLICT (id) DO NOTHING
"""

_ALSO = f"""
    WITH events AS ({_EVENTS})
    {{also}}
"""


class Rejected(NamedTuple):
    """An entry that PostgreSQL does not take, and why."""

    entry: Entry
    reason: str


def insert(kind: type[Kind]) -> str:
    """What stores rows of a kind, given their payloads as the JSON array `events`."""
    return _INSERT.format(**_names(kind))


def also(kind: type[Kind]) -> str:
    """What a kind wants done with its rows."""
    return _ALSO.format(**_names(kind))


def _names(kind: type[Kind]) -> dict[str, str | None]:
    return {
        "table": kind.table,
        "columns": ", ".join(kind.columns),
        "typed": ", ".join(f"{name} {type}" for name, type in kind.columns.items()),
        "also": kind.also,
    }


def _events(entries: Iterable[Entry]) -> dict[str, str]:
    return {"events": (b"[" + b",".join([entry.record.payload for entry in entries]) + b"]").decode()}


class Store:
    """The archive, for one persister. `connect` raises DatabaseUnavailable."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._connection: Connection | None = None

    def insert(self, entries: Sequence[Entry], *, by_copy: bool = True) -> list[Rejected]:
        """Stores all that can be stored, and commits.

        Raises DatabaseUnavailable, with nothing known to be stored: the same again is right.
        """
        if not entries or (by_copy and self._refusal(entries, by_copy=True) is None):
            return []
        refusal = self._refusal(entries)
        if refusal is None:
            return []
        if len(entries) == 1:
            return [Rejected(entries[0], refusal)]
        middle = len(entries) // 2
        return self.insert(entries[:middle], by_copy=False) + self.insert(entries[middle:], by_copy=False)

    def _refusal(self, entries: Sequence[Entry], *, by_copy: bool = False) -> str | None:
        """Stores all of the batch, or says why it is not stored. Raises DatabaseUnavailable."""
        try:
            self._store(entries, by_copy=by_copy)
        except psycopg2.Error as error:
            if _is_bad_data(error) or (by_copy and _is_no_place_for_copy(error)):
                return f"{type(error).__name__} ({error.pgcode})"
            self.close()
            raise DatabaseUnavailable from error
        except ValueError:  # psycopg2's own word for a NUL
            return "it holds a character that PostgreSQL does not store"
        return None

    def highest(self) -> int:
        """The highest id of all rows, or START. Raises DatabaseUnavailable."""
        try:
            connection = self._open()
            with connection, connection.cursor() as cursor:
                cursor.execute(HIGHEST_ID)
                ((highest,),) = cursor.fetchall()
        except psycopg2.Error as error:
            self.close()
            raise DatabaseUnavailable from error
        return highest or START

    def _store(self, entries: Iterable[Entry], *, by_copy: bool) -> None:
        by_kind: dict[str, list[Entry]] = {}
        for entry in sorted(entries):
            by_kind.setdefault(entry.kind, []).append(entry)
        connection = self._open()
        with connection, connection.cursor() as cursor:
            for name in sorted(by_kind):
                kind = REGISTRY[name]
                if kind.table and by_copy:
                    cursor.copy_expert(copy.statement(kind), copy.Rows(by_kind[name]))
                elif kind.table:
                    cursor.execute(insert(kind), _events(by_kind[name]))
                if kind.also:
                    cursor.execute(also(kind), _events(by_kind[name]))

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _is_no_place_for_copy(error: psycopg2.Error) -> bool:
    """A view, or a table with row-level security: what COPY does not write to, and INSERT may."""
    return (error.pgcode or "")[:2] in ("0A", "42")


def _is_bad_data(error: psycopg2.Error) -> bool:
    return (error.pgcode or "")[:2] in BAD_DATA
