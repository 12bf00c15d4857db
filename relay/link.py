"""Connections to Redis for the event loop, without a task, a stream or a context manager for each command.

The driver makes a connection, with all that belongs to it: address, TLS, user and password, number of the
database. Then its transport is ours: commands are written to it as they are, and hiredis reads the replies.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import hiredis
import redis.asyncio
import redis.exceptions
from redis._parsers import BaseParser

from relay import metrics
from relay.direct import Direct
from relay.errors import OutcomeUnknown
from relay.sharing import noticed
from relay.where import ELSEWHERE, Address

log = logging.getLogger(__name__)

WAITAOF_MS = 2_000
"""How long a server may take to have a write in the files that were asked for: below a link's `reply_s`."""


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


Answered = Callable[[Any], None]
"""Is told the answer: it may be a ResponseError, or the error by which the connection ended."""


REFUSED = (
    redis.exceptions.ResponseError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.AuthenticationError,
)
"""What a server says instead of running a command. (The driver takes the last two for lost connections.)"""


class _Replies(asyncio.Protocol):
    """What comes in on one connection: the replies to what was asked last."""

    def __init__(self) -> None:
        self._parser = hiredis.Reader(
            protocolError=redis.exceptions.InvalidResponse,
            replyError=self._refusal,
        )
        self._replies: list[Any] = []
        self._count = 0
        self._done: Answered | None = None
        self._within_s = self._due = 0.0
        self._clock: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.lost: Exception | None = None
        """Why nothing can be asked any more."""
        self.elsewhere = False
        """Whether the server said that somebody else is to be asked."""

    def _refusal(self, text: str) -> Exception:
        error: Exception = BaseParser.parse_error(text)  # type: ignore[no-untyped-call]
        self.elsewhere = self.elsewhere or isinstance(error, ELSEWHERE)
        return error

    def expect(self, count: int, done: Answered, within_s: float) -> None:
        """`done` gets the list of that many replies, of which each has that long to come."""
        self._replies, self._count, self._done, self._within_s = [], count, done, within_s
        self._due = self._loop.time() + within_s
        if self._clock is None or self._clock.when() > self._due:
            self._set_clock()

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        had = len(self._replies)
        try:
            while (reply := self._parser.gets()) is not False:
                self._replies.append(reply)
        except redis.exceptions.InvalidResponse as error:
            self.fail(error)
            return
        if len(self._replies) == self._count and self._done is not None:
            self._tell(self._replies)
        elif len(self._replies) >= self._count:
            self.fail(redis.exceptions.InvalidResponse("the server said more than it was asked"))
        elif len(self._replies) > had:
            self._due = self._loop.time() + self._within_s

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(redis.exceptions.ConnectionError("the connection was lost"))

    def _set_clock(self) -> None:
        """It runs on over the replies that came, and is set anew once it rings: a command costs none."""
        self._stop_clock()
        self._clock = self._loop.call_at(self._due, self._ring)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()

    def _ring(self) -> None:
        self._clock = None
        if self._done is None:
            return
        if self._loop.time() < self._due:
            self._set_clock()
        else:
            self.fail(redis.exceptions.TimeoutError("there was no reply in time"))

    def fail(self, error: Exception) -> None:
        """Nothing can be asked any more, and nobody waits any longer."""
        self.lost = self.lost or error
        self._stop_clock()
        if self._done is not None:
            self._tell(error)

    def _tell(self, answer: list[Any] | Exception) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(answer)


class Link:
    """One connection to Redis for one user at a time: every command is sent once, and answered or failed.

    A command that is not answered within `reply_s` fails with redis.exceptions.TimeoutError. Where a command
    raises, or is answered by, anything but a ResponseError, call `drop`.
    """

    def __init__(
        self,
        connection: redis.asyncio.Connection,
        reply_s: float,
        find: Callable[[], Awaitable[Address]] | None = None,
    ) -> None:
        """`find` answers where to connect to, where that is not always the same."""
        self._connection = connection
        self._reply_s = reply_s
        self._find = find
        self._transport: asyncio.WriteTransport | None = None
        self._direct: Direct
        self._replies: _Replies

    @property
    def connected(self) -> bool:
        """Whether a command can be sent, as far as is known."""
        transport = self._transport
        return transport is not None and self._replies.lost is None and not transport.is_closing()

    @property
    def elsewhere(self) -> bool:
        """Whether the server said that somebody else is to be asked: the next `connect` looks for it."""
        return self._find is not None and self._transport is not None and self._replies.elsewhere

    async def connect(self) -> None:
        """Connects, unless it was connected before."""
        if self.elsewhere:
            await self.drop()
        if self._transport is not None:
            return
        metrics.CONNECTIONS.value += 1
        if self._find is not None:
            self._connection.host, self._connection.port = await self._find()
        await self._connection.connect()  # type: ignore[no-untyped-call]
        # All that the driver asked is answered, so nothing of ours is in its buffers.
        transport: Any = self._connection._writer.transport  # type: ignore[union-attr]
        self._replies = _Replies()
        transport.set_protocol(self._replies)
        self._transport, self._direct = transport, Direct(transport)

    def ask(self, packed: bytes, done: Answered, within_s: float | None = None) -> None:
        """Sends a packed command; `done` is told the answer. Raises redis.exceptions.ConnectionError."""
        self._ask(packed, 1, lambda answer: done(answer[0] if type(answer) is list else answer), within_s)

    def _ask(self, packed: bytes, count: int, done: Answered, within_s: float | None = None) -> None:
        if not self.connected:
            raise redis.exceptions.ConnectionError("the connection was lost while it was idle")
        try:
            self._direct.write(packed)
        except RuntimeError as error:  # uvloop's word for a connection that is closed
            raise redis.exceptions.ConnectionError("the connection was lost while it was idle") from error
        self._replies.expect(count, done, self._reply_s if within_s is None else within_s)

    async def command(self, *words: str | bytes | int) -> Any:
        """What the server answers. Raises a redis error."""
        return await self.send(command(*words))

    async def send(self, packed: bytes) -> Any:
        """What the server answers to a command that is packed already. Raises as `command` does."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.ask(packed, partial(resolve, answer))
        return await answer

    async def commands(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """What the server answers to each; a refusal is an answer here."""
        answers: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        packed = b"".join(command(*words) for words in commands)
        self._ask(packed, len(commands), partial(resolve, answers))
        return await answers

    async def drop(self) -> None:
        """Gives the connection up at once; the next `connect` makes a new one."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()  # or what a frozen server has not read yet would wait for it, and be run
        await self._connection.disconnect(nowait=True)


def resolve(future: asyncio.Future[Any], answer: Any) -> None:
    """Hands an answer to whoever waits for it, if anybody still does."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


class DurableLink(Link):
    """A link on which a command is answered once as many files as were asked for hold what it wrote.

    Where they do not in time, the answer is OutcomeUnknown: it is written, and may be lost with the server.
    """

    def __init__(
        self,
        connection: redis.asyncio.Connection,
        reply_s: float,
        durability: Durability,
        find: Callable[[], Awaitable[Address]] | None = None,
    ) -> None:
        super().__init__(connection, reply_s, find)
        self._durability = durability

    def ask(self, packed: bytes, done: Answered, within_s: float | None = None) -> None:
        self._ask(packed + command(*self._durability.words), 2, lambda both: done(self._kept(both)), within_s)

    def _kept(self, both: Any) -> Any:
        if isinstance(both, Exception):
            return both
        answer, kept = both
        refused = isinstance(answer, redis.exceptions.ResponseError)
        if refused or self._durability.reached(kept):
            return answer
        metrics.SHORTFALLS.value += 1
        return OutcomeUnknown()


class SharedLink:
    """One connection for the short reads of many, whoever and however many they are.

    What is asked while answers are awaited leaves together in the next round, and the same question only
    once. An answer is never older than its question.
    """

    ROUND = 100
    """Questions in one round: what comes in later does not wait for too many others, and that many answers
    at most are in memory."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: dict[Sequence[str | int], asyncio.Future[Any]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def ask(self, *words: str | int) -> Any:
        """What the server answers. Raises a redis error."""
        answer = self._waiting.get(words)
        if answer is None:
            answer = self._waiting[words] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(noticed)
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
                    replies = await self._replies(questions)
                except Exception:  # those who ask are prepared for redis errors
                    log.exception("nobody was prepared for this")
                    replies = [redis.exceptions.ConnectionError("there was no reply")] * len(questions)
                for answer, reply in zip(answers, replies, strict=True):
                    resolve(answer, reply)
        finally:
            self._asking = None

    async def _replies(self, questions: Sequence[Sequence[str | int]]) -> Sequence[Any]:
        """The replies, or errors. Asks twice, since the connection may have died unnoticed, or somebody else
        taken over, and reads can be repeated."""
        for last in (False, True):
            try:
                await self._link.connect()
                replies = await self._link.commands(questions)
                if last or not self._link.elsewhere:
                    return replies
            except (redis.exceptions.RedisError, OSError) as error:
                await self._link.drop()
                if last or isinstance(error, redis.exceptions.TimeoutError):
                    denied = isinstance(error, redis.exceptions.AuthenticationError)
                    kind = type(error) if denied else redis.exceptions.ConnectionError
                    return [kind(str(error)) for _ in questions]
        raise AssertionError("the last attempt returns")

    async def close(self) -> None:
        if self._asking is not None:
            await asyncio.wait([self._asking])
        await self._link.drop()
