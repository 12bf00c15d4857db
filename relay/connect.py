"""The only place that opens connections to Redis and PostgreSQL. Each time-out has its reason here."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
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
from relay.reasons import NO_TABLES
from relay.stream.keys import MAX_SHARDS
from relay.where import ELSEWHERE, Address, Where, spreads, where

T = TypeVar("T")

CONNECT_S = 1.0
"""A server that is there accepts at once; one that does not should fail fast."""

REPLY_S = 2.5
"""No command of ours takes a server that long, and callers are promised an answer within 3 s."""

LOOK_S = 0.4
"""Who knows where a primary is answers at once; where one is gone there is time for another to be asked
before CONNECT_S is over."""

BLOCK_MS = 5_000
"""How long a blocking read waits for news. A dead peer is noticed this long, and BLOCK_GRACE_S, after."""

BLOCK_GRACE_S = 2.0
"""What a blocking read gets beyond its block: redis-py does not extend its time-out by BLOCK."""

_REDIS = {
    "socket_connect_timeout": CONNECT_S,
    "protocol": 2,  # reply shapes differ in RESP3
    "health_check_interval": 0,
}


def _redis(url: str) -> Mapping[str, Any]:
    """What every connection to Redis at this URL is made with."""
    # A peer on this machine does not vanish unnoticed, and its socket knows no probes.
    return _REDIS if url.startswith("unix:") else {**_REDIS, "socket_keepalive": True}


def append_link(url: str, waitaof: str | None = None, shard: int = 0) -> Link:
    """For the write path of a shard, where a repeated command would write twice."""
    if waitaof:
        return _link(url, shard, REPLY_S, partial(DurableLink, durability=Durability(waitaof)))
    return _link(url, shard, REPLY_S)


def tail_link(url: str, shard: int = 0) -> Link:
    """For one tailer's blocking reads, with a time-out beyond the block."""
    return _link(url, shard, BLOCK_MS / 1000 + BLOCK_GRACE_S)


def shared_link(url: str, shard: int = 0) -> SharedLink:
    """For the short reads of many."""
    return SharedLink(_link(url, shard, REPLY_S))


def shared_links(url: str, shards: int) -> Sequence[SharedLink]:
    """The same for each shard: one for all of them, where they are on one server."""
    if spreads(url):
        return [shared_link(url, shard) for shard in range(shards)]
    return [shared_link(url)] * shards


def _link(url: str, shard: int, reply_s: float, kind: Callable[..., Link] = Link) -> Link:
    place = where(url, shard)
    pool = redis.asyncio.ConnectionPool.from_url(
        place.url if place else url,
        socket_timeout=REPLY_S,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
        **_redis(url),
    )
    connection: redis.asyncio.Connection = pool.make_connection()  # type: ignore[no-untyped-call]
    return kind(connection, reply_s, find=partial(asyncio.to_thread, primary, place) if place else None)


def primary(place: Where) -> Address:
    """Where it is now, by the first one who knows. Raises a redis error, or OSError.

    They are asked in any order, so that one who is cut off from the others, and does not know it, is not
    asked again and again.
    """
    problem: Exception | None = None
    deadline = time.monotonic() + CONNECT_S
    for url in random.sample(place.knowing, len(place.knowing)):
        if time.monotonic() > deadline:
            break
        try:
            with closing(_asking(url)) as client:
                address = place.read(client.execute_command(*place.question))  # type: ignore[no-untyped-call]
        except (redis.exceptions.RedisError, OSError) as error:
            problem = error
        else:
            if address:
                return address
    raise problem or redis.exceptions.ConnectionError("nobody knows where the primary is")


def _asking(url: str) -> redis.Redis:
    options = {**_redis(url), "socket_connect_timeout": LOOK_S, "socket_timeout": LOOK_S}
    return redis.Redis.from_url(url, retry=redis.retry.Retry(NoBackoff(), 0), **options)


def persister_redis(url: str, shard: int = 0) -> redis.Redis:
    """For a persister: no retry, since a repeated claim would look as if a peer had been faster."""
    place = where(url, shard)
    client = redis.Redis.from_url(
        place.url if place else url,
        socket_timeout=BLOCK_MS / 1000 + BLOCK_GRACE_S,
        retry=redis.retry.Retry(NoBackoff(), 0),
        **_redis(url),
        **({"find": partial(primary, place)} if place else {}),
    )
    if place:
        pool = client.connection_pool
        tls = issubclass(pool.connection_class, redis.SSLConnection)
        pool.connection_class = _FoundByTls if tls else _Found
    return client


def persister_clients(url: str, shards: int = MAX_SHARDS) -> Sequence[redis.Redis]:
    """One for each shard: the same for all of them, where they are on one server.

    Unless told otherwise, for all shards that there can be: what an operator types is for all of them, and
    that environment need not say how many there are. Keys that do not exist cost nothing.
    """
    if spreads(url):
        return [persister_redis(url, shard) for shard in range(shards)]
    return [persister_redis(url)] * shards


class _Finding(redis.connection.AbstractConnection):
    """A connection that asks where to go, and is given up where it turns out to be wrong."""

    host: str
    port: int

    def __init__(self, *, find: Callable[[], Address], **options: Any) -> None:
        self._find = find
        super().__init__(**options)

    def connect(self) -> None:
        if not self.is_connected:
            self.host, self.port = self._find()
        super().connect()  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except ELSEWHERE:
            self.disconnect()  # type: ignore[no-untyped-call]
            raise


class _Found(_Finding, redis.Connection):
    pass


class _FoundByTls(_Finding, redis.SSLConnection):
    pass


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
            raise Misconfigured(NO_TABLES) from error
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
