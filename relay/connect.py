"""The only place that opens connections to Redis and PostgreSQL. Each time-out has its reason here."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg2
import psycopg2.extensions
import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff

from relay.errors import DatabaseUnavailable, Misconfigured
from relay.link import Durability, DurableLink, Link, SharedLink

T = TypeVar("T")

CONNECT_S = 1.0
"""A server that is there accepts at once; one that does not should fail fast."""

REPLY_S = 2.5
"""No command of ours takes a server that long, and callers are promised an answer within 3 s."""

BLOCK_MS = 5_000
"""How long a blocking read waits for news. A dead peer is noticed this long, and BLOCK_GRACE_S, after."""

BLOCK_GRACE_S = 2.0
"""What a blocking read gets beyond its block: redis-py does not extend its time-out by BLOCK."""

_REDIS = {
    "socket_connect_timeout": CONNECT_S,
    "socket_keepalive": True,
    "protocol": 2,  # reply shapes differ in RESP3
    "health_check_interval": 0,
}


def append_link(url: str, waitaof: str | None = None) -> Link:
    """For the write path, where a repeated command would write twice."""
    connection = _link_connection(url)
    return DurableLink(connection, REPLY_S, Durability(waitaof)) if waitaof else Link(connection, REPLY_S)


def tail_link(url: str) -> Link:
    """For one tailer's blocking reads, with a time-out beyond the block."""
    return Link(_link_connection(url), BLOCK_MS / 1000 + BLOCK_GRACE_S)


def shared_link(url: str) -> SharedLink:
    """For the short reads of many."""
    return SharedLink(Link(_link_connection(url), REPLY_S))


def _link_connection(url: str) -> redis.asyncio.Connection:
    pool = redis.asyncio.ConnectionPool.from_url(
        url, socket_timeout=REPLY_S, retry=redis.asyncio.retry.Retry(NoBackoff(), 0), **_REDIS
    )
    connection: redis.asyncio.Connection = pool.make_connection()  # type: ignore[no-untyped-call]
    return connection


def persister_redis(url: str) -> redis.Redis:
    """For a persister: no retry, since a repeated XREADGROUP would lose sight of the first one's entries."""
    return redis.Redis.from_url(
        url,
        socket_timeout=BLOCK_MS / 1000 + BLOCK_GRACE_S,
        retry=redis.retry.Retry(NoBackoff(), 0),
        **_REDIS,
    )


def database(url: str, *, statement_s: float | None = None) -> psycopg2.extensions.connection:
    """A connection to PostgreSQL. Raises DatabaseUnavailable.

    TCP notices a dead peer within ten seconds, also in the middle of a statement.
    """
    options = f"-c statement_timeout={int(statement_s * 1000)}" if statement_s else ""
    try:
        return psycopg2.connect(
            url,
            connect_timeout=2,  # libpq's smallest
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=2,
            tcp_user_timeout=10_000,
            application_name="rp-relay",
            options=options,
        )
    except psycopg2.OperationalError as error:
        raise DatabaseUnavailable from error


class Database:
    """Short reads and writes for the event loop: a few threads, a connection each, in autocommit.

    A call answers within `DEADLINE_S` or raises DatabaseUnavailable, even when the server is frozen:
    its thread stays behind until the kernel gives the connection up, and the others go on.
    """

    DEADLINE_S = 2.8
    STATEMENT_S = 2.5

    def __init__(self, url: str, threads: int) -> None:
        self._url = url
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="database")
        self._local = threading.local()

    async def run(self, work: Callable[[psycopg2.extensions.connection], T]) -> T:
        """What `work` returns. It may be called twice, on a new connection where the first was dead."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.DEADLINE_S):
                return await loop.run_in_executor(self._threads, self._run, work)
        except TimeoutError as error:
            raise DatabaseUnavailable from error

    async def rows(self, statement: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """All rows that a statement answers."""

        def fetch(connection: psycopg2.extensions.connection) -> list[tuple[Any, ...]]:
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall()

        return await self.run(fetch)

    def _run(self, work: Callable[[psycopg2.extensions.connection], T]) -> T:
        reused = getattr(self._local, "connection", None) is not None
        try:
            return work(self._connection())
        except (
            psycopg2.OperationalError,
            psycopg2.InterfaceError,
            psycopg2.errors.ReadOnlySqlTransaction,
        ) as error:
            self._drop()
            if not reused:
                raise DatabaseUnavailable from error
        except psycopg2.errors.UndefinedTable as error:
            raise Misconfigured("The database has no tables yet; run `relay migrate`.") from error
        return self._run(work)

    def _connection(self) -> psycopg2.extensions.connection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = database(self._url, statement_s=self.STATEMENT_S)
            connection.autocommit = True
            self._local.connection = connection
        return connection

    def _drop(self) -> None:
        connection: Any = self._local.connection
        self._local.connection = None
        connection.close()

    def close(self) -> None:
        """Lets the threads go. Connections end with them."""
        self._threads.shutdown(wait=False, cancel_futures=True)
