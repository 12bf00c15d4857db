"""This persister's side of the consumer group: what to store next, and what is stored."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import redis
import redis.exceptions

from persister.settings import Settings
from relay.errors import Unavailable
from relay.link import Durability, command
from relay.stream import functions
from relay.stream.keys import GROUP, ShardKeys, ordinal_above

log = logging.getLogger(__name__)

BLOCK_MS = 1_000
"""How long a read waits for news, and so how long a stop may take."""


Delivery = tuple[bytes, Sequence[bytes] | None]
"""An entry as the group delivered it: stream id, and fields. No fields: it is gone from the log. (The driver
gives lists of two; they are not all made anew to be tuples.)"""

FIRST_COUNT = 1000
GROWTH = 4
"""How many times as large as the last batch the next one may be, until it is known how large events are."""


class Settlement(NamedTuple):
    """What is stored: the ids of the entries, and the newest of each run, stored or about to be buried."""

    stream_ids: Sequence[bytes]
    newest: Mapping[str, str]


class NotKept(Unavailable):
    default = "The event log does not hold the batch in as many files as RELAY_WAITAOF asks for."


class Consumer:
    """One member of a shard's group. `highest` answers the highest id in the archive.

    Raises redis errors as they come: the loop starts anew on them.
    """

    def __init__(
        self, client: redis.Redis, shard: int, settings: Settings, highest: Callable[[], int]
    ) -> None:
        self._redis = client
        self._highest = highest
        # Replies as the server sends them: the fields of an entry in order, not as a dictionary.
        for name in ("XREADGROUP", "XAUTOCLAIM"):
            client.set_response_callback(name, lambda reply, **_: reply)
        self._keys = ShardKeys(shard)
        self._settings = settings
        self._durability = Durability(settings.waitaof) if settings.waitaof else None
        self._backlog = True
        self._claim_at = 0.0
        self._count = min(FIRST_COUNT, settings.persister_batch)
        self.full = False
        """Whether the last batch of new entries was as large as was asked for, so that more is likely."""
        self.lost = 0
        """Entries that were gone from the log before they were archived."""

    def restart(self) -> None:
        """After any error: what was delivered and not acknowledged comes first."""
        self._backlog = True

    def claim(self) -> list[Delivery]:
        """The next batch: own backlog, then what a silent peer left, then what is new. Waits for news; an
        empty batch says that there was none. Raises NotKept."""
        return self._kept(self._next())

    def _kept(self, batch: list[Delivery]) -> list[Delivery]:
        """The batch, once it is where RELAY_WAITAOF wants it: the archive holds nothing that is lost with the
        primary, since its sender would send it again.

        WAITAOF waits for the last write of a connection, so one that changes nothing goes before it. It also
        shows that this is the server that gave the batch out, and not one that took over without it.
        """
        durability, present = self._durability, [stream_id for stream_id, fields in batch if fields]
        if durability is None or not present:
            return batch
        with self._redis.pipeline(transaction=False) as pipe:
            name = self._settings.persister_name
            pipe.xclaim(self._keys.log, GROUP, name, 0, [present[-1]], justid=True)
            pipe.execute_command(*durability.words)  # type: ignore[no-untyped-call]
            claimed, kept = pipe.execute(raise_on_error=False)
        if claimed != present[-1:] or not durability.reached(kept):
            raise NotKept
        return batch

    def _next(self) -> list[Delivery]:
        if self._backlog:
            while batch := self._read("0"):
                if batch := self._without_erased(batch):
                    return batch
            self._backlog = False
        if time.monotonic() >= self._claim_at:
            batch = self._take_over()
            if batch:
                return batch
            self._claim_at = time.monotonic() + self._settings.persister_claim_s / 2
        return self._read(">")

    def claim_more(self, settlement: Settlement | None = None) -> list[Delivery]:
        """New entries beside a batch that is under way, without waiting for any; none where it is time to
        look for what comes before new ones. What is stored is acknowledged with it, in one round trip and
        so with one sync to the server's disk. Raises NotKept."""
        if self._backlog or time.monotonic() >= self._claim_at:
            if settlement:
                self.settle(settlement)
            return []
        if not settlement:
            return self._kept(self._read(">", wait=False))
        reading = command("XREADGROUP", *self._reading(">", wait=False))
        *settled, claimed = self._exchange(*self._settling(settlement), reading)
        if any(isinstance(answer, Exception) for answer in settled):
            self._backlog = True  # what was claimed with it is delivered again
            self.settle(settlement)
            return []
        return self._kept(self._claimed(claimed))

    def settle(self, settlement: Settlement) -> None:
        """Acknowledges what is stored."""
        self._call(*self._settling(settlement))

    def _settling(self, settlement: Settlement) -> list[bytes]:
        """The commands, as they go over the wire: the driver would look at each of thousands of ids.

        Most entries are acknowledged by a plain command, at half of what the function takes for each. The
        newest one of each run is left to the function, or is buried after it, since nobody else gives the run
        log its expiry: where the connection ends in between, these come again, and with them the function.
        """
        stream_ids, newest = settlement
        tips = {tip.encode() for tip in newest.values()}
        plain = [id for id in stream_ids if id not in tips]
        words: list[Any] = [1 + len(newest), self._keys.log, *map(self._keys.run, newest), GROUP]
        words += [int(self._settings.run_log_ttl_s * 1000), self._settings.run_log_entries]
        words += [*newest.values(), *(id for id in stream_ids if id in tips)]
        function = command("FCALL", functions.SETTLE, *words)
        return [command("XACK", self._keys.log, GROUP, *plain), function] if plain else [function]

    def _exchange(self, *commands: bytes) -> list[Any]:
        """The answers, refusals among them, to commands that are packed already."""
        pool = self._redis.connection_pool
        connection: Any = pool.get_connection()
        try:
            connection.send_packed_command([b"".join(commands)])
            return [_answer(connection) for _ in commands]
        finally:
            pool.release(connection)

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Moves an entry that can not be stored to the dead letters."""
        stream_id, fields = delivery
        letter: list[str | bytes] = [GROUP, stream_id, "id", stream_id, "reason", reason, *(fields or ())]
        self._call(command("FCALL", functions.BURY, 2, self._keys.log, self._keys.dead_letters, *letter))

    def _read(self, start: str, *, wait: bool = True) -> list[Delivery]:
        try:
            return self._claimed(self._command("XREADGROUP", *self._reading(start, wait=wait)))
        except redis.exceptions.ResponseError as error:
            return self._claimed(error)

    def _reading(self, start: str, *, wait: bool) -> list[Any]:
        block = ["BLOCK", BLOCK_MS] if wait else []
        name = self._settings.persister_name
        return ["GROUP", GROUP, name, "COUNT", self._count, *block, "STREAMS", self._keys.log, start]

    def _claimed(self, reply: Any) -> list[Delivery]:
        """The entries in an answer to XREADGROUP."""
        if isinstance(reply, redis.exceptions.ResponseError) and "NOGROUP" in str(reply):
            # The log is new, or lost: from its beginning on, since what is archived already is left out.
            # And above all ids in the archive, since they never come again.
            floor = ordinal_above(self._highest())
            self._call(command("FCALL", functions.OPEN, 1, self._keys.log, GROUP, floor))
            return []
        if isinstance(reply, Exception):
            raise reply
        batch: list[Delivery] = reply[0][1] if reply else []
        self.full = len(batch) >= self._count
        self._resize(batch)
        return batch

    def _resize(self, batch: Sequence[Delivery]) -> None:
        """The next batch may have as many entries as fit into its bytes, if they are as large as these."""
        if batch:
            size = sum([len(fields[-1]) for _, fields in batch if fields])
            fit = self._settings.persister_batch_bytes * len(batch) // max(size, 1)
            self._count = max(1, min(self._settings.persister_batch, fit, GROWTH * self._count))

    def _take_over(self) -> list[Delivery]:
        """Entries that a peer was given and did not acknowledge for long."""
        idle_ms = int(self._settings.persister_claim_s * 1000)
        arguments = [self._keys.log, GROUP, self._settings.persister_name, idle_ms, "0-0"]
        try:
            reply = self._command("XAUTOCLAIM", *arguments, "COUNT", self._count)
        except redis.exceptions.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return []
        if lost := len(reply[2]) - len(self._erased(reply[2])):
            self.lost += lost
            log.error("%d entries were gone from the log before they were archived", lost)
        batch: list[Delivery] = reply[1]
        return batch

    def _without_erased(self, batch: list[Delivery]) -> list[Delivery]:
        """The batch without what was erased, which is acknowledged: it is gone because somebody asked."""
        erased = self._erased([stream_id for stream_id, fields in batch if not fields])
        if erased:
            self._command("XACK", self._keys.log, GROUP, *erased)
        return [delivery for delivery in batch if delivery[0] not in erased]

    def _erased(self, gone: Sequence[bytes]) -> set[bytes]:
        """Which of these, that are gone from the log, were erased."""
        if not gone:
            return set()
        known = self._command("SMISMEMBER", self._keys.erased, *gone)
        return {stream_id for stream_id, is_known in zip(gone, known, strict=True) if is_known}

    def _command(self, *words: Any) -> Any:
        return self._redis.execute_command(*words)  # type: ignore[no-untyped-call]

    def _call(self, *commands: bytes) -> None:
        """Sends commands, server-side functions among them. Where the library is missing it is loaded first,
        and all are repeated."""
        answers = self._exchange(*commands)
        if any(isinstance(answer, Exception) and functions.MISSING in str(answer) for answer in answers):
            self._redis.function_load(functions.LIBRARY, replace=True)
            answers = self._exchange(*commands)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error
