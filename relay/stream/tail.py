"""One blocking read per worker and watched shard, from the shard log to the hub.

The outer loop reconnects; the inner one may raise. Each time it starts anew it starts at the top of the
log, and everybody in the hub has to read what came before from the run logs.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import redis.exceptions

from relay.connect import BLOCK_GRACE_S, BLOCK_MS
from relay.errors import Unavailable
from relay.hub import Hub
from relay.link import Link, bulk
from relay.sse import Frame
from relay.stream.entry import MalformedEntry, decode_record, frame, run_of
from relay.stream.keys import ShardKeys, StreamId, top_of

log = logging.getLogger(__name__)

BATCH = 500
"""Entries in one read: with the largest of them, a reply of some 100 MB, and a busy loop for long."""

LONG_S = 0.001
TURNS = 3
"""Turns of the event loop before the next read, where the hub wrote for as long as that: one sees what came
in meanwhile, the next sends it to Redis, and the read brings that as well, in one write for each viewer."""

BACKOFF_S = (0.05, 2.0)
STALLED_S = 30.0
"""A tailer that was not run for that long, since its process or machine was stopped, does not trust its
place: the log may have been trimmed meanwhile."""

DEAF_S = BLOCK_MS / 1000 + BLOCK_GRACE_S / 2
"""An idle log answers once a block. A tailer that heard nothing for that long soon gives up its
connection, and should have no new viewers meanwhile."""


class LostPlace(Exception):
    """The log does not go on where the tailer was."""


class Tailer:
    """Follows the log of one shard while somebody watches it."""

    def __init__(self, connect: Callable[[int], Link], hub: Hub, shard: int) -> None:
        self._link = connect(shard)
        self._hub = hub
        self._shard = shard
        self._log = ShardKeys(shard).log
        words: list[str | int] = ["XREAD", "COUNT", BATCH, "BLOCK", BLOCK_MS, "STREAMS", self._log]
        self._read_after = b"*%d\r\n" % (len(words) + 1) + b"".join(map(bulk, words))
        self._ready = asyncio.Event()
        self.position: bytes | None = None
        """The stream id up to which the hub has the news; None while nobody watches."""
        self._clock = asyncio.get_running_loop().time
        self._heard = math.inf

    @property
    def deaf(self) -> bool:
        """Whether somebody watches, and Redis did not answer for longer than it may."""
        return self._clock() - self._heard > DEAF_S

    async def ready(self, timeout_s: float | None = None) -> None:
        """Waits until what is appended from now on reaches the hub. Raises Unavailable after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError as error:
            raise Unavailable("The event log is not available; connect again later.") from error

    async def run(self) -> NoReturn:
        """Follows the log for ever."""
        delay = BACKOFF_S[0]
        while True:
            await self._watched()
            try:
                await self._follow()
                delay = BACKOFF_S[0]
            except (redis.exceptions.RedisError, OSError, LostPlace) as error:
                log.warning("tailer of shard %d starts anew: %s", self._shard, type(error).__name__)
                if self._ready.is_set():
                    delay = BACKOFF_S[0]
                await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311
                delay = min(2 * delay, BACKOFF_S[1])
            finally:
                self._ready.clear()
                self.position = None
                await self._link.drop()

    async def _watched(self) -> None:
        """Waits until somebody watches; before, there is nothing to hear."""
        if not self._hub.watched.is_set():
            self._heard = math.inf
            await self._hub.watched.wait()
        self._heard = min(self._heard, self._clock())

    async def _follow(self) -> None:
        """From the top of the log on, until nobody watches any more."""
        await self._link.connect()
        position = self.position = str(await self._top()).encode()
        self._hub.hold_all()
        self._ready.set()
        self._heard = self._clock()
        while self._hub.watched.is_set():
            position = await self._stream(position)
            if await self._top() < StreamId.parse(position):
                raise LostPlace

    async def _stream(self, position: bytes) -> bytes:
        """Hands on what comes after the position. Answers the last position once no more comes, or nobody
        watches. News goes from the link to the hub in one call, without a task on the way."""
        quiet: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._read(position, quiet)
        return await quiet

    def _read(self, position: bytes, quiet: "asyncio.Future[bytes]") -> None:
        self._link.ask(self._read_after + bulk(position), partial(self._news, position, quiet))

    def _read_on(self, position: bytes, quiet: "asyncio.Future[bytes]", turns: int) -> None:
        if quiet.done():  # this was cancelled
            return
        if turns:
            asyncio.get_running_loop().call_soon(self._read_on, position, quiet, turns - 1)
            return
        try:
            self._read(position, quiet)
        except Exception as error:
            quiet.set_exception(error)

    def _news(self, position: bytes, quiet: "asyncio.Future[bytes]", reply: Any) -> None:
        if quiet.done():  # this was cancelled
            return
        try:
            self._listen(reply)
            # Redis 7.0 also answers where what came is gone again: with the log, and nothing in it.
            entries = reply[0][1] if reply else ()
            began = time.monotonic()
            if entries:
                self._dispatch(entries)
                position = self.position = entries[-1][0]
            if entries and self._hub.watched.is_set():
                self._read_on(position, quiet, TURNS if time.monotonic() - began > LONG_S else 0)
            else:
                quiet.set_result(position)
        except Exception as error:
            quiet.set_exception(error)

    def _listen(self, reply: Any) -> None:
        """Raises what was answered where that is an error, and LostPlace where it comes too late."""
        if isinstance(reply, Exception):
            raise reply
        # From answer to answer, so that no moment in between is left out in which it may be stopped.
        before, self._heard = self._heard, self._clock()
        if self._heard - before > STALLED_S:
            raise LostPlace

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
            if not watches(run_of(fields[1])):
                continue
            try:
                record = decode_record(stream_id, fields, self._shard)
            except MalformedEntry as error:
                log.error("an entry of shard %d was passed over: %s", self._shard, error)
                continue
            news = frame(record)
            if news is not None:
                runs.setdefault(record.run_id, []).append(news)
        for run_id, frames in runs.items():
            self._hub.dispatch(run_id, frames)
        self._hub.flush()
