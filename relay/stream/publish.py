"""The write path: events into the logs, many requests in one call.

Requests that arrive while a call is under way leave together in the next one. A call is one
server-side function: all of it is written, or nothing. It is never repeated by itself, since a lost
reply does not say whether it ran; whoever sends again does so with an idempotency key.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import NamedTuple

import redis.exceptions

from relay.connect import Link
from relay.errors import DatabaseUnavailable, KeyReused, NotStored, OutcomeUnknown, RelayError, RunQuota
from relay.stream import functions
from relay.stream.entry import NewEvent
from relay.stream.keys import GROUP, ShardKeys, StreamId, event_id, ordinal_above, shard_of_run

CALL_EVENTS = 1000
"""Events in one call: at some 10 µs each the server is not blocked for long. A larger request goes alone."""

NO_LOG = "NOLOG"
USED = -1
FULL = -2

UNBOUNDED = 1 << 53
"""More runs than there can be."""


class Group(NamedTuple):
    """What one request wants written, whole or not at all."""

    events: Sequence[NewEvent]
    key: str | None
    arrived: float
    first: asyncio.Future[int]


class Publisher:
    """Appends events to the logs of all shards.

    `connect` makes a link for the write path. `floor` answers the highest event id that was ever
    given out as far as anybody knows; it is asked where a log has to be created.
    """

    def __init__(
        self,
        connect: Callable[[], Link],
        floor: Callable[[], Awaitable[int]],
        *,
        shards: int,
        deadline_s: float,
        remember_ms: int,
        live_runs: int = UNBOUNDED,
    ) -> None:
        self._lanes = [
            _Lane(connect, floor, shard, deadline_s, remember_ms, live_runs) for shard in range(shards)
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

    async def open(self) -> None:
        """Makes sure that every shard has its log, above all ids given out before. Raises NotStored."""
        for lane in self._lanes:
            await lane.open()

    async def close(self) -> None:
        for lane in self._lanes:
            await lane.close()


class _Lane:
    """The one connection that writes to a shard, and what waits for it."""

    def __init__(
        self,
        connect: Callable[[], Link],
        floor: Callable[[], Awaitable[int]],
        shard: int,
        deadline_s: float,
        remember_ms: int,
        live_runs: int,
    ) -> None:
        self._link = connect()
        self._floor = floor
        self._shard = shard
        self._keys = ShardKeys(shard)
        self._deadline_s = deadline_s
        self._remember_ms = remember_ms
        self._live_runs = live_runs
        self._waiting: list[Group] = []
        self._sender: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._highest = 0

    async def append(self, events: Sequence[NewEvent], key: str | None) -> list[int]:
        first: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append(Group(events, key, self._loop.time(), first))
        if self._sender is None:
            self._sender = self._loop.create_task(self._send())
        ordinal = await first
        if ordinal == USED:
            raise KeyReused
        if ordinal == FULL:
            raise RunQuota
        return [event_id(StreamId.from_ordinal(ordinal + place), self._shard) for place in range(len(events))]

    async def _send(self) -> None:
        """Sends what waits until nothing does."""
        groups: Sequence[Group] = ()
        try:
            while self._waiting:
                groups = self._take()
                try:
                    async with asyncio.timeout_at(groups[0].arrived + self._deadline_s):
                        self._settle(groups, await self._append(groups))
                except TimeoutError:
                    # Those behind waited as long as those in the call, and the server did not answer.
                    _fail(groups, OutcomeUnknown())
                    _fail(self._waiting, NotStored())
                    self._waiting = []
                except RelayError as error:
                    _fail(groups, error)
        finally:
            self._sender = None
            _fail(groups, OutcomeUnknown())
            _fail(self._waiting, NotStored())
            self._waiting = []

    def _settle(self, groups: Sequence[Group], answers: Sequence[int]) -> None:
        for group, first in zip(groups, answers, strict=True):
            self._highest = max(self._highest, first + len(group.events) - 1)
            if not group.first.done():
                group.first.set_result(first)

    def _take(self) -> list[Group]:
        taken, events = 0, 0
        for group in self._waiting:
            events += len(group.events)
            if taken and events > CALL_EVENTS:
                break
            taken += 1
        groups, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return groups

    async def _append(self, groups: Sequence[Group]) -> list[int]:
        keys, args = self._arguments(groups)
        try:
            return await self._call(functions.APPEND, keys, args)
        except _NoLog:
            await self._open()
            return await self._call(functions.APPEND, keys, args)

    def _arguments(self, groups: Sequence[Group]) -> tuple[list[str], list[str | bytes | int]]:
        """KEYS and ARGV of the append function."""
        runs: dict[str, int] = {}
        for group in groups:
            for event in group.events:
                runs.setdefault(event.run_id, len(runs) + 2)
        keys = [self._keys.log, *map(self._keys.run, runs)]
        args: list[str | bytes | int] = [len(runs), self._remember_ms, self._highest, self._live_runs]
        for group in groups:
            if group.key is None:
                args += (0, b"", len(group.events))
            else:
                keys.append(self._keys.once(group.key))
                args += (len(keys), _digest(group.events), len(group.events))
            for event in group.events:
                args += (runs[event.run_id], event.run_id, event.kind, event.text)
        keys.append(self._keys.runs)
        return keys, args

    async def open(self) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._open()
        except (TimeoutError, OutcomeUnknown) as error:
            raise NotStored from error

    async def _open(self) -> None:
        """Creates the log, or lifts it above the highest id known: ids never come again."""
        try:
            floor = max(ordinal_above(await self._floor()), self._highest)
        except DatabaseUnavailable as error:
            raise NotStored from error
        await self._call(functions.OPEN, [self._keys.log], [GROUP, floor])

    async def _call(self, function: str, keys: list[str], args: Sequence[str | bytes | int]) -> list[int]:
        """One call. Where the library is missing it did not run, so it is loaded and called again."""
        await self._connect()
        try:
            try:
                return await self._fcall(function, keys, args)
            except redis.exceptions.ResponseError as error:
                if functions.MISSING not in str(error):
                    raise
            await self._link.command("FUNCTION", "LOAD", "REPLACE", functions.LIBRARY)
            return await self._fcall(function, keys, args)
        except redis.exceptions.BusyLoadingError as error:
            raise NotStored from error
        except redis.exceptions.ResponseError as error:
            # The server refused before the first write: out of memory, read-only, a foreign key.
            raise (_NoLog if str(error).startswith(NO_LOG) else NotStored) from error
        except (redis.exceptions.RedisError, OSError) as error:
            await self._link.drop()
            raise OutcomeUnknown from error
        except asyncio.CancelledError:
            await self._link.drop()
            raise

    async def _fcall(self, function: str, keys: list[str], args: Sequence[str | bytes | int]) -> list[int]:
        answer: list[int] = await self._link.command("FCALL", function, len(keys), *keys, *args)
        return answer

    async def _connect(self) -> None:
        try:
            await self._link.connect()
        except (redis.exceptions.RedisError, OSError) as error:
            await self._link.drop()
            raise NotStored from error

    async def close(self) -> None:
        if self._sender is not None:
            await asyncio.wait([self._sender])
        await self._link.drop()


class _NoLog(NotStored):
    """The shard log does not exist."""


def _digest(events: Sequence[NewEvent]) -> str:
    digest = blake2b(digest_size=16)
    for event in events:
        for part in (event.run_id.encode(), event.kind.encode(), event.text):
            digest.update(len(part).to_bytes(4) + part)
    return digest.hexdigest()


def _fail(groups: Sequence[Group], error: RelayError) -> None:
    for group in groups:
        if not group.first.done():
            group.first.set_exception(error)
