"""One blocking read per worker and watched shard, from the shard log to the hub.

The outer loop reconnects; the inner one may raise. Each time it starts anew it starts at the top of the
log, and everybody in the hub has to read what came before from the run logs.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

import redis.exceptions

from relay.connect import BLOCK_MS
from relay.errors import Unavailable
from relay.hub import Hub
from relay.link import Link, bulk
from relay.sse import Frame
from relay.stream.entry import MalformedEntry, decode, frame
from relay.stream.keys import ShardKeys, StreamId, top_of

log = logging.getLogger(__name__)

BATCH = 500
"""Entries in one read: with the largest of them, a reply of some 100 MB, and a busy loop for long."""

BACKOFF_S = (0.05, 2.0)
STALLED_S = 30.0
"""A tailer that was not run for that long, since its process or machine was stopped, does not trust its
place: the log may have been trimmed meanwhile."""


class LostPlace(Exception):
    """The log does not go on where the tailer was."""


class Tailer:
    """Follows the log of one shard while somebody watches it."""

    def __init__(self, connect: Callable[[], Link], hub: Hub, shard: int) -> None:
        self._link = connect()
        self._hub = hub
        self._shard = shard
        self._log = ShardKeys(shard).log
        words: list[str | int] = ["XREAD", "COUNT", BATCH, "BLOCK", BLOCK_MS, "STREAMS", self._log]
        self._read_after = b"*%d\r\n" % (len(words) + 1) + b"".join(map(bulk, words))
        self._ready = asyncio.Event()
        self.position: bytes | None = None
        """The stream id up to which the hub has the news; None while nobody watches."""

    async def ready(self, timeout_s: float | None = None) -> None:
        """Waits until what is appended from now on reaches the hub. Raises Unavailable after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError as error:
            raise Unavailable("The event log is not available; connect again later.") from error

    async def run(self) -> None:
        """Follows the log for ever."""
        delay = BACKOFF_S[0]
        while True:
            await self._hub.watched.wait()
            try:
                await self._follow()
                delay = BACKOFF_S[0]
            except Exception as error:
                expected = isinstance(error, redis.exceptions.RedisError | OSError | LostPlace)
                log.warning(
                    "tailer of shard %d starts anew: %s",
                    self._shard,
                    type(error).__name__,
                    exc_info=None if expected else error,
                )
                if self._ready.is_set():
                    delay = BACKOFF_S[0]
                await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311
                delay = min(2 * delay, BACKOFF_S[1])
            finally:
                self._ready.clear()
                self.position = None
                await self._link.drop()

    async def _follow(self) -> None:
        """From the top of the log on, until nobody watches any more."""
        clock = asyncio.get_running_loop().time
        await self._link.connect()
        position = self.position = str(await self._top()).encode()
        self._hub.hold_all()
        self._ready.set()
        heard = clock()
        while self._hub.watched.is_set():
            entries = await self._read(position)
            # From answer to answer, so that no moment in between is left out in which it may be stopped.
            before, heard = heard, clock()
            if heard - before > STALLED_S:
                raise LostPlace
            if entries:
                self._dispatch(entries)
                position = self.position = entries[-1][0]
            elif await self._top() < StreamId.parse(position):
                raise LostPlace

    async def _read(self, position: bytes) -> Sequence[tuple[bytes, list[bytes]]]:
        reply = await self._link.send(self._read_after + bulk(position))
        return reply[0][1] if reply else ()

    async def _top(self) -> StreamId:
        """The highest id that the log ever held; zero where there is no log."""
        try:
            info = await self._link.command("XINFO", "STREAM", self._log)
        except redis.exceptions.ResponseError as error:
            if "no such key" in str(error):
                return StreamId(0, 0)
            raise
        return top_of(info)

    def _dispatch(self, entries: Sequence[tuple[bytes, list[bytes]]]) -> None:
        """Hands the frames of watched runs to the hub; the others are not even decoded."""
        runs: dict[str, list[Frame]] = {}
        watches = self._hub.watches
        for stream_id, fields in entries:
            if not watches(fields[1].decode()):
                continue
            try:
                entry = decode(stream_id, fields, self._shard)
            except MalformedEntry as error:
                log.error("an entry of shard %d was passed over: %s", self._shard, error)
                continue
            news = frame(entry.record)
            if news is not None:
                runs.setdefault(entry.run_id, []).append(news)
        for run_id, frames in runs.items():
            self._hub.dispatch(run_id, frames)
        self._hub.flush()
