"""Whose conversations and runs are whose, and what the database knows of a run."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg2
import redis.exceptions
from psycopg2.extensions import connection as Connection  # noqa: N812

from relay.auth.viewers import MAX_BIGINT, Caller
from relay.connect import Database
from relay.errors import Conflict, DatabaseUnavailable, Forbidden, Misconfigured, NotFound, RelayError
from relay.link import SharedLink
from relay.settings import Settings
from relay.stream.keys import ShardKeys, created_at, shard_of_run

log = logging.getLogger(__name__)

OWNER_CACHE = 10_000
RUNS_CACHE_S = 1.0
"""For the list of a conversation's runs, in which new ones are waited for."""

OWNER_REMEMBERED_S = 24 * 3600

_TIME = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"')"""
_COLUMNS = ", ".join(
    ["run.run_id", "run.status", "run.error_message"]
    + [_TIME.format(f"run.{column}") for column in ("created_at", "finished_at", "last_heartbeat_at")]
)
"""Of `Run`, except the conversation."""

# What settings replace where an application has its own tables.
CONVERSATION = "SELECT user_id FROM conversations WHERE id = %(conversation_id)s"
RUNS = "SELECT * FROM research_pipeline_runs WHERE conversation_id = %(conversation_id)s"

_OURS = {"RELAY_CONVERSATION_SQL": "conversations", "RELAY_RUNS_SQL": "research_pipeline_runs"}
"""Which table a setting stands for."""

_LOOK_UP = """
    SELECT conversation.user_id, {columns}
    FROM ({conversation}) AS conversation
    LEFT JOIN ({runs}) AS run ON %(run_id)s::text IS NULL OR run.run_id = %(run_id)s
    ORDER BY run.created_at, run.run_id
"""

# Where a run stands by what is archived of it: it may have started, and ended, before it was made known.
_LIFE = """
    CROSS JOIN LATERAL (
        SELECT CASE WHEN (finished.metadata->>'success')::boolean THEN 'completed'
                    WHEN finished.id IS NOT NULL THEN 'failed'
                    WHEN started.id IS NOT NULL THEN 'running'
                    ELSE 'pending' END AS status,
               CASE WHEN NOT (finished.metadata->>'success')::boolean THEN finished.metadata->>'message' END
                    AS error_message,
               finished.created_at AS finished_at,
               started.created_at AS last_heartbeat_at
        FROM (VALUES (1)) AS one
        LEFT JOIN LATERAL (
            SELECT * FROM research_pipeline_run_events
            WHERE run_id = asked.run_id AND event_type = 'run_finished' ORDER BY id LIMIT 1
        ) AS finished ON true
        LEFT JOIN LATERAL (
            SELECT * FROM research_pipeline_run_events
            WHERE run_id = asked.run_id AND event_type = 'run_started' ORDER BY id DESC LIMIT 1
        ) AS started ON true
    ) AS life
"""

# Runs that a token names, whether or not anybody made them known.
_NAMED = f"""
    SELECT {_COLUMNS}
    FROM (
        SELECT asked.run_id,
               coalesce(known.status, life.status) AS status,
               coalesce(known.error_message, life.error_message) AS error_message,
               coalesce(known.created_at, life.last_heartbeat_at, life.finished_at, now()) AS created_at,
               coalesce(known.finished_at, life.finished_at) AS finished_at,
               coalesce(known.last_heartbeat_at, life.last_heartbeat_at) AS last_heartbeat_at
        FROM unnest(%(runs)s::text[]) AS asked (run_id)
        LEFT JOIN research_pipeline_runs AS known USING (run_id)
        {_LIFE}
    ) AS run
    ORDER BY run.created_at, run.run_id
"""  # noqa: S608 - all constants

_CLAIM_CONVERSATION = """
    INSERT INTO conversations (id, user_id) VALUES (%(conversation_id)s, %(user_id)s)
    ON CONFLICT (id) DO UPDATE SET user_id = conversations.user_id
    RETURNING user_id
"""

# An event that a persister is just storing would neither find the run nor be found by it.
_WAIT_FOR_PERSISTERS = "LOCK TABLE research_pipeline_run_events IN SHARE MODE"

_CLAIM_RUN = f"""
    INSERT INTO research_pipeline_runs
           (run_id, conversation_id, status, error_message, finished_at, last_heartbeat_at)
    SELECT asked.run_id, %(conversation_id)s,
           life.status, life.error_message, life.finished_at, life.last_heartbeat_at
    FROM (SELECT %(run_id)s::text AS run_id) AS asked
    {_LIFE}
    ON CONFLICT (run_id) DO UPDATE SET conversation_id = research_pipeline_runs.conversation_id
    RETURNING conversation_id
"""  # noqa: S608 - all constants


class Run(NamedTuple):
    """A run as the database knows it; `status` is one of pending, running, completed, failed, cancelled."""

    run_id: str
    conversation_id: int
    status: str
    error_message: str | None
    created_at: str
    finished_at: str | None
    last_heartbeat_at: str | None

    @property
    def over(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")

    def shown(self, changes: Mapping[str, Any], newest: int, stale_after_s: float) -> dict[str, Any]:
        """The member `run` of what viewers get: with the changes of events that may not be archived yet.

        A run is stale when it is under way and was not heard of for `stale_after_s`. Any event is a word of
        it: `newest` is the id of the last one, or START.
        """
        run: dict[str, Any] = {**self._asdict(), **({} if self.over else changes)}
        words = (run["last_heartbeat_at"], created_at(newest) if newest else None)
        heard = max((datetime.fromisoformat(word) for word in words if word), default=None)
        silent_s = (datetime.now(UTC) - heard).total_seconds() if heard else 0.0
        return {**run, "stale": run["status"] == "running" and silent_s > stale_after_s}


class Ownership:
    """Whose conversations and runs are whose.

    A token that names runs says so itself. For all others the database does; what it said last about a run
    is also kept in Redis, so that viewers who were let in before can come back while the database is away,
    to whichever worker.
    """

    def __init__(self, database: Database, links: Sequence[SharedLink], settings: Settings) -> None:
        self._database = database
        self._links = links
        self._keys = [ShardKeys(shard) for shard in range(len(links))]
        self._cache_s = settings.access_cache_s
        self._known: OrderedDict[Hashable, tuple[float, asyncio.Future[list[Any]]]] = OrderedDict()
        mapped = zip(_OURS, (settings.conversation_sql, settings.runs_sql), strict=True)
        self._mapped = [name for name, statement in mapped if statement]
        self._statement = _LOOK_UP.format(
            columns=_COLUMNS,
            conversation=settings.conversation_sql or CONVERSATION,
            runs=settings.runs_sql or RUNS,
        )

    async def check(self, caller: Caller, conversation_id: int, run_id: str) -> Run | None:
        """The run, where it is the caller's; None where only Redis, or the token, could be asked.

        Raises NotFound, Forbidden or DatabaseUnavailable.
        """
        if caller.runs is not None:
            return await self._named_one(caller.runs, conversation_id, run_id)
        try:
            _, *run = (await self._look_up(caller.user_id, conversation_id, run_id))[0]
        except DatabaseUnavailable:
            if await self._remembered(run_id) == (conversation_id, caller.user_id):
                return None
            raise
        if run[0] is None:
            raise NotFound("Research run not found")
        return Run(run[0], conversation_id, *run[1:])

    async def runs(self, caller: Caller, conversation_id: int) -> list[Run]:
        """All of the caller's runs in a conversation, the oldest first. Raises as `check` does."""
        if caller.runs is not None:
            return await self._named(caller.runs, conversation_id)
        rows = await self._look_up(caller.user_id, conversation_id, None)
        return [Run(run_id, conversation_id, *rest) for _, run_id, *rest in rows if run_id is not None]

    async def claim(self, run_id: str, conversation_id: int, user_id: int) -> None:
        """Makes a run known, once. Raises Conflict where it, or its conversation, is another's."""
        values = {"run_id": run_id, "conversation_id": conversation_id, "user_id": user_id}
        await self._database.run(lambda connection: _claim(connection, values))
        if not self._mapped:  # or it is for the application's tables to say
            await self._remember(run_id, conversation_id, user_id)

    async def _named_one(self, runs: Sequence[str], conversation_id: int, run_id: str) -> Run | None:
        if run_id not in runs:
            raise NotFound("Research run not found")
        try:
            return (await self._named((run_id,), conversation_id))[0]
        except DatabaseUnavailable:
            return None

    async def _named(self, runs: Sequence[str], conversation_id: int) -> list[Run]:
        """Where these runs stand. The conversation is what the caller calls it."""
        rows = await self._shared(tuple(runs), lambda: self._rows(_NAMED, {"runs": list(runs)}), RUNS_CACHE_S)
        return [Run(run_id, conversation_id, *rest) for run_id, *rest in rows]

    async def _look_up(self, user_id: int, conversation_id: int, run_id: str | None) -> list[Any]:
        """The rows of the conversation with that run, or with all of them; at least one."""
        if conversation_id > MAX_BIGINT:
            raise NotFound("Conversation not found")
        key = (conversation_id, run_id)
        lasting_s = self._cache_s if run_id is not None else min(self._cache_s, RUNS_CACHE_S)
        rows = await self._shared(key, lambda: self._query(conversation_id, run_id), lasting_s)
        if not rows or rows[0][1] is None:
            self._known.pop(key, None)  # it may be made known any moment
        if not rows:
            raise NotFound("Conversation not found")
        if rows[0][0] != user_id:
            raise Forbidden("You do not own this conversation")
        return rows

    async def _shared(
        self, key: Hashable, query: Callable[[], Coroutine[Any, Any, list[Any]]], lasting_s: float
    ) -> list[Any]:
        """Those who ask at once, or soon after, share one query."""
        now = time.monotonic()
        expires, shared = self._known.get(key, (0.0, None))
        if shared is None or expires < now:
            shared = asyncio.ensure_future(query())
            self._known[key] = (now + lasting_s, shared)
            self._known.move_to_end(key)
            if len(self._known) > OWNER_CACHE:
                self._known.popitem(last=False)
        try:
            return await asyncio.shield(shared)
        except RelayError:
            self._known.pop(key, None)
            raise

    async def _query(self, conversation_id: int, run_id: str | None) -> list[Any]:
        values = {"conversation_id": conversation_id, "run_id": run_id}
        rows = await self._rows(self._statement, values, self._mapped)
        if run_id is not None and rows and rows[0][1] is not None:
            await self._remember(run_id, conversation_id, rows[0][0])
        return rows

    async def _rows(self, statement: str, values: Mapping[str, Any], mapped: Sequence[str] = ()) -> list[Any]:
        """The rows of a statement that has what these settings say in it. Raises Misconfigured, which names
        them where it does not fit the database."""
        try:
            return await self._database.rows(statement, values)
        except psycopg2.Error as error:
            cause: BaseException | None = error
        except Misconfigured as error:  # there is no such table
            cause = error.__cause__
            if not mapped or _misses_ours(cause, mapped):
                raise
        whose = " and ".join(mapped) or "our own tables"
        code = cause.pgcode if isinstance(cause, psycopg2.Error) else None
        log.error("the statements about owners, of %s, failed: %s", whose, code)
        raise Misconfigured(
            f"The server's statements about owners, of {whose}, do not fit its database, or it may not read "
            "there."
        )

    def _kept(self, run_id: str) -> tuple[SharedLink, str]:
        """Where in Redis, and under which key."""
        shard = shard_of_run(run_id, len(self._keys))
        return self._links[shard], self._keys[shard].owner(run_id)

    async def _remember(self, run_id: str, conversation_id: int, user_id: int) -> None:
        link, key = self._kept(run_id)
        try:
            owner = f"{conversation_id}:{user_id}"
            await link.ask("SET", key, owner, "EX", OWNER_REMEMBERED_S)
        except (redis.exceptions.RedisError, OSError):
            return  # A help for bad times, not worth failing good ones.

    async def _remembered(self, run_id: str) -> tuple[int, int] | None:
        link, key = self._kept(run_id)
        try:
            owner = await link.ask("GET", key)
        except (redis.exceptions.RedisError, OSError):
            return None
        if not isinstance(owner, bytes):
            return None
        conversation_id, user_id = owner.split(b":")
        return int(conversation_id), int(user_id)


def _misses_ours(error: BaseException | None, mapped: Sequence[str]) -> bool:
    """Whether the table that is not there is one of ours, which no setting stands for."""
    return any(f'"{table}"' in str(error) for name, table in _OURS.items() if name not in mapped)


def _claim(connection: Connection, values: dict[str, Any]) -> None:
    with connection, connection.cursor() as cursor:
        cursor.execute(_WAIT_FOR_PERSISTERS)
        cursor.execute(_CLAIM_CONVERSATION, values)
        owner = cursor.fetchone()
        if owner != (values["user_id"],):
            raise Conflict("The conversation belongs to another user.")
        cursor.execute(_CLAIM_RUN, values)
        conversation = cursor.fetchone()
        if conversation != (values["conversation_id"],):
            raise Conflict("The run belongs to another conversation.")
