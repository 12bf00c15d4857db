"""What a web worker shows to Prometheus: what it counted, and what it finds out when it is asked."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import redis.exceptions
from prometheus_client.core import Metric

from relay import lag, metrics
from relay.exposition import counted, gauge
from relay.http.ops import Health, on_loop
from relay.http.seats import Seats
from relay.http.viewing import Shard
from relay.lag import Lag
from relay.link import SharedLink
from relay.stream.keys import StreamId

READ_S = 8.0
"""How long a scrape waits for the stores: below Prometheus's own 10 s."""


class Found(NamedTuple):
    """What had to be asked for."""

    up: Mapping[str, bool]
    """Of each dependency."""
    lags: Mapping[int, Lag]
    """By shard; without those that have no log, and empty without Redis."""


class Figures:
    """The figures of a worker. `collect` is for another thread than the event loop's."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        health: Health,
        links: Sequence[SharedLink],
        shards: Sequence[Shard],
        seats: Seats,
    ) -> None:
        self._loop = loop
        self._health = health
        self._links = links
        self._shards = shards
        self._seats = seats

    def collect(self) -> Iterator[Metric]:
        """All figures; without those that the stores have, where the event loop is stuck."""
        yield from counted(metrics.ALL)
        yield gauge("relay_viewers", "Streams that are open", "", {"": len(self._seats)})
        asked, began = time.monotonic(), list[float]()

        async def find() -> Found:
            began.append(time.monotonic())
            return await self._find()

        try:
            found = on_loop(self._loop, find, READ_S)()
        except TimeoutError:
            found = None
        yield gauge("relay_loop_lag_seconds", _LOOP_LAG, "", {"": (began or [time.monotonic()])[0] - asked})
        if found is not None:
            up = {name: float(there) for name, there in found.up.items()}
            yield gauge("relay_dependency_up", "Whether a store answers, and takes events", "dependency", up)
            yield from self._behind(found.lags)

    async def _find(self) -> Found:
        up = {name: not problem for name, problem in (await self._health.problems()).items()}
        found = {}
        try:
            for shard in range(len(self._shards) if up["redis"] else 0):
                found[shard] = await lag.look(self._links[shard], shard)
        except (redis.exceptions.RedisError, OSError):
            found = {}
        return Found(up, {shard: its for shard, its in found.items() if its})

    def _behind(self, lags: Mapping[int, Lag]) -> Iterator[Metric]:
        for name, (text, read) in _LAGS.items():
            values = {str(shard): value for shard, its in lags.items() if (value := read(its)) is not None}
            yield gauge(name, text, "shard", values)
        tailers = {}
        for shard, its in lags.items():
            position = self._shards[shard].tailer.position
            reached = StreamId.parse(position) if position else its.top
            behind_s = (its.top.ms - reached.ms) / 1000
            tailers[str(shard)] = max(0.0, behind_s)
        yield gauge(
            "relay_tailer_lag_seconds",
            "From the newest event that the worker's viewers were given to the newest one there is",
            "shard",
            tailers,
        )


_LOOP_LAG = "How long this scrape waited until the worker had time for it"

_LAGS: Mapping[str, tuple[str, Callable[[Lag], float | None]]] = {
    "relay_log_entries": ("Entries in the shard log, archived or not", lambda its: its.entries),
    "relay_log_newest_age_seconds": ("Age of the newest event", lambda its: its.newest_age_s),
    "relay_archive_pending_events": ("Events that persisters are at", lambda its: its.pending),
    "relay_archive_waiting_events": ("Events that no persister has taken yet", lambda its: its.waiting),
    "relay_archive_oldest_age_seconds": (
        "Age of the oldest event that is not archived; 0 where all are",
        lambda its: its.oldest_age_s,
    ),
    "relay_dead_letters": (
        "Events that could not be archived, and wait for somebody",
        lambda its: its.dead_letters,
    ),
}
