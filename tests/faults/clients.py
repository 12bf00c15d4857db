"""Producers and viewers that outlive faults, in one event loop, on bare HTTP/1.1: hundreds cost little.

A producer owns a run. It sends one event at a time, and sends it again, with the same key, until it is
kept. A viewer comes back with the last id that it has, and writes down all that it was shown, repeats
included.
"""

import asyncio
import contextlib
import functools
import hashlib
import json
import random
import socket
import struct
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.acceptance.running import CONVERSATION, viewer
from tests.canaries import TOKEN
from tests.faults.oracle import Call, Ledger, Mark, Outcome, Seen, Viewed

WEBHOOK = "/research-pipeline/events/paper-generation-progress"

LOST_CONNECTION = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError)

Address = Callable[[], tuple[str, int]]
"""Where to connect to this time."""

SILENCE_S = 20.0
"""After so long without a byte a viewer takes its connection for dead."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


def mark_of(run_id: str, details: Mapping[str, Any]) -> Mark:
    """Which event it is, with the digest of what was found, not of what was sent."""
    return Mark(run_id, details["number"], digest(details["text"]))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer."""
    start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    return int(start.split(" ", 2)[1]), headers


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    status, headers = await read_head(reader)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(status, headers, body)


def cut(writer: asyncio.StreamWriter) -> None:
    """Resets a connection, so that nothing of it lingers."""
    with contextlib.suppress(OSError, AttributeError):
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    writer.transport.abort()


class Producer:
    """Sends the events of one run, in order, each until it is acknowledged."""

    def __init__(self, run_id: str, ledger: Ledger, address: Address, seed: int) -> None:
        self.run_id = run_id
        self.patience_s = 6.0
        self.pause_s = 0.01
        self.text_bytes = 40
        self.keyed = True
        """Without keys it never sends an event again, so that no event of it may be there twice."""
        self.idle = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self._ledger = ledger
        self._address = address
        self._random = random.Random(f"{seed} {run_id}")
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._stopped = False
        self.sent = 0

    def stop(self) -> None:
        """After the event at hand."""
        self._stopped = True
        self.go.set()

    async def run(self) -> None:
        try:
            while not self._stopped:
                await self._send_one(self.sent)
                self.sent += 1
                await asyncio.sleep(self.pause_s * self._random.random())
                await self._rest()
        finally:
            self.idle.set()
            self._drop()

    async def _rest(self) -> None:
        if not self.go.is_set():
            self.idle.set()
            await self.go.wait()
            self.idle.clear()

    async def _send_one(self, number: int) -> None:
        text = self._random.randbytes(self.text_bytes // 2).hex()
        mark = Mark(self.run_id, number, digest(text))
        request = self._request(number, text)
        self._ledger.attempt(mark)
        while True:
            call = await self._call(mark, request)
            if call.outcome is Outcome.ACKNOWLEDGED or not self.keyed:
                return
            await asyncio.sleep(0.02 + 0.1 * self._random.random())

    def _request(self, number: int, text: str) -> bytes:
        event = {
            "step": "paper_writeup",
            "progress": 0.5,
            "step_progress": 0.5,
            "details": {"number": number, "text": text},
        }
        body = json.dumps({"run_id": self.run_id, "event": event}).encode()
        head = f"POST {WEBHOOK} HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {TOKEN}\r\n"
        head += "content-type: application/json\r\n"
        head += f"idempotency-key: {uuid.uuid4().hex}\r\n" if self.keyed else ""
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def _call(self, mark: Mark, request: bytes) -> Call:
        began, gave_up = time.monotonic(), False
        try:
            async with asyncio.timeout(self.patience_s):
                outcome, status = await self._exchange(request)
        except TimeoutError:
            outcome, status, gave_up = Outcome.UNKNOWN, "no answer", True
        except LOST_CONNECTION as error:
            outcome, status = Outcome.UNKNOWN, type(error).__name__
        if outcome is Outcome.UNKNOWN or status == "no connection":
            self._drop()
        call = Call(mark, outcome, began, time.monotonic() - began, status, gave_up)
        self._ledger.told(call)
        return call

    async def _exchange(self, request: bytes) -> tuple[Outcome, str]:
        if self._connection is not None and self._connection[0].at_eof():
            self._drop()  # the server is done with it, and has said so
        if self._connection is None:
            try:
                self._connection = await asyncio.open_connection(*self._address())
            except OSError:
                return Outcome.NOT_STORED, "no connection"
        reader, writer = self._connection
        writer.write(request)
        await writer.drain()
        answer = await read_answer(reader)
        if answer.headers.get("connection") == "close":
            self._drop()
        return _meaning(answer)

    def hang_up(self) -> None:
        """The next event goes over a new connection; to be called while it rests."""
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            cut(self._connection[1])
            self._connection = None


def _meaning(answer: Answer) -> tuple[Outcome, str]:
    if answer.status == 204:
        return Outcome.ACKNOWLEDGED, "204"
    slug = str(json.loads(answer.body)["type"]).rpartition(":")[2]
    status = f"{answer.status} {slug}"
    if slug == "not-stored":
        return Outcome.NOT_STORED, status
    return (Outcome.REFUSED if answer.status < 500 else Outcome.UNKNOWN), status


class Connect(NamedTuple):
    """One connection of a viewer: when, with which answer, and how it ended."""

    began: float
    ended: float
    status: int | None
    clean: bool
    blocks: int
    said_retry: bool


class Watcher:
    """A viewer of one run, over as many connections as it takes."""

    def __init__(self, run_id: str, name: str, address: Address, seed: int) -> None:
        self.run_id = run_id
        self.name = name
        self.parts: list[list[Seen]] = []
        self.connects: list[Connect] = []
        self.trouble: list[str] = []
        self.arrivals: list[float] = []
        self.silence_s = SILENCE_S
        self.receive_bytes: int | None = None
        self.reads = asyncio.Event()
        self.reads.set()
        self.admitted = asyncio.Event()
        self._random = random.Random(f"{seed} {name}")
        self._address = address
        self._position: str | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._status: int | None = None
        self._blocks = 0
        self._retry = False
        self._left = False

    @property
    def viewed(self) -> Viewed:
        return Viewed(self.name, self.run_id, self.parts)

    @property
    def numbers(self) -> int:
        """How many events it has now."""
        return len(self.parts[-1]) if self.parts else 0

    def leave(self) -> None:
        self._left = True
        if self._writer is not None:
            cut(self._writer)

    async def run(self) -> None:
        while not self._left:
            began, clean = time.monotonic(), False
            self._status, self._blocks, self._retry = None, 0, False
            try:
                clean = await self._connection()
            except (TimeoutError, *LOST_CONNECTION):
                pass
            finally:
                self._close()
            made = Connect(began, time.monotonic(), self._status, clean, self._blocks, self._retry)
            self.connects.append(made)
            if made.status not in (None, 200, 503):
                self.trouble.append(f"{self.name} was turned away with {made.status}")
                return
            await asyncio.sleep(0.05 + 0.2 * self._random.random())

    async def _connection(self) -> bool:
        """One connection, to its end. True: the server ended it in an orderly way."""
        async with asyncio.timeout(self.silence_s):
            reader, self._writer = await self._open()
            if self._left:  # while it connected
                return False
            self._writer.write(self._request())
            self._status, _ = await read_head(reader)
        if self._status != 200:
            return False
        text = b""
        async for data in self._chunks(reader):
            *blocks, text = (text + data).split(b"\n\n")
            for block in blocks:
                self._take(block)
        return True

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.receive_bytes is None:
            return await asyncio.open_connection(*self._address())
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_bytes)
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, self._address())
        return await asyncio.open_connection(sock=made, limit=self.receive_bytes)

    def _close(self) -> None:
        if self._writer is not None:
            cut(self._writer)
            self._writer = None

    def _request(self) -> bytes:
        path = f"/conversations/{CONVERSATION}/idea/research-run/{self.run_id}/events?resume=true"
        headers = viewer(host="relay")
        if self._position is not None:
            headers["last-event-id"] = self._position
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()

    async def _chunks(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """The body as it comes, also of a chunk that is never finished, up to the last chunk."""
        while True:
            async with asyncio.timeout(self.silence_s):
                left = int(await reader.readuntil(b"\r\n"), 16)
            last = left == 0
            while left:
                await self.reads.wait()
                async with asyncio.timeout(self.silence_s):
                    data = await reader.read(left)
                if not data:
                    raise ConnectionResetError
                left -= len(data)
                yield data
            await reader.readexactly(2)
            if last:
                return

    def _take(self, block: bytes) -> None:
        """A whole block; half a block before a cut is nothing."""
        self._blocks += 1
        self.admitted.set()
        lines = block.decode().split("\n")
        fields = dict(line.split(": ", 1) for line in lines if not line.startswith(":"))
        self._retry = self._retry or (any(line == ": reconnect" for line in lines) and "retry" in fields)
        if "data" in fields:
            self._message(fields["data"])
        if "id" in fields:
            self._position = fields["id"]

    def _message(self, data: str) -> None:
        kind, events = message(data)
        if kind == "initial":
            self.parts.append(list(events))
        elif kind == "paper_generation_progress":
            self.parts[-1] += events
            self.arrivals.append(time.monotonic())


@functools.lru_cache(maxsize=256)
def message(data: str) -> tuple[str, Sequence[Seen]]:
    """The type of a message, and its events. All viewers of a run are sent the same, soon after another."""
    said = json.loads(data)
    if said["type"] == "initial":
        return "initial", seen(said["data"]["paper_generation_progress"])
    return said["type"], seen([said["data"]] if said["type"] == "paper_generation_progress" else [])


def seen(payloads: Sequence[Mapping[str, Any]]) -> tuple[Seen, ...]:
    """Events as viewers and history have them. Whose they are is checked by their marks."""
    return tuple(Seen(payload["id"], mark_of(payload["run_id"], payload["details"])) for payload in payloads)
