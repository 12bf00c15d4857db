"""Entries into PostgreSQL: one transaction a batch, idempotent by id.

A batch goes as one JSON array for each kind, which the server unpacks. Rows are sorted by id, so that two
persisters that hold the same rows lock them in the same order. A row that the server can not take is found
by halving, and all the others are stored.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import psycopg2
import psycopg2.errors
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from relay.errors import DatabaseUnavailable
from relay.events.base import Kind
from relay.events.registry import REGISTRY, TABLES
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


_HIGHEST = "SELECT greatest({})".format(
    ", ".join(f"(SELECT max(id) FROM {table})" for table in TABLES)  # noqa: S608
)


class Rejected(NamedTuple):
    """An entry that PostgreSQL does not take, and why."""

    entry: Entry
    reason: str


def statements(kind: type[Kind]) -> list[str]:
    """What stores rows of a kind, given their payloads as the JSON array `events`."""
    names = {
        "table": kind.table,
        "columns": ", ".join(kind.columns),
        "typed": ", ".join(f"{name} {type}" for name, type in kind.columns.items()),
        "also": kind.also,
    }
    templates = [*([_INSERT] if kind.table else []), *([_ALSO] if kind.also else [])]
    return [template.format(**names) for template in templates]


_STATEMENTS: Mapping[str, list[str]] = {name: statements(kind) for name, kind in REGISTRY.items()}


class Store:
    """The archive, for one persister. `connect` raises DatabaseUnavailable."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._connection: Connection | None = None

    def insert(self, entries: Sequence[Entry]) -> list[Rejected]:
        """Stores all that can be stored, and commits. Raises DatabaseUnavailable, with nothing known to be
        stored: the same again is right."""
        if not entries:
            return []
        try:
            self._insert(entries)
        except psycopg2.Error as error:
            if not _is_bad_data(error):
                self.close()
                raise DatabaseUnavailable(f"PostgreSQL refused the batch ({error.pgcode})") from error
            if len(entries) == 1:
                return [Rejected(entries[0], f"{type(error).__name__} ({error.pgcode})")]
        except ValueError:  # psycopg2's own word for a NUL
            if len(entries) == 1:
                return [Rejected(entries[0], "it holds a character that PostgreSQL does not store")]
        else:
            return []
        middle = len(entries) // 2
        return self.insert(entries[:middle]) + self.insert(entries[middle:])

    def highest(self) -> int:
        """The highest id of all rows, or START. Raises DatabaseUnavailable."""
        try:
            connection = self._open()
            with connection, connection.cursor() as cursor:
                cursor.execute(_HIGHEST)
                ((highest,),) = cursor.fetchall()
        except psycopg2.Error as error:
            self.close()
            raise DatabaseUnavailable from error
        return highest or START

    def _insert(self, entries: Iterable[Entry]) -> None:
        by_kind: dict[str, list[Entry]] = {}
        for entry in entries:
            by_kind.setdefault(entry.kind, []).append(entry)
        connection = self._open()
        with connection, connection.cursor() as cursor:
            for kind in sorted(by_kind):
                self._insert_kind(cursor, kind, by_kind[kind])

    @staticmethod
    def _insert_kind(cursor: Cursor, kind: str, entries: list[Entry]) -> None:
        events = b"[" + b",".join(entry.record.payload for entry in sorted(entries)) + b"]"
        for statement in _STATEMENTS[kind]:
            cursor.execute(statement, {"events": events.decode()})

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _is_bad_data(error: psycopg2.Error) -> bool:
    return (error.pgcode or "")[:2] in BAD_DATA
