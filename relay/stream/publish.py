"""The write path: events into the logs of all shards, each shard by a lane of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby

from relay.link import Link
from relay.stream.calls import AppendCall
from relay.stream.entry import NewEvent
from relay.stream.keys import ShardKeys, shard_of_run
from relay.stream.lane import Lane, Settled

UNBOUNDED = 1 << 53
"""More runs, or keys, than there can be."""


class Publisher:
    """Appends events to the logs of all shards.

    `connect` makes a link for the write path of a shard. `floor` answers the highest event id that was ever
    given out as far as anybody knows; it is asked where a log has to be created.
    """

    def __init__(
        self,
        connect: Callable[[int], Link],
        floor: Callable[[], Awaitable[int]],
        *,
        shards: int,
        deadline_s: float,
        remember_ms: int,
        live_runs: int = UNBOUNDED,
        known_keys: int = UNBOUNDED,
    ) -> None:
        self._lanes = [
            Lane(
                connect,
                floor,
                deadline_s,
                ShardKeys(shard),
                AppendCall(ShardKeys(shard), remember_ms, live_runs, known_keys),
            )
            for shard in range(shards)
        ]

    async def append(self, events: Sequence[NewEvent], key: str | None = None) -> list[int]:
        """The ids of the events, in their order, once all are stored.

        With a key that was used for the same events before, these are the ids of then. Raises
        KeyReused, RunQuota, NotStored, or OutcomeUnknown. Events of several shards are several atomic steps;
        when a later one fails, a repeat with the same key completes the rest.
        """
        if len(self._lanes) == 1:
            return await self._lanes[0].append(events, key)
        ids = [0] * len(events)
        shards = [shard_of_run(event.run_id, len(self._lanes)) for event in events]
        places = sorted(range(len(events)), key=shards.__getitem__)
        for shard, group in groupby(places, key=shards.__getitem__):
            indexes = list(group)
            stored = await self._lanes[shard].append([events[index] for index in indexes], key)
            for index, id in zip(indexes, stored, strict=True):
                ids[index] = id
        return ids

    def submit(self, events: Sequence[NewEvent], key: str | None, settled: Settled) -> None:
        """Appends events of one shard, and tells how it went: `append` without a task that waits."""
        self._lanes[shard_of_run(events[0].run_id, len(self._lanes))].submit(events, key, settled)

    def spans_shards(self, events: Sequence[NewEvent]) -> bool:
        """Whether the events are not all of one shard, and so not for `submit`."""
        shards = len(self._lanes)
        return shards > 1 and len({shard_of_run(event.run_id, shards) for event in events}) > 1

    async def open(self) -> None:
        """Makes sure that every shard has its log, above all ids given out before. Raises NotStored."""
        for lane in self._lanes:
            await lane.open()

    @property
    def ever_stored(self) -> bool:
        """Whether every shard took something since the process started, be it that its log was opened."""
        return all(lane.trouble.ever_stored for lane in self._lanes)

    @property
    def reason(self) -> str | None:
        """Why the last append to a shard failed; None where those to all of them succeeded."""
        return next((lane.trouble.reason for lane in self._lanes if lane.trouble.reason), None)

    async def problem(self) -> str | None:
        """The reason, if it still holds: where an append failed, one without an event is tried."""
        await asyncio.gather(*(lane.attempt() for lane in self._lanes if lane.trouble.reason))
        return self.reason

    async def close(self) -> None:
        for lane in self._lanes:
            await lane.close()
