"""What a viewer missed: from the run log, and from the archive where the run log does not reach.

Both are asked for the event at the viewer's position *and* what follows. Only where that very event
comes first in the answer is there certainly no hole behind it. (Before START there is nothing, so from
there on all that both hold is without a hole.)
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import redis.exceptions
from pydantic_core import from_json

from relay.errors import Unavailable
from relay.events.registry import AT_WORK, CHANGING, ENDING, INITIAL_KEYS, LISTED, REGISTRY, TABLES
from relay.link import SharedLink
from relay.sharing import Sharing
from relay.sse import Framing
from relay.stream.entry import MalformedEntry, Record, decode_record, frame
from relay.stream.keys import (
    EPOCH_MS,
    MAX_EVENT_ID,
    START,
    ShardKeys,
    event_id,
    id_of,
    shard_of_run,
    stream_id,
    top_of,
)
from relay.turns import Turns

log = logging.getLogger(__name__)


NO_LOG = "The event log is not available; connect again later."

Reply = Sequence[tuple[bytes, Sequence[bytes]]]
"""Entries as the server sends them."""

AT_ONCE = 2
"""Pages that are read at a time, for all viewers of a worker: each keeps the event loop for milliseconds."""

LATE = 50
"""Events that a run may send after its end before only the database knows that it is over."""


class Archive(Protocol):
    """The part of history that replay needs."""

    async def records(
        self, run_ids: Sequence[str], first: int, before: int | None, limit: int
    ) -> Sequence[Record]:
        """Records of these runs with first <= id < before, in order."""
        ...

    def payloads(self, table: str, run_id: str, before: int) -> AsyncIterator[bytes]:
        """The payloads in a table with id < before, in order: pages, each joined by commas."""
        ...

    async def reaching(self, run_id: str, before: int) -> Collection[str]:
        """The tables that have anything of the run with id < before."""
        ...

    async def newest(self, run_id: str) -> int:
        """The highest id of the run, or START."""
        ...


class Page:
    """Records that follow a position. `end` is the end of the run, where it is among them or at the
    position. `more`: there may be more to read at once."""

    def __init__(self, records: Sequence[Record], end: Record | None, *, more: bool) -> None:
        self.records = records
        self.end = end
        self.more = more
        self._blocks: dict[Framing, bytes] = {}

    def blocks(self, framing: Framing) -> bytes:
        """The records as viewers of the run get them, but for its end: encoded once for all."""
        if framing not in self._blocks:
            frames = [
                made for record in self.records if record.kind not in ENDING and (made := frame(record))
            ]
            self._blocks[framing] = b"".join(made.block(framing) for made in frames)
        return self._blocks[framing]


class Snapshot(NamedTuple):
    """All that happened in a run up to and with the event `position`."""

    position: int
    newest: int
    """The run's newest event, which may be beyond the position; START where there is none."""
    end: Record | None
    changes: Mapping[str, Any]
    lists: AsyncIterator[bytes]
    """The lists of the `initial` frame, as pieces of JSON: `"key":[...],"key":[...]`. `changes` are what
    events that may not be archived yet change in the run."""


class Replay:
    """Reads of the past, for all viewers of a worker: what is read for a user is read in the user's turns."""

    def __init__(self, links: Sequence[SharedLink], archive: Archive, page: int) -> None:
        """`links`: of each shard. `page`: records in one read, which is what is held in memory for one viewer
        at a time."""
        self._links = links
        self._archive = archive
        self._page = page
        self._keys = [ShardKeys(shard) for shard in range(len(links))]
        self._recent = Recent()
        self._pages = Sharing[tuple[str, int], Page | None]()
        self._ends = Sharing[str, Record | None]()
        self._logs = Sharing[str, Sequence[Record]]()
        self._turns = Turns[int](AT_ONCE)

    async def after(self, run_id: str, position: int, user_id: int) -> Page | None:
        """What follows `position`; None where the position can not be continued from. Raises Unavailable."""
        return await self._pages.ask((run_id, position), lambda: self._after(run_id, position, user_id))

    async def _after(self, run_id: str, position: int, user_id: int) -> Page | None:
        # A turn ends before the archive is asked: who waits for PostgreSQL keeps nobody from the log.
        page, logged = await self._turns.take(user_id, lambda: self._in_log(run_id, position))
        if page:
            return page
        # What the run log lacks at its beginning is archived: nothing else is ever taken from it.
        before = logged[0].id if logged else None
        archived = await self._archive.records([run_id], position, before, self._page + 1)
        if position != START and (not archived or archived[0].id != position):
            return None
        return self._paged(archived if len(archived) > self._page else [*archived, *logged], position)

    async def _in_log(self, run_id: str, position: int) -> tuple[Page | None, Sequence[Record]]:
        """What follows the position, where the log has that; else what the log has."""
        start = str(stream_id(position)) if position != START else "-"
        reply = await self._read(run_id, start, self._page + 1)
        if known := self._recent.get((run_id, position), reply):
            return known, ()
        logged = self._decoded(run_id, reply)
        if logged and logged[0].id == position:
            return self._recent.keep((run_id, position), reply, self._paged(logged, position)), ()
        return None, logged

    async def end(self, run_id: str) -> Record | None:
        """The end of the run, where only late events came after it. Raises Unavailable."""
        return await self._ends.ask(run_id, lambda: self._end(run_id))

    async def _end(self, run_id: str) -> Record | None:
        latest = await self._logged(run_id, "+", LATE, newest_first=True)
        return _end(latest[::-1])

    async def top(self, shard: int) -> int:
        """The highest id that the shard's log ever held, or START. Raises Unavailable."""
        try:
            info = await self._links[shard].ask("XINFO", "STREAM", self._keys[shard].log)
        except (redis.exceptions.RedisError, OSError) as error:
            if "no such key" in str(error):
                return START
            raise Unavailable(NO_LOG) from error
        newest = top_of(info)
        return event_id(newest, shard) if newest.ms >= EPOCH_MS else START

    async def after_all(self, run_ids: Sequence[str], position: int, user_id: int) -> Page | None:
        """What follows `position` in the runs of a shard, merged; None where the log does not reach so far.

        Raises Unavailable.
        """
        if not run_ids:
            return Page((), None, more=False)
        top = await self.top(shard_of_run(run_ids[0], len(self._keys)))
        if position > top:
            return None
        start = f"({stream_id(position)}" if position != START else "-"
        pages = await asyncio.gather(*(self._logged_page(run_id, start, user_id) for run_id in run_ids))
        # Where a run log begins is asked last: what it loses meanwhile is archived by then.
        heads = await asyncio.gather(*(self._logged(run_id, "-", 1) for run_id in run_ids))
        trimmed = [
            run_id for run_id, head in zip(run_ids, heads, strict=True) if not head or head[0].id > position
        ]
        if top == START:  # there was no log, so all that is in one now is news
            pages, top = [], MAX_EVENT_ID
        if trimmed:
            pages.append(await self._archive.records(trimmed, position + 1, None, self._page))
        # What came since `top` may be in a log that was read late, and not in one that was read early. It is
        # left to the hub, which has it.
        cut = [page[-1].id for page in pages if len(page) == self._page]
        upto = min([top, *cut])
        found = {record.id: record for page in pages for record in page if record.id <= upto}
        records = [found[id] for id in sorted(found)]
        return Page(records, None, more=bool(cut))

    async def snapshot(self, run_id: str, user_id: int, upto: int = MAX_EVENT_ID) -> Snapshot:
        """The whole run, or what it was when `upto` was the newest id. Raises Unavailable."""
        log = await self._logs.ask(run_id, lambda: self._log(run_id, user_id))
        newest = log[-1].id if log else await self._archive.newest(run_id)
        if not log and newest != START:  # what came meanwhile, and is archived already, may end the run
            log = await self._logs.ask(run_id, lambda: self._log(run_id, user_id))
            newest = log[-1].id if log else newest
        before = min(log[0].id if log else newest + 1, upto + 1)
        logged = [record for record in log if record.id <= upto]
        return Snapshot(
            position=logged[-1].id if logged else before - 1,
            newest=newest,
            end=_end(logged),
            changes=_changes(logged, at_work=_at_work(log, newest)),
            lists=self._lists(run_id, before, logged),
        )

    async def _log(self, run_id: str, user_id: int) -> Sequence[Record]:
        """The whole run log."""
        logged = list(await self._logged_page(run_id, "-", user_id))
        while len(logged) % self._page == 0 and logged:
            page = await self._logged_page(run_id, f"({stream_id(logged[-1].id)}", user_id)
            if not page:
                break
            logged += page
        return logged

    async def _lists(self, run_id: str, before: int, logged: Sequence[Record]) -> AsyncIterator[bytes]:
        reaching = await self._archive.reaching(run_id, before) if before > START + 1 else ()
        listed: dict[str, list[bytes]] = {key: [] for key in INITIAL_KEYS}
        for _, _, kind, payload in logged:
            if key := LISTED.get(kind):
                listed[key].append(payload)
        for place, (key, payloads) in enumerate(listed.items()):
            yield b'%b"%b":[' % (b"," if place else b"", key.encode())
            separator = b""
            tables = (table for table, kind in TABLES.items() if kind.initial_key == key)
            for table in filter(reaching.__contains__, tables):
                async for archived in self._archive.payloads(table, run_id, before):
                    yield separator + archived
                    separator = b","
            if payloads:
                yield separator + b",".join(payloads)
            yield b"]"

    async def _logged_page(self, run_id: str, start: str, user_id: int) -> Sequence[Record]:
        return await self._turns.take(user_id, lambda: self._logged(run_id, start, self._page))

    async def _logged(
        self, run_id: str, start: str, limit: int, *, newest_first: bool = False
    ) -> Sequence[Record]:
        """Records of the run log from the stream id `start` on."""
        return self._decoded(run_id, await self._read(run_id, start, limit, newest_first=newest_first))

    async def _read(self, run_id: str, start: str, limit: int, *, newest_first: bool = False) -> Reply:
        command, stop = ("XREVRANGE", "-") if newest_first else ("XRANGE", "+")
        shard = shard_of_run(run_id, len(self._keys))
        run_log = self._keys[shard].run(run_id)
        try:
            reply: Reply = await self._links[shard].ask(command, run_log, start, stop, "COUNT", limit)
        except (redis.exceptions.RedisError, OSError) as error:
            raise Unavailable(NO_LOG) from error
        return reply

    def _paged(self, found: Sequence[Record], position: int) -> Page:
        records = [record for record in found if record.id > position]
        return Page(records, _end(found), more=len(records) >= self._page)

    def _decoded(self, run_id: str, reply: Reply) -> Sequence[Record]:
        return list(_records(reply, shard_of_run(run_id, len(self._keys))))


class Recent:
    """The pages that were read last, with what they were made of. Where the same is read again, as it is when
    many come back together, the page is there already."""

    PAGES = 8
    BYTES = 256 * 1024
    """Of the records in one page; larger ones are not kept."""

    def __init__(self) -> None:
        self._pages: dict[tuple[str, int], tuple[Reply, Page]] = {}

    def get(self, key: tuple[str, int], reply: Reply) -> Page | None:
        """The page, if it was made of the very same."""
        made_of, page = self._pages.get(key, (None, None))
        return page if made_of == reply else None

    def keep(self, key: tuple[str, int], reply: Reply, page: Page) -> Page:
        self._pages.pop(key, None)
        if sum(len(record.payload) for record in page.records) <= self.BYTES:
            self._pages[key] = reply, page
            if len(self._pages) > self.PAGES:
                del self._pages[next(iter(self._pages))]
        return page


def _at_work(log: Sequence[Record], newest: int) -> bool:
    """Whether the run has begun, also where it did not say so. (Where its log is gone, any event will do.)"""
    return any(record.kind in AT_WORK for record in log) if log else newest != START


def _changes(records: Sequence[Record], *, at_work: bool) -> Mapping[str, Any]:
    changes: dict[str, Any] = {"status": "running"} if at_work else {}
    for _, _, kind, payload in records:
        if kind in CHANGING:
            changes |= REGISTRY[kind].changes(from_json(payload))
        if kind in ENDING:
            break  # of several ends the first one counts, and nothing takes it back
    return changes


def _end(records: Sequence[Record]) -> Record | None:
    return next((record for record in records if record.kind in ENDING), None)


def _records(reply: Reply, shard: int) -> Iterator[Record]:
    """A record for each entry, or nobody could tell a full page. One that is damaged is of a kind that nobody
    knows, and so shown to nobody."""
    for id, fields in reply:
        try:
            yield decode_record(id, fields, shard)
        except MalformedEntry as error:
            log.error("an entry of shard %d was passed over: %s", shard, error)
            with contextlib.suppress(ValueError):
                yield Record(id_of(id, shard), "", "", b"")
