"""The drain, in the one order that loses nothing: claim, decode, insert and commit, acknowledge."""

import logging
import random
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

import redis
import redis.exceptions

from persister.consumer import Consumer, Delivery
from persister.settings import Settings
from persister.store import Store
from persister.trim import INTERVAL, trim
from relay.errors import Unavailable
from relay.events.registry import REGISTRY
from relay.stream.entry import Entry, MalformedEntry, decode
from relay.stream.keys import stream_id

log = logging.getLogger(__name__)

BACKOFF_S = (0.1, 5.0)


class Loop:
    """Drains one shard until it is stopped. Any number of them, in whatever processes, share the work."""

    def __init__(self, client: redis.Redis, store: Store, shard: int, settings: Settings) -> None:
        self._redis = client
        self._consumer = Consumer(client, shard, settings, store.highest)
        self._store = store
        self._shard = shard
        self._retention = timedelta(seconds=settings.log_retention_s)
        self._trim_at = 0.0
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Lets the batch at hand finish: committed and acknowledged, or neither."""
        self._stopped.set()

    def run(self) -> None:
        """The outer loop: whatever is away is waited for, with nothing acknowledged meanwhile."""
        delay = BACKOFF_S[0]
        while not self._stopped.is_set():
            try:
                self.step()
                delay = BACKOFF_S[0]
            except (redis.exceptions.RedisError, OSError, Unavailable) as error:
                log.warning("shard %d: %s; trying again", self._shard, _reason(error))
                self._consumer.restart()
                self._stopped.wait(delay * random.uniform(0.5, 1))  # noqa: S311
                delay = min(2 * delay, BACKOFF_S[1])
        self._store.close()

    def step(self) -> int:
        """One batch; answers how many entries it had."""
        batch = self._consumer.claim()
        entries, malformed = self._decode(batch)
        rejected = self._store.insert(entries)
        deliveries = {delivery.stream_id: delivery for delivery in batch}
        for entry, reason in rejected:
            self._bury(deliveries.pop(str(stream_id(entry.id)).encode()), reason)
        for delivery, reason in malformed:
            self._bury(deliveries.pop(delivery.stream_id), reason)
        if deliveries:
            self._consumer.settle(list(deliveries.values()), _newest_of_runs(entries))
        self._trim()
        return len(batch)

    def _decode(self, batch: Sequence[Delivery]) -> tuple[list[Entry], list[tuple[Delivery, str]]]:
        """The entries, and what is none, with the reason."""
        entries: list[Entry] = []
        malformed: list[tuple[Delivery, str]] = []
        for delivery in batch:
            try:
                entry = decode(delivery.stream_id, delivery.fields, self._shard)
            except MalformedEntry as error:
                malformed.append((delivery, str(error)))
                continue
            if entry.kind in REGISTRY:
                entries.append(entry)
            else:
                malformed.append((delivery, "its kind is not known to this version"))
        return entries, malformed

    def _bury(self, delivery: Delivery, reason: str) -> None:
        log.error("entry %s goes to the dead letters: %s", delivery.stream_id.decode(), reason)
        self._consumer.bury(delivery, reason)

    def _trim(self) -> None:
        if time.monotonic() >= self._trim_at:
            self._trim_at = time.monotonic() + INTERVAL.total_seconds()
            trim(self._redis, self._shard, self._retention)


def _newest_of_runs(entries: Sequence[Entry]) -> dict[str, str]:
    """The stream id of the newest entry of each run."""
    newest: dict[str, int] = {}
    for entry in entries:
        newest[entry.run_id] = max(entry.id, newest.get(entry.run_id, 0))
    return {run_id: str(stream_id(id)) for run_id, id in newest.items()}


def _reason(error: Exception) -> str:
    """For the log: the relay's own words, and only the name of anybody else's error."""
    return str(error) if isinstance(error, Unavailable) else type(error).__name__
