"""What the archive holds, as SQL. Payloads are built as JSON by PostgreSQL and passed through as text.

The tables are those of the registry, so the statements are made from it, once, on import. Names come from
class declarations that were checked there; values are always parameters.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg2.errors
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extras import RealDictCursor

from relay.connect import Database
from relay.errors import Misconfigured
from relay.events.base import Kind
from relay.events.kinds import PaperGenerationProgress
from relay.events.registry import HIGHEST_ID, TABLES
from relay.stream.entry import Record
from relay.stream.keys import MAX_EVENT_ID, START

PAGE = 1000
"""Rows in one query. However long a history is, three of them are held in memory."""

_MOMENT = """to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.{digits}"+00:00"')"""
_CREATED_AT = _MOMENT.format(column="created_at", digits="MS")
_OCCURRED_AT = _MOMENT.format(column="occurred_at", digits="US")

_ROWS = f"""
    SELECT id, run_id, {{kind}} AS kind, {_OCCURRED_AT} AS occurred_at,
           (SELECT row_to_json(shown)::text
            FROM (SELECT id, run_id, {{columns}}, {_CREATED_AT} AS created_at) AS shown) AS payload
    FROM {{table}}
    WHERE {{whose}} AND id > %(after)s AND id < %(before)s
    ORDER BY id
    LIMIT %(limit)s
"""  # noqa: S608

# An event that does not say when it occurred has no such member, not one that is null.
_PAYLOAD = """
    CASE WHEN occurred_at IS NULL THEN payload
         ELSE left(payload, -1) || ',"occurred_at":"' || occurred_at || '"}}'
    END
"""

_PAGE = f"SELECT string_agg({_PAYLOAD}, ',' ORDER BY id), max(id), count(*) FROM ({_ROWS}) AS rows"  # noqa: S608

_RECORDS = f"SELECT id, run_id, kind, {_PAYLOAD} AS payload FROM ({_ROWS}) AS rows"  # noqa: S608

_NEWEST = "SELECT max(id) AS id FROM {table} WHERE run_id = %(run_id)s"

_PAPER_GENERATION_EVENTS = """
    SELECT id, run_id, step, substep, progress, step_progress, details, created_at
    FROM rp_paper_generation_events
    WHERE run_id = %(run_id)s
    ORDER BY id {direction}
    LIMIT %(limit)s
"""


def _of(kind: type[Kind], template: str, whose: str = "run_id = %(run_id)s") -> str:
    name = kind.kind_column or f"'{kind.kind}'"
    return template.format(kind=name, table=kind.table, columns=", ".join(kind.columns), whose=whose)


def _over_all(template: str, whose: str = "") -> str:
    return " UNION ALL ".join(f"({_of(kind, template, whose)})" for kind in TABLES.values())


_REACHES = """
    SELECT '{table}' WHERE EXISTS (SELECT FROM {table} WHERE run_id = %(run_id)s AND id < %(before)s)
"""

_PAGES = {table: _of(kind, _PAGE) for table, kind in TABLES.items()}
_PAPER = f"""
    SELECT page.*, latest.*
    FROM ({_PAGES[PaperGenerationProgress.table]}) AS page LEFT JOIN (
        SELECT id, step, progress
        FROM {PaperGenerationProgress.table}
        WHERE run_id = %(run_id)s
        ORDER BY id DESC
        LIMIT 1
    ) AS latest ON true
"""  # noqa: S608
_ALL_RECORDS = f"""
    SELECT id, run_id, kind, payload
    FROM ({_over_all(_RECORDS, "run_id = ANY(%(run_ids)s)")}) AS record
    ORDER BY id
    LIMIT %(limit)s
"""  # noqa: S608
_REACHING = _over_all(_REACHES)
_NEWEST_OF_ALL = f"SELECT max(id) FROM ({_over_all(_NEWEST)}) AS newest"  # noqa: S608


class PaperGenerationEvent(NamedTuple):
    """A row of `rp_paper_generation_events`."""

    id: int
    run_id: str
    step: str
    substep: str | None
    progress: float
    step_progress: float
    details: dict[str, Any] | None
    created_at: datetime


def list_paper_generation_events(connection: Connection, run_id: str) -> list[PaperGenerationEvent]:
    """All rows of a run, oldest first, in memory."""
    return _paper_generation_events(connection, run_id, "ASC", None)


def get_latest_paper_generation_event(connection: Connection, run_id: str) -> PaperGenerationEvent | None:
    """The newest row of a run."""
    return next(iter(_paper_generation_events(connection, run_id, "DESC", 1)), None)


def _paper_generation_events(
    connection: Connection, run_id: str, direction: str, limit: int | None
) -> list[PaperGenerationEvent]:
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(
            _PAPER_GENERATION_EVENTS.format(direction=direction), {"run_id": run_id, "limit": limit}
        )
        return [PaperGenerationEvent(**row) for row in cursor.fetchall()]


class Page(NamedTuple):
    """Rows of one table: their payloads joined by commas, the last one's id, and how many rows they are."""

    payloads: bytes
    last: int
    rows: int


class Progress(NamedTuple):
    """Where the newest row of a run stands."""

    id: int
    step: str
    progress: float


class History:
    """Reads of the archive. Each raises DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, table: str, run_id: str, after: int, before: int, limit: int = PAGE) -> Page:
        """The first `limit` rows with after < id < before."""
        row = await self._first(_PAGES[table], _window(run_id, after, before, limit))
        return _page(row, after)

    async def paper(self, run_id: str, after: int, limit: int = PAGE) -> tuple[Page, Progress | None]:
        """The first `limit` rows of a run's paper with after < id, and where it stood at that moment."""
        row = await self._first(_PAPER, _window(run_id, after, MAX_EVENT_ID + 1, limit))
        latest = row[3:]
        return _page(row, after), Progress(*latest) if latest[0] else None

    async def payloads(self, table: str, run_id: str, before: int) -> AsyncIterator[bytes]:
        """The payloads of all rows with id < before, page by page."""
        after, full = START - 1, True
        while full:
            page = await self.page(table, run_id, after, before)
            if page.rows:
                yield page.payloads
            after, full = page.last, page.rows == PAGE

    async def reaching(self, run_id: str, before: int) -> set[str]:
        """The tables that have a row of the run with id < before."""
        rows = await self._database.rows(_REACHING, {"run_id": run_id, "before": before})
        return {table for (table,) in rows}

    async def records(
        self, run_ids: Sequence[str], first: int, before: int | None, limit: int
    ) -> Sequence[Record]:
        """Events of all kinds of these runs with first <= id < before."""
        window = {
            "run_ids": list(run_ids),
            "after": first - 1,
            "before": MAX_EVENT_ID + 1 if before is None else before,
            "limit": limit,
        }
        rows = await self._database.rows(_ALL_RECORDS, window)
        return [Record(id, run_id, kind, payload.encode()) for id, run_id, kind, payload in rows]

    async def newest(self, run_id: str) -> int:
        """The highest id of the run, or START."""
        return (await self._first(_NEWEST_OF_ALL, {"run_id": run_id}))[0] or START

    async def highest(self) -> int:
        """The highest id of all, or START. Raises DatabaseUnavailable or Misconfigured."""
        try:
            return (await self._first(HIGHEST_ID, {}))[0] or START
        except psycopg2.errors.InsufficientPrivilege as error:
            raise Misconfigured(
                "The user in DATABASE_URL may not read the tables; run deploy/postgres/grants.sql."
            ) from error

    async def _first(self, statement: str, values: dict[str, Any]) -> Any:
        rows = await self._database.rows(statement, values)
        return rows[0] if rows else None


def _window(run_id: str, after: int, before: int, limit: int) -> dict[str, Any]:
    return {"run_id": run_id, "after": after, "before": before, "limit": limit}


def _page(row: Sequence[Any], after: int) -> Page:
    return Page((row[0] or "").encode(), row[1] or after, row[2])
