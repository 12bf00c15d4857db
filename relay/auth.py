"""Who may write, and who may see what."""

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

import jwt
import redis.exceptions
from psycopg2.extensions import connection as Connection  # noqa: N812
from pydantic import SecretStr

from relay.connect import Database
from relay.errors import (
    Conflict,
    DatabaseUnavailable,
    Forbidden,
    Misconfigured,
    NotFound,
    Unauthenticated,
)
from relay.link import SharedLink
from relay.stream.keys import ShardKeys, shard_of_run

ALGORITHM = "HS256"
OWNER_CACHE = 10_000
RUNS_CACHE_S = 1.0
"""For the list of a conversation's runs, in which new ones are waited for."""

OWNER_REMEMBERED_S = 24 * 3600
MAX_BIGINT = (1 << 63) - 1

_RUNS = """
    SELECT conversation.user_id, run.run_id, run.status, run.error_message,
           to_char(run.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"'),
           to_char(run.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"'),
           to_char(run.last_heartbeat_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"')
    FROM conversations AS conversation
    LEFT JOIN research_pipeline_runs AS run ON run.conversation_id = conversation.id {which}
    WHERE conversation.id = %(conversation_id)s
    ORDER BY run.created_at, run.run_id
"""
_LOOK_UP = _RUNS.format(which="AND run.run_id = %(run_id)s")
_LOOK_UP_ALL = _RUNS.format(which="")

_CLAIM_CONVERSATION = """
    INSERT INTO conversations (id, user_id) VALUES (%(conversation_id)s, %(user_id)s)
    ON CONFLICT (id) DO UPDATE SET user_id = conversations.user_id
    RETURNING user_id
"""

# An event that a persister is just storing would neither find the run nor be found by it.
_WAIT_FOR_PERSISTERS = "LOCK TABLE research_pipeline_run_events IN SHARE MODE"

# A run may have started, and ended, before it was made known: that is then already archived.
_CLAIM_RUN = """
    INSERT INTO research_pipeline_runs
           (run_id, conversation_id, status, error_message, finished_at, last_heartbeat_at)
    SELECT %(run_id)s, %(conversation_id)s,
           CASE WHEN (finished.metadata->>'success')::boolean THEN 'completed'
                WHEN finished.id IS NOT NULL THEN 'failed'
                WHEN started.id IS NOT NULL THEN 'running'
                ELSE 'pending' END,
           CASE WHEN NOT (finished.metadata->>'success')::boolean THEN finished.metadata->>'message' END,
           finished.created_at,
           started.created_at
    FROM (VALUES (1)) AS one
    LEFT JOIN LATERAL (
        SELECT * FROM research_pipeline_run_events
        WHERE run_id = %(run_id)s AND event_type = 'run_finished' ORDER BY id LIMIT 1
    ) AS finished ON true
    LEFT JOIN LATERAL (
        SELECT * FROM research_pipeline_run_events
        WHERE run_id = %(run_id)s AND event_type = 'run_started' ORDER BY id DESC LIMIT 1
    ) AS started ON true
    ON CONFLICT (run_id) DO UPDATE SET conversation_id = research_pipeline_runs.conversation_id
    RETURNING conversation_id
"""


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

    def shown(self, changes: Mapping[str, Any], stale_after_s: float) -> dict[str, Any]:
        """The member `run` of what viewers get: with the changes of events that may not be archived yet.

        A run is stale when it is under way and was not heard of for `stale_after_s`.
        """
        run: dict[str, Any] = {**self._asdict(), **({} if self.over else changes)}
        heard = run["last_heartbeat_at"]
        silent_s = (datetime.now(UTC) - datetime.fromisoformat(heard)).total_seconds() if heard else 0.0
        return {**run, "stale": run["status"] == "running" and silent_s > stale_after_s}


def check_writer(expected: SecretStr | None, authorization: bytes | None) -> None:
    """Lets pipelines in. Raises Misconfigured or Unauthenticated.

    Digests are compared, in constant time: tokens of any bytes and length take the same way.
    """
    if expected is None:
        raise Misconfigured("The server has no TELEMETRY_WEBHOOK_TOKEN configured, so it accepts no events.")
    scheme, _, token = (authorization or b"").partition(b" ")
    presented = sha256(token.strip()).digest()
    wanted = _digest(expected.get_secret_value())
    if scheme.lower() != b"bearer" or not hmac.compare_digest(presented, wanted):
        raise Unauthenticated(
            "The webhook token is missing or wrong; send it as 'Authorization: Bearer <token>'."
        )


@lru_cache(maxsize=8)
def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def viewer(secret: SecretStr | None, token: str | None) -> int:
    """The user that a viewer's token speaks for. Raises Misconfigured or Unauthenticated."""
    if secret is None:
        raise Misconfigured(
            "The server has no RELAY_VIEWER_SECRET configured, so it can not tell viewers apart."
        )
    try:
        user_id, expires = _claims(secret.get_secret_value(), token or "")
    except (jwt.InvalidTokenError, ValueError) as error:
        raise _not_valid() from error
    if expires <= time.time():
        raise _not_valid()
    return user_id


@lru_cache(maxsize=10_000)
def _claims(secret: str, token: str) -> tuple[int, float]:
    """(user id, expiry) of a token. Remembered, since viewers that were cut come back with the same one."""
    claims = jwt.decode(token, secret, algorithms=[ALGORITHM], options={"require": ["exp", "sub"]})
    return int(claims["sub"]), float(claims["exp"])


def _not_valid() -> Unauthenticated:
    return Unauthenticated(
        "The viewer's token is missing, expired or not valid; "
        "send it as a bearer token or in the cookie relay_token."
    )


def mint_viewer_token(secret: str, user_id: int, ttl_s: int) -> str:
    """A token with which `user_id` can view its runs for `ttl_s` seconds."""
    return jwt.encode({"sub": str(user_id), "exp": int(time.time()) + ttl_s}, secret, ALGORITHM)


class Ownership:
    """Whose conversations and runs are whose.

    The database says so. What it said last about a run is also kept in Redis, so that viewers who were
    let in before can come back while the database is away, to whichever worker.
    """

    def __init__(self, database: Database, link: SharedLink, *, shards: int, cache_s: float) -> None:
        self._database = database
        self._redis = link
        self._keys = [ShardKeys(shard) for shard in range(shards)]
        self._cache_s = cache_s
        self._known: OrderedDict[tuple[int, str | None], tuple[float, asyncio.Future[list[Any]]]] = (
            OrderedDict()
        )

    async def check(self, user_id: int, conversation_id: int, run_id: str) -> Run | None:
        """The run, where the user owns it; None where only Redis could be asked.

        Raises NotFound, Forbidden or DatabaseUnavailable.
        """
        try:
            ((_, *run),) = await self._look_up(user_id, conversation_id, run_id)
        except DatabaseUnavailable:
            if await self._remembered(run_id) == (conversation_id, user_id):
                return None
            raise
        if run[0] is None:
            raise NotFound("Research run not found")
        return Run(run[0], conversation_id, *run[1:])

    async def runs(self, user_id: int, conversation_id: int) -> list[Run]:
        """All runs of a conversation, where the user owns it, the oldest first. Raises as `check` does."""
        rows = await self._look_up(user_id, conversation_id, None)
        return [Run(run_id, conversation_id, *rest) for _, run_id, *rest in rows if run_id is not None]

    async def claim(self, run_id: str, conversation_id: int, user_id: int) -> None:
        """Makes a run known, once. Raises Conflict where it, or its conversation, is another's."""
        values = {"run_id": run_id, "conversation_id": conversation_id, "user_id": user_id}
        await self._database.run(lambda connection: _claim(connection, values))
        await self._remember(run_id, conversation_id, user_id)

    async def _look_up(self, user_id: int, conversation_id: int, run_id: str | None) -> list[Any]:
        """The rows of the conversation with that run, or with all of them; at least one."""
        if conversation_id > MAX_BIGINT:
            raise NotFound("Conversation not found")
        rows = await self._shared(conversation_id, run_id)
        if not rows:
            raise NotFound("Conversation not found")
        if rows[0][0] != user_id:
            raise Forbidden("You do not own this conversation")
        return rows

    async def _shared(self, conversation_id: int, run_id: str | None) -> list[Any]:
        """Those who ask at once, or soon after, share one query; what is not there yet is asked for each
        time, since it may be made known any moment."""
        key, now = (conversation_id, run_id), time.monotonic()
        expires, shared = self._known.get(key, (0.0, None))
        if shared is None or expires < now:
            shared = asyncio.ensure_future(self._query(conversation_id, run_id))
            lasting_s = self._cache_s if run_id is not None else min(self._cache_s, RUNS_CACHE_S)
            self._known[key] = (now + lasting_s, shared)
            self._known.move_to_end(key)
            if len(self._known) > OWNER_CACHE:
                self._known.popitem(last=False)
        try:
            rows = await asyncio.shield(shared)
        except DatabaseUnavailable:
            self._known.pop(key, None)
            raise
        if not rows or rows[0][1] is None:
            self._known.pop(key, None)
        return rows

    async def _query(self, conversation_id: int, run_id: str | None) -> list[Any]:
        values = {"conversation_id": conversation_id, "run_id": run_id}
        rows = await self._database.rows(_LOOK_UP_ALL if run_id is None else _LOOK_UP, values)
        if run_id is not None and rows and rows[0][1] is not None:
            await self._remember(run_id, conversation_id, rows[0][0])
        return rows

    def _key(self, run_id: str) -> str:
        return self._keys[shard_of_run(run_id, len(self._keys))].owner(run_id)

    async def _remember(self, run_id: str, conversation_id: int, user_id: int) -> None:
        try:
            owner = f"{conversation_id}:{user_id}"
            await self._redis.ask("SET", self._key(run_id), owner, "EX", OWNER_REMEMBERED_S)
        except (redis.exceptions.RedisError, OSError):
            return  # A help for bad times, not worth failing good ones.

    async def _remembered(self, run_id: str) -> tuple[int, int] | None:
        try:
            owner = await self._redis.ask("GET", self._key(run_id))
        except (redis.exceptions.RedisError, OSError):
            return None
        if not isinstance(owner, bytes):
            return None
        conversation_id, user_id = owner.split(b":")
        return int(conversation_id), int(user_id)


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
