"""This persister's side of the consumer group: what to store next, and what is stored."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import redis
import redis.exceptions

from persister.settings import Settings
from relay.errors import Unavailable
from relay.link import Durability, command
from relay.stream import functions
from relay.stream.group import last_delivered
from relay.stream.keys import ERASURE, GROUP, ShardKeys, StreamId, ordinal_above

log = logging.getLogger(__name__)

BLOCK_MS = 1_000
"""How long a read waits for news, and so how long a stop may take."""

ATTEMPTS = 5
"""How often a batch is read anew at once because a peer was faster."""

Delivery = tuple[bytes, Sequence[bytes]]
"""An entry as the server gives it: stream id, and fields in order. (They come as lists of two, and are not
all made anew to be tuples.)"""

READ_COUNT = 256
"""Entries that are read at once: with the largest events 64 MiB, which is known only when it is there."""

RUNS_AT_ONCE = 200
"""Run logs that a call tidies at most: some 3 ms, in which the server serves nobody else."""


class Batch(NamedTuple):
    """Entries that are this persister's to store, until they are settled: those after `position`, up to
    `last`."""

    position: bytes
    last: bytes
    deliveries: Sequence[Delivery]


class Settlement(NamedTuple):
    """What is dealt with: a batch, the newest entry of each run in it, whatever became of that, and what of
    it could not be stored, as dead letters."""

    batch: Batch
    newest: Mapping[str, str]
    letters: Sequence[Sequence[str | bytes]] = ()


class NotKept(Unavailable):
    default = "The event log does not hold the batch in as many files as RELAY_WAITAOF asks for."


class NoFunctions(Unavailable):
    default = "Redis lacks this version's functions, which this user may not load; run `relay migrate`."


class Consumer:
    """One member of a shard's group. `highest` answers the highest id in the archive.

    A batch is read as anybody may read the log, and is this persister's once the claim of it succeeds: then
    the position of the group is behind it. Both go over one connection, and so to one server: another one,
    that took over meanwhile, may have other entries there.

    Raises redis errors as they come: the loop starts anew on them.
    """

    def __init__(
        self, client: redis.Redis, shard: int, settings: Settings, highest: Callable[[], int]
    ) -> None:
        self._redis = client
        self._highest = highest
        self._keys = ShardKeys(shard)
        self._settings = settings
        self._durability = Durability(settings.waitaof) if settings.waitaof else None
        self._backlog = True
        self._take_over_at = 0.0
        self._position: bytes | None = None
        self.full = False
        """Whether the last batch of new entries was as large as was asked for, so that more is likely."""
        self.lost = 0
        """Entries that were gone from the log before they were archived."""

    def restart(self) -> None:
        """After any error: what was claimed and not settled comes first."""
        self._backlog = True
        self._position = None

    def claim(self) -> Batch | None:
        """The next batch: own backlog, then what a silent peer left, then what is new. Waits for news, and
        answers None where there is none. Raises NotKept."""
        if self._position is None:
            self._look()
        with self._connection() as connection:
            if self._backlog:
                if batch := self._take_over(connection):
                    return batch
                self._backlog = False
            if time.monotonic() >= self._take_over_at:
                if batch := self._take_over(connection, int(self._settings.persister_claim_s * 1000)):
                    return batch
                self._take_over_at = time.monotonic() + self._settings.persister_claim_s / 2
            batch = self._claim_new(connection, BLOCK_MS)
        if batch is None:
            self._position = None  # where there is no news, the log may be another one, or set back
        return batch

    def claim_more(self, settlement: Settlement | None = None) -> Batch | None:
        """New entries beside a batch that is under way, without waiting for any; None also where it is time
        to look for what comes before new ones. What is dealt with is settled first. Raises NotKept."""
        with self._connection() as connection:
            if self._backlog or time.monotonic() >= self._take_over_at:
                if settlement:
                    self._settle(connection, settlement)
                return None
            return self._claim_new(connection, None, settlement)

    def settle(self, settlement: Settlement) -> None:
        """Ends the claim of what is dealt with."""
        with self._connection() as connection:
            self._settle(connection, settlement)

    def trim(self, retention: timedelta) -> int:
        """Removes from the log what is archived and older than that; answers how many entries."""
        keys = [self._keys.log, self._keys.claims]
        retention_ms = int(retention.total_seconds() * 1000)
        trimming = command("FCALL", functions.TRIM, len(keys), *keys, GROUP, retention_ms)
        with self._connection() as connection:
            (removed,) = self._call(connection, trimming)
        return int(removed)

    def _settle(self, connection: Any, settlement: Settlement) -> None:
        for part in self._settling(settlement):
            self._call(connection, part)

    def _claim_new(
        self, connection: Any, block_ms: int | None, settlement: Settlement | None = None
    ) -> Batch | None:
        """Reads a batch, and claims it; reads another one where a peer was faster."""
        for _ in range(ATTEMPTS):
            erased, deliveries = self._read(connection, block_ms, settlement)
            settlement = None
            if not deliveries:
                self.full = False
                return None
            batch = Batch(self._position or b"0-0", deliveries[-1][0], deliveries)
            if self._claimed(connection, batch, erased):
                self._position = batch.last
                return batch
        return None

    def _read(
        self, connection: Any, block_ms: int | None, settlement: Settlement | None
    ) -> tuple[int, list[Delivery]]:
        """How much was erased, and then what follows the position: as much as a batch may have. What is dealt
        with is settled in the same round trip as the first of it is read."""
        asked = min(READ_COUNT, self._settings.persister_batch)
        position = self._position or b"0-0"
        reading = [command("SCARD", self._keys.erased), self._reading(position, asked, block_ms)]
        settling = self._settling(settlement) if settlement else []
        for part in settling[:-1]:
            self._call(connection, part)
        *settled, erased, read = self._exchange(connection, *settling[-1:], *reading)
        if settlement and any(isinstance(answer, Exception) for answer in settled):
            self._settle(connection, settlement)
        for answer in (erased, read):
            if isinstance(answer, Exception):
                raise answer
        deliveries: list[Delivery] = read[0][1] if read else []
        self.full = len(deliveries) >= asked
        self._read_on(connection, deliveries)
        return erased, deliveries

    def _read_on(self, connection: Any, deliveries: list[Delivery]) -> None:
        """Adds what follows, while a batch may have more and there may be more. As large as its bytes allow,
        a batch is so by a single read at most: events may suddenly be a thousand times as large."""
        room, size = self._settings.persister_batch - len(deliveries), _bytes_of(deliveries)
        while self.full and room and size < self._settings.persister_batch_bytes:
            asked = min(READ_COUNT, room)
            (read,) = self._call(connection, self._reading(deliveries[-1][0], asked))
            more: list[Delivery] = read[0][1] if read else []
            deliveries += more
            room, size = room - len(more), size + _bytes_of(more)
            self.full = len(more) >= asked

    def _reading(self, position: bytes, count: int, block_ms: int | None = None) -> bytes:
        block: list[str | int] = [] if block_ms is None else ["BLOCK", block_ms]
        return command("XREAD", "COUNT", count, *block, "STREAMS", self._keys.log, position)

    def _claimed(self, connection: Any, batch: Batch, erased: int) -> bool:
        """Whether the batch is ours. Else the position is that of the group by now."""
        keys = [self._keys.log, self._keys.claims, self._keys.erased]
        count, who = len(batch.deliveries), self._settings.persister_name
        words: list[str | bytes | int] = ["FCALL", functions.CLAIM, len(keys), *keys, GROUP, who]
        words += [batch.position, erased, batch.last, count]
        self._position, claimed = self._kept(connection, *words)
        return bool(claimed)

    def _look(self) -> None:
        """Finds the position of the group. Where the log is new, or lost, it is made."""
        position = last_delivered(self._redis, self._keys.log)
        if position is None:
            # From its beginning on, since what is archived already is left out. And above all ids in the
            # archive, since they never come again.
            floor = ordinal_above(self._highest())
            with self._connection() as connection:
                self._call(connection, command("FCALL", functions.OPEN, 1, self._keys.log, GROUP, floor))
        self._position = str(position or StreamId(0, 0)).encode()

    def _take_over(self, connection: Any, idle_ms: int | None = None) -> Batch | None:
        """What was claimed and not settled: by this persister, or by whom that long ago."""
        who = self._settings.persister_name
        words: list[str | bytes | int] = ["FCALL", functions.TAKE_OVER, 1, self._keys.claims, who]
        if idle_ms is not None:
            words.append(idle_ms)
        while its := self._kept(connection, *words):
            position, last, count = its
            (deliveries,) = self._call(connection, command("XRANGE", self._keys.log, b"(" + position, last))
            self._report_lost(position, last, count - len(deliveries))
            batch = Batch(position, last, deliveries)
            if deliveries:
                return batch
            self._settle(connection, Settlement(batch, {}))
        return None

    def _report_lost(self, position: bytes, last: bytes, missing: int) -> None:
        """Counts what is not in the log any more, but for what somebody asked to be erased."""
        if missing <= 0:
            return
        first, end = StreamId.parse(position), StreamId.parse(last)
        noted: Any = self._redis.smembers(self._keys.erased)
        erased = [StreamId.parse(one) for one in noted if not one.startswith(ERASURE)]
        lost = missing - sum(first < one <= end for one in erased)
        if lost > 0:
            self.lost += lost
            log.error("%d entries were gone from the log before they were archived", lost)

    def _kept(self, connection: Any, *words: str | bytes | int) -> Any:
        """The answer of a function that gives out a batch, once the batch is where RELAY_WAITAOF wants it:
        the archive holds nothing that is lost with the primary, since its sender would send it again.

        WAITAOF waits for the last write of a connection, here that of the claim. So it also shows that this
        is the server that gave the batch out, and not one that took over without it.
        """
        durability = self._durability
        if durability is None:
            return self._call(connection, command(*words))[0]
        answer, kept = self._call(connection, command(*words), command(*durability.words))
        given_out = answer and answer[-1]
        if given_out and not durability.reached(kept):
            raise NotKept
        return answer

    def _settling(self, settlement: Settlement) -> list[bytes]:
        """The calls, as they go over the wire, each to be sent once the one before is answered, so that the
        server serves others in between. Only the last one ends the claim: who takes over does all again."""
        batch, newest, letters = settlement
        runs = list(newest.items())
        *most, rest = (runs[at : at + RUNS_AT_ONCE] for at in range(0, len(runs) or 1, RUNS_AT_ONCE))
        words = [word for letter in letters for word in (len(letter), *letter)]
        tidying = (self._tidying(functions.TIDY, batch, some) for some in most)
        return [*tidying, self._tidying(functions.SETTLE, batch, rest, *words)]

    def _tidying(
        self, function: str, batch: Batch, runs: Sequence[tuple[str, str]], *words: str | bytes | int
    ) -> bytes:
        keys = [self._keys.claims, self._keys.dead_letters, *(self._keys.run(run_id) for run_id, _ in runs)]
        bounds = int(self._settings.run_log_ttl_s * 1000), self._settings.run_log_entries
        newest = (stream_id for _, stream_id in runs)
        return command(
            "FCALL", function, len(keys), *keys, batch.position, batch.last, *bounds, *newest, *words
        )

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        pool = self._redis.connection_pool
        connection = pool.get_connection()
        try:
            yield connection
        finally:
            pool.release(connection)

    def _exchange(self, connection: Any, *commands: bytes) -> list[Any]:
        """The answers, refusals among them, to commands that are packed already: the driver would look at
        each of their words."""
        connection.send_packed_command([b"".join(commands)])
        return [_answer(connection) for _ in commands]

    def _call(self, connection: Any, *commands: bytes) -> list[Any]:
        """Sends commands, server-side functions among them. Where the library is missing it is loaded first,
        and all are repeated. Raises NoFunctions where it may not be."""
        answers = self._exchange(connection, *commands)
        if any(isinstance(answer, Exception) and functions.MISSING in str(answer) for answer in answers):
            loading = command("FUNCTION", "LOAD", "REPLACE", functions.LIBRARY)
            loaded, *answers = self._exchange(connection, loading, *commands)
            if isinstance(loaded, redis.exceptions.NoPermissionError):
                raise NoFunctions from loaded
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error


def _bytes_of(deliveries: Sequence[Delivery]) -> int:
    return sum([len(fields[-1]) for _, fields in deliveries])
