"""The only place that opens connections to Redis and PostgreSQL. Each time-out has its reason here."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import psycopg2
import psycopg2.extensions
import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff

from relay import metrics
from relay.errors import DatabaseUnavailable, Misconfigured, OutcomeUnknown, Unavailable

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

CONNECT_S = 1.0
"""A server that is there accepts at once; one that does not should fail fast."""

REPLY_S = 2.5
"""No command of ours takes a server that long, and callers are promised an answer within 3 s."""

BLOCK_MS = 5_000
"""How long a blocking read waits for news. A dead peer is noticed this long, and BLOCK_GRACE_S, after."""

BLOCK_GRACE_S = 2.0
"""What a blocking read gets beyond its block: redis-py does not extend its time-out by BLOCK."""

WAITAOF_MS = 2_000
"""How long a server may take over having a write in the files that were asked for: below `REPLY_S`."""

_REDIS = {
    "socket_connect_timeout": CONNECT_S,
    "socket_keepalive": True,
    "protocol": 2,  # reply shapes differ in RESP3
    "health_check_interval": 0,
}


def bulk(word: str | bytes | int) -> bytes:
    """A word of a command, as RESP writes it."""
    data = word if isinstance(word, bytes) else str(word).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


def command(*words: str | bytes | int) -> bytes:
    """A command, as RESP writes it."""
    return b"".join([b"*%d\r\n" % len(words), *map(bulk, words)])


class Durability:
    """In how many files, the server's own and its replicas', a write has to be before it counts as kept."""

    def __init__(self, asked: str) -> None:
        self._asked = [int(count) for count in asked.split(",")]
        self.words: Sequence[str | int] = ("WAITAOF", *self._asked, WAITAOF_MS)
        """The command that waits for the last write of its connection."""

    def reached(self, answer: Any) -> bool:
        """Whether that many were reached: the server also answers where it was fewer, in the end."""
        return isinstance(answer, list) and all(
            got >= asked for got, asked in zip(answer, self._asked, strict=True)
        )


class Link:
    """One connection to Redis for one user at a time: every command is sent once, and answered or failed."""

    def __init__(self, url: str, reply_s: float) -> None:
        pool = redis.asyncio.ConnectionPool.from_url(
            url,
            socket_timeout=reply_s,
            retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
            **_REDIS,
        )
        self._connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]

    async def connect(self) -> None:
        """Connects, unless it is connected already."""
        metrics.CONNECTIONS.value += not self._connection.is_connected
        await self._connection.connect()

    async def command(self, *words: str | bytes | int) -> Any:
        """What the server answers. Where this raises anything but a ResponseError, call `drop`."""
        return await self.send(command(*words))

    async def send(self, packed: bytes) -> Any:
        """What the server answers to a command that is packed already. Raises as `command` does."""
        await self._write(packed)
        return await self._connection.read_response()

    async def commands(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """What the server answers to each; a refusal is an answer here."""
        return await self.exchange(b"".join(command(*words) for words in commands), len(commands))

    async def exchange(self, packed: bytes, count: int) -> list[Any]:
        """The same for that many commands that are packed already."""
        await self._write(packed)
        return [await self._answer() for _ in range(count)]

    async def _write(self, packed: bytes) -> None:
        try:
            await self._connection.send_packed_command(packed)
        except RuntimeError as error:
            # uvloop's word for a connection that was reset while nobody used it. Neither the driver nor any
            # of our callers would take it for a lost connection.
            raise redis.exceptions.ConnectionError("the connection was lost while it was idle") from error

    async def _answer(self) -> Any:
        try:
            return await self._connection.read_response()
        except redis.exceptions.ResponseError as error:
            return error

    async def drop(self) -> None:
        """Gives the connection up at once; the next `connect` makes a new one."""
        await self._connection.disconnect(nowait=True)


class DurableLink(Link):
    """A link on which a command is answered once as many files as were asked for hold what it wrote."""

    def __init__(self, url: str, reply_s: float, durability: Durability) -> None:
        super().__init__(url, reply_s)
        self._durability = durability

    async def send(self, packed: bytes) -> Any:
        """Raises OutcomeUnknown where they do not in time: it is written, and may be lost with the server."""
        answer, kept = await self.exchange(packed + command(*self._durability.words), 2)
        if isinstance(answer, redis.exceptions.ResponseError):
            raise answer
        if not self._durability.reached(kept):
            metrics.SHORTFALLS.value += 1
            raise OutcomeUnknown
        return answer


def append_link(url: str, waitaof: str | None = None) -> Link:
    """For the write path, where a repeated command would write twice."""
    return DurableLink(url, REPLY_S, Durability(waitaof)) if waitaof else Link(url, REPLY_S)


def tail_link(url: str) -> Link:
    """For one tailer's blocking reads, with a time-out beyond the block."""
    return Link(url, BLOCK_MS / 1000 + BLOCK_GRACE_S)


class Sharing(Generic[K, T]):
    """One piece of work for all who ask for the same at about the same time.

    An answer is never older than its question: whoever asks while one is being made waits for the next one,
    which then serves everybody who waits.
    """

    def __init__(self) -> None:
        self._waiting: dict[K, asyncio.Future[T]] = {}
        self._working: dict[K, asyncio.Task[None]] = {}

    async def ask(self, key: K, make: Callable[[], Awaitable[T]]) -> T:
        """What `make`, which is the same for everybody with this key, returns or raises."""
        answer = self._waiting.get(key)
        if answer is None:
            answer = self._waiting[key] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_noticed)
            if key not in self._working:
                self._working[key] = asyncio.create_task(self._work(key, make))
        return await asyncio.shield(answer)

    async def _work(self, key: K, make: Callable[[], Awaitable[T]]) -> None:
        """Until nobody waits."""
        try:
            while (answer := self._waiting.pop(key, None)) is not None:
                try:
                    answer.set_result(await make())
                except BaseException as error:
                    answer.set_exception(_told(error))
                    if not isinstance(error, Exception):
                        raise
        finally:
            del self._working[key]
            if (behind := self._waiting.pop(key, None)) is not None:
                behind.set_exception(Unavailable("This was given up; ask again."))


def _told(error: BaseException) -> Exception:
    """What is told to others: the end of one task is not theirs."""
    return error if isinstance(error, Exception) else Unavailable("This was given up; ask again.")


class SharedLink:
    """One connection for the short reads of many, whoever and however many they are.

    What is asked while answers are awaited leaves together in the next round, and the same question only
    once. An answer is never older than its question.
    """

    ROUND = 100
    """Questions in one round: what comes in later does not wait for too many others."""

    def __init__(self, url: str) -> None:
        self._link = Link(url, REPLY_S)
        self._waiting: dict[tuple[str | int, ...], asyncio.Future[Any]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def ask(self, *words: str | int) -> Any:
        """What the server answers. Raises a redis error."""
        answer = self._waiting.get(words)
        if answer is None:
            answer = self._waiting[words] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_noticed)
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask_all())
        return await asyncio.shield(answer)

    async def _ask_all(self) -> None:
        """Rounds until nobody waits."""
        try:
            while self._waiting:
                questions = list(self._waiting)[: self.ROUND]
                answers = [self._waiting.pop(question) for question in questions]
                try:
                    replies = await self._round(questions)
                except BaseException:
                    for answer in answers:  # nobody waits for a reply that never comes
                        answer.set_exception(redis.exceptions.ConnectionError("there was no reply"))
                    raise
                for answer, reply in zip(answers, replies, strict=True):
                    if isinstance(reply, Exception):
                        answer.set_exception(reply)
                    else:
                        answer.set_result(reply)
        finally:
            self._asking = None

    async def _round(self, questions: Sequence[Sequence[str | int]]) -> Sequence[Any]:
        """The replies, or errors. Asks twice, since the connection may have died unnoticed, and reads can
        be repeated."""
        for last in (False, True):
            try:
                await self._link.connect()
                return await self._link.commands(questions)
            except (redis.exceptions.RedisError, OSError) as error:
                await self._link.drop()
                if last or isinstance(error, redis.exceptions.TimeoutError):
                    return [redis.exceptions.ConnectionError(str(error)) for _ in questions]
        raise AssertionError("the last attempt returns")

    async def close(self) -> None:
        if self._asking is not None:
            await asyncio.wait([self._asking])
        await self._link.drop()


def _noticed(answer: asyncio.Future[Any]) -> None:
    """Keeps asyncio from complaining about errors that nobody waits for any more."""
    if not answer.cancelled():
        answer.exception()


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
