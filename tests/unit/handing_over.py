"""Those who take part in the hand-over from replay to live, but for the product: models of the stores, of a
connection and of a client, and a scheduler that has all of them stop at every step."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from relay.events.registry import ENDING
from relay.hub import Viewer
from relay.stream.entry import Record
from relay.stream.keys import START
from relay.stream.replay import Page, Snapshot

RUN = "run-1"
PAGE = 3
"""Records in one read, so that most replays take several."""

BUFFER = 100


class Scheduler:
    """Where tasks stop until they are chosen to go on."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.stopped: list[asyncio.Future[None]] = []

    async def stop(self) -> None:
        here: asyncio.Future[None] = self.loop.create_future()
        self.stopped.append(here)
        await here

    def go_on(self, which: int) -> None:
        self.stopped.pop(which % len(self.stopped)).set_result(None)
        self.settle()

    def settle(self) -> None:
        """Runs everybody as far as the next stop; no chain of callbacks between two of them is as long."""
        self.loop.run_until_complete(self._turns())

    @staticmethod
    async def _turns() -> None:
        for _ in range(20):
            await asyncio.sleep(0)


class Stores:
    """The run log and the archive in one: what is `forgotten` can not be continued from."""

    def __init__(self, stop: Callable[[], Any]) -> None:
        self.records: list[Record] = []
        self.forgotten = START
        self._stop = stop

    async def after(self, run_id: str, position: int, user_id: int) -> Page | None:
        await self._stop()
        found = self._after(position)
        await self._stop()
        return found

    def _after(self, position: int) -> Page | None:
        known = position == START or self.forgotten < position <= len(self.records)
        if not known:
            return None
        found = self.records[max(0, position - 1) : position + PAGE]
        news = [record for record in found if record.id > position]
        return Page(news, first_end(found), more=len(news) >= PAGE)

    async def end(self, run_id: str) -> Record | None:
        await self._stop()
        found = first_end(self.records)
        await self._stop()
        return found

    async def snapshot(self, run_id: str, user_id: int) -> Snapshot:
        await self._stop()
        records = list(self.records)
        await self._stop()
        return Snapshot(len(records), len(records), first_end(records), {}, self._lists(records))

    async def _lists(self, records: list[Record]) -> AsyncIterator[bytes]:
        await self._stop()
        events = b",".join(record.payload for record in records if record.kind not in ENDING)
        yield b'"paper_generation_progress":[%b]' % events


def first_end(records: list[Record]) -> Record | None:
    return next((record for record in records if record.kind in ENDING), None)


def event(id: int) -> Record:
    return Record(id, RUN, "paper_generation_progress", b'{"id":%d}' % id)


def end(id: int) -> Record:
    return Record(id, RUN, "run_finished", b'{"id":%d,"metadata":{"success":true},"created_at":""}' % id)


class Ready:
    """A tailer that is always there."""

    async def ready(self, timeout_s: float | None = None) -> None:
        return


class Connection:
    """A client's connection: what arrives at the client is whole blocks."""

    chunked = False

    def __init__(self, client: "Client", stop: Callable[[], Any]) -> None:
        self._client = client
        self._stop = stop
        self.unread = 0
        self.lost = False

    def write(self, data: bytes) -> int:
        if not self.lost:
            self._client.take(data)
        return self.unread

    def attach(self, viewer: Viewer) -> None:
        return

    async def detach(self) -> None:
        return

    async def send(self, data: bytes, *, last: bool = False) -> None:
        await self._stop()
        self.write(data)
        self._client.over = self._client.over or (last and not self.lost)

    def abort(self) -> None:
        raise AssertionError("nobody is too slow for a stop, and no store fails")


class Client:
    """One who watches, over all connections. Each `initial` begins another part."""

    def __init__(self) -> None:
        self.parts: list[list[int]] = []
        self.position: int | None = None
        self.over = False
        self.completed = 0
        self.connection: Connection
        self.viewer: Viewer

    def take(self, data: bytes) -> None:
        for block in data.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if line and line[0] != ":")
            if "id" in fields:
                self.position = int(fields["id"])
            if "data" in fields:
                self._message(json.loads(fields["data"]))

    def _message(self, message: dict[str, Any]) -> None:
        if message["type"] == "initial":
            self.parts.append([event["id"] for event in message["data"]["paper_generation_progress"]])
        elif message["type"] == "paper_generation_progress":
            self.parts[-1].append(message["data"]["id"])
        elif message["type"] == "complete":
            self.completed += 1
            self.over = True  # it does not come back, as browsers' pages do not
