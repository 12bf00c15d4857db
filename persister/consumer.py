"""This persister's side of the consumer group: what to store next, and what is stored."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import redis
import redis.exceptions

from persister.settings import Settings
from relay.errors import Unavailable
from relay.link import Durability
from relay.stream import functions
from relay.stream.keys import GROUP, ShardKeys, ordinal_above

log = logging.getLogger(__name__)

BLOCK_MS = 1_000
"""How long a read waits for news, and so how long a stop may take."""


class Delivery(NamedTuple):
    """An entry as the group delivered it. No fields: it is gone from the log."""

    stream_id: bytes
    fields: Sequence[bytes] | None


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
        for command in ("XREADGROUP", "XAUTOCLAIM"):
            client.set_response_callback(command, lambda reply, **_: reply)
        self._keys = ShardKeys(shard)
        self._settings = settings
        self._durability = Durability(settings.waitaof) if settings.waitaof else None
        self._backlog = True
        self._claim_at = 0.0
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

        WAITAOF waits for the last write of a connection, so one that changes nothing goes before it.
        """
        durability, present = self._durability, [item.stream_id for item in batch if item.fields]
        if durability is None or not present:
            return batch
        with self._redis.pipeline(transaction=False) as pipe:
            name = self._settings.persister_name
            pipe.xclaim(self._keys.log, GROUP, name, 0, [present[-1]], justid=True)
            pipe.execute_command(*durability.words)  # type: ignore[no-untyped-call]
            kept = pipe.execute(raise_on_error=False)[-1]
        if not durability.reached(kept):
            raise NotKept
        return batch

    def _next(self) -> list[Delivery]:
        if self._backlog:
            batch = self._read("0")
            if batch:
                return batch
            self._backlog = False
        if time.monotonic() >= self._claim_at:
            batch = self._take_over()
            if batch:
                return batch
            self._claim_at = time.monotonic() + self._settings.persister_claim_s / 2
        return self._read(">")

    def claim_more(self) -> list[Delivery]:
        """New entries beside a batch that is under way, without waiting for any; none where it is time to
        look for what comes before new ones. Raises NotKept."""
        if self._backlog or time.monotonic() >= self._claim_at:
            return []
        return self._kept(self._read(">", wait=False))

    def settle(self, batch: Sequence[Delivery], newest: dict[str, str]) -> None:
        """Acknowledges a batch that is stored. `newest` has the id of each run's newest entry in it."""
        self._call(
            functions.SETTLE,
            [self._keys.log, *map(self._keys.run, newest)],
            [
                GROUP,
                int(self._settings.run_log_ttl_s * 1000),
                self._settings.run_log_entries,
                b" ".join([delivery.stream_id for delivery in batch]),
                *newest.values(),
            ],
        )

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Moves an entry that can not be stored to the dead letters."""
        self._call(
            functions.BURY,
            [self._keys.log, self._keys.dead_letters],
            [GROUP, delivery.stream_id, "id", delivery.stream_id, "reason", reason, *(delivery.fields or ())],
        )

    def _read(self, start: str, *, wait: bool = True) -> list[Delivery]:
        arguments: list[Any] = ["GROUP", GROUP, self._settings.persister_name]
        arguments += ["COUNT", self._settings.persister_batch, *(["BLOCK", BLOCK_MS] if wait else [])]
        arguments += ["STREAMS", self._keys.log, start]
        try:
            reply = self._command("XREADGROUP", *arguments)
        except redis.exceptions.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            # The log is new, or lost: from its beginning on, since what is archived already is left out.
            # And above all ids in the archive, since they never come again.
            self._call(functions.OPEN, [self._keys.log], [GROUP, ordinal_above(self._highest())])
            return []
        return [Delivery(*item) for item in reply[0][1]] if reply else []

    def _take_over(self) -> list[Delivery]:
        """Entries that a peer was given and did not acknowledge for long."""
        idle_ms = int(self._settings.persister_claim_s * 1000)
        arguments = [self._keys.log, GROUP, self._settings.persister_name, idle_ms, "0-0"]
        try:
            reply = self._command("XAUTOCLAIM", *arguments, "COUNT", self._settings.persister_batch)
        except redis.exceptions.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return []
        if reply[2]:
            self.lost += len(reply[2])
            log.error("%d entries were gone from the log before they were archived", len(reply[2]))
        return [Delivery(*item) for item in reply[1]]

    def _command(self, *words: Any) -> Any:
        return self._redis.execute_command(*words)  # type: ignore[no-untyped-call]

    def _call(self, function: str, keys: Sequence[str], args: Iterable[Any]) -> Any:
        """Calls a server-side function; loads the library first where it is missing."""
        args = list(args)
        try:
            return self._redis.fcall(function, len(keys), *keys, *args)
        except redis.exceptions.ResponseError as error:
            if functions.MISSING not in str(error):
                raise
        self._redis.function_load(functions.LIBRARY, replace=True)
        return self._redis.fcall(function, len(keys), *keys, *args)
