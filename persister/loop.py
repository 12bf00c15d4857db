"""The drain, in the one order that loses nothing: claim, decode, insert and commit, settle.

While a full batch is being inserted, its rows made as PostgreSQL takes them, the one before is settled, the
next one decoded, and one more claimed: PostgreSQL, Redis and this process then work at the same time.
"""

import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import redis
import redis.exceptions

from persister.consumer import Batch, Consumer, Delivery, NoFunctions, NotKept, Settlement
from persister.metrics import Figures
from persister.settings import Settings
from persister.store import Rejected, Store
from relay.errors import Unavailable
from relay.events.registry import REGISTRY
from relay.reasons import why
from relay.stream.entry import Entry, MalformedEntry, decode, named
from relay.stream.keys import stream_id

if TYPE_CHECKING:
    from relay.spans import Spans

log = logging.getLogger(__name__)

BACKOFF_S = (0.1, 5.0)
TRIM_EVERY_S = 5.0

LETTER_WORDS = 1000
"""As many words of an entry as a server-side function can surely pass on. Those of the relay have six."""


class Prepared(NamedTuple):
    """A batch, decoded. `malformed` are those that can not be stored, with the reason;
    `newest` has the stream id of the last entry of each run, whatever becomes of it."""

    batch: Batch
    entries: Sequence[Entry]
    malformed: Sequence[tuple[Delivery, str]]
    newest: Mapping[str, str]


class Stored(NamedTuple):
    """A batch whose transaction has ended, and when. `rejected` is what of it could not be stored."""

    prepared: Prepared
    rejected: Sequence[Rejected]
    took_s: float
    ended_ns: int

    @property
    def refused(self) -> dict[bytes, str]:
        """Why PostgreSQL did not take an entry, by its stream id."""
        return {str(stream_id(entry.id)).encode(): reason for entry, reason in self.rejected}


class Loop:
    """Drains one shard until it is stopped. Any number of them, in whatever processes, share the work."""

    def __init__(
        self, client: redis.Redis, store: Store, shard: int, settings: Settings, spans: "Spans | None" = None
    ) -> None:
        # The archive has one connection, which one thread uses; and one turns from batch to batch in Redis.
        self._inserter = ThreadPoolExecutor(1, thread_name_prefix="insert")
        self._turner = ThreadPoolExecutor(1, thread_name_prefix="turn")
        self._consumer = Consumer(client, shard, settings, self._highest)
        self._store = store
        self._shard = shard
        self._spans = spans
        self._retention = timedelta(seconds=settings.log_retention_s)
        self._trim_at = 0.0
        self._stopped = threading.Event()
        self._ahead: Batch | None = None
        self._next: Prepared | None = None
        self._stored: Stored | None = None
        self._began: float | None = None
        self.figures = Figures()

    @property
    def busy_s(self) -> float:
        """How long the step at hand has taken. May be asked from another thread."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def lost(self) -> int:
        """Entries that were gone from the log before they were archived."""
        return self._consumer.lost

    def _highest(self) -> int:
        return self._inserter.submit(self._store.highest).result()

    def stop(self) -> None:
        """Lets the batch at hand finish: committed and settled, or neither."""
        self._stopped.set()

    def run(self) -> None:
        """The outer loop: whatever is away is waited for, with nothing settled meanwhile."""
        delay = BACKOFF_S[0]
        while self._next or self._ahead or not self._stopped.is_set():
            try:
                self.step()
                self.figures.went_on()
                delay = BACKOFF_S[0]
            except (redis.exceptions.RedisError, OSError, Unavailable) as error:
                log.warning("shard %d: %s; trying again", self._shard, why(error))
                self.figures.failed(_cause(error), why(error))
                self._ahead = self._next = self._stored = None
                self._consumer.restart()
                self._stopped.wait(delay * random.uniform(0.5, 1))  # noqa: S311
                delay = min(2 * delay, BACKOFF_S[1])
        self._turner.shutdown()
        self._inserter.shutdown()
        self._store.close()

    def step(self) -> int:
        """One batch; answers how many entries it had, none where there was no news.

        While it is inserted, the one before is settled, the one behind it decoded, and one more claimed.
        Where there is none behind it, it is settled at once.
        """
        self._began = time.monotonic()
        try:
            return self._step()
        finally:
            self._began = None

    def _step(self) -> int:
        prepared = self._take_next()
        if prepared:
            before, inserting = self._stored, self._inserter.submit(self._insert, prepared)
            try:
                self._look_ahead()
                self._trace(before)  # while PostgreSQL has this one
            finally:
                self._stored = before = inserting.result()
            if not self._next and (settlement := self._settlement()):
                self._consumer.settle(settlement)
                self._trace(before)
        self._trim()
        return len(prepared.batch.deliveries) if prepared else 0

    def _insert(self, prepared: Prepared) -> Stored:
        """Stores a batch. On the archive's own thread."""
        began = time.monotonic()
        rejected = self._store.insert(prepared.entries)
        took_s = time.monotonic() - began
        if prepared.entries:
            self.figures.stored(len(prepared.entries) - len(rejected), took_s)
        return Stored(prepared, rejected, took_s, time.time_ns())

    def _look_ahead(self) -> None:
        """Settles the batch before, and claims and decodes those behind it."""
        settlement = self._settlement()
        while self._consumer.full and not self._stopped.is_set():
            claiming = self._turner.submit(self._consumer.claim_more, settlement)
            try:
                self._next = self._next or self._take_ahead()
            finally:
                self._ahead = claiming.result()
            settlement = None
            if self._next or not self._ahead:
                return
        if settlement:
            self._consumer.settle(settlement)
        self._next = self._next or self._take_ahead()

    def _take_next(self) -> Prepared | None:
        prepared, self._next = self._next or self._take_ahead(), None
        if prepared:
            return prepared
        batch = self._consumer.claim()
        return self._decoded(batch) if batch else None

    def _take_ahead(self) -> Prepared | None:
        """What was claimed ahead, decoded."""
        ahead, self._ahead = self._ahead, None
        return self._decoded(ahead) if ahead else None

    def _settlement(self) -> Settlement | None:
        """Of what is stored, now that it is. What could not be stored goes to the dead letters with it."""
        if self._stored is None:
            return None
        ended, self._stored = self._stored, None
        prepared = ended.prepared
        bad = ended.refused | {delivery[0]: reason for delivery, reason in prepared.malformed}
        deliveries = prepared.batch.deliveries if bad else ()
        letters = [self._letter(one, bad[one[0]]) for one in deliveries if one[0] in bad]
        return Settlement(prepared.batch, prepared.newest, letters)

    def _trace(self, ended: Stored | None) -> None:
        """Makes the spans of a batch, once it is settled: until then it may come again."""
        if self._spans and ended:
            self._spans.archived(_outcomes(ended), ended.took_s, ended.ended_ns)

    def _letter(self, delivery: Delivery, reason: str) -> list[str | bytes]:
        """An entry that can not be stored, as a dead letter."""
        stream_id, fields = delivery
        if len(fields) > LETTER_WORDS:
            reason, fields = f"{reason} (its first {LETTER_WORDS} words are kept)", fields[:LETTER_WORDS]
        log.error("entry %s goes to the dead letters: %s", stream_id.decode(), reason)
        self.figures.dead_letters += 1
        return ["id", stream_id, "reason", reason, *fields]

    def _decoded(self, batch: Batch) -> Prepared:
        decoded: list[Entry] = []
        malformed: list[tuple[Delivery, str]] = []
        unread: list[tuple[str, int]] = []
        for delivery in batch.deliveries:
            try:
                entry = decode(*delivery, self._shard)
            except MalformedEntry as error:
                malformed.append((delivery, str(error)))
                unread += filter(None, [named(*delivery, self._shard)])
                continue
            decoded.append(entry)
            if entry.kind not in REGISTRY:
                malformed.append((delivery, "its kind is not known to this version"))
        entries = [entry for entry in decoded if entry.kind in REGISTRY] if malformed else decoded
        return Prepared(batch, entries, malformed, _newest_of_runs(decoded, unread))

    def _trim(self) -> None:
        if time.monotonic() >= self._trim_at:
            self._trim_at = time.monotonic() + TRIM_EVERY_S
            self._consumer.trim(self._retention)


def _outcomes(stored: Stored) -> Iterator[tuple[Sequence[bytes], bool]]:
    """The fields of the entries of a batch, and whether they were stored; not of those that are no events."""
    malformed = {delivery[0] for delivery, _ in stored.prepared.malformed}
    refused = stored.refused
    for id, fields in stored.prepared.batch.deliveries:
        if id not in malformed:
            yield fields, id not in refused


def _newest_of_runs(entries: Sequence[Entry], unread: Sequence[tuple[str, int]]) -> dict[str, str]:
    """The stream id of the newest entry of each run. `unread`: run and id of those that are damaged."""
    newest: dict[str, int] = {}
    for entry in entries:
        newest[entry.run_id] = max(entry.id, newest.get(entry.run_id, 0))
    for run_id, id in unread:
        newest[run_id] = max(id, newest.get(run_id, 0))
    return {run_id: str(stream_id(id)) for run_id, id in newest.items()}


def _cause(error: Exception) -> str:
    """Who is at fault, for the figures."""
    if isinstance(error, NotKept):
        return "waitaof"
    archive = isinstance(error, Unavailable) and not isinstance(error, NoFunctions)
    return "postgres" if archive else "redis"
