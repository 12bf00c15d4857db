"""A TCP proxy that can do to a connection what networks do.

Each accepted connection is a pair of pumps. What happens to its bytes is decided by the toxics that are set
at the time, and by what the connection is for: `uses(b"FCALL")` is true once its client has sent that word.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.clients import cut

PIECE = 65_536
RESET_HERE = 0.02
WORDS = (b"FCALL", b"XREAD\r", b"SCARD", b"XRANGE", b"GET /conversations")


@dataclass
class Toxics:
    """What is done to connections. All off by default."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    sliced_bytes: int = 0
    """How many bytes at the beginning of what comes are passed on one by one."""
    reset_rate: float = 0.0
    """Of what comes, how much resets its connection, somewhere within, instead of being passed on whole."""
    cut_after: Callable[[], int] | None = None
    """Bytes towards the client after which a connection is reset, drawn for each connection."""


@dataclass(eq=False)
class Connection:
    """One client's connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    words: set[bytes] = field(default_factory=set)
    budget: int | None = None
    mute: bool = False
    """Nothing passes any more, in either direction, and nobody is told."""
    replies_to_swallow: int = 0
    replies_to_cut: int = 0

    def uses(self, word: bytes) -> bool:
        return word in self.words

    def reset(self) -> None:
        cut(self.client)
        cut(self.server)


class Proxy:
    """Stands between clients and one server."""

    def __init__(self, host: str, port: int, seed: int) -> None:
        self.toxics = Toxics()
        self.connections: set[Connection] = set()
        self.resets = 0
        self.port = 0
        self.target = (host, port)
        """Where new connections go."""
        self._random = random.Random(f"{seed} proxy of {port}")
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def using(self, word: bytes) -> list[Connection]:
        """The open connections whose client has sent that word."""
        return [connection for connection in self.connections if connection.uses(word)]

    def reset_all(self) -> None:
        for connection in list(self.connections):
            self.resets += 1
            connection.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            server_reader, server = await asyncio.open_connection(*self.target)
        except OSError:
            cut(writer)
            return
        connection = Connection(writer, server)
        if self.toxics.cut_after is not None:
            connection.budget = self.toxics.cut_after()
        self.connections.add(connection)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(
                    self._pump(connection, reader, server, to_client=False),
                    self._pump(connection, server_reader, writer, to_client=True),
                )
        finally:
            connection.reset()
            self.connections.discard(connection)

    async def _pump(
        self,
        connection: Connection,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *,
        to_client: bool,
    ) -> None:
        try:
            while data := await source.read(PIECE):
                if not to_client:
                    connection.words |= {word for word in WORDS if word in data}
                await self._pass_on(connection, data, sink, to_client)
        except OSError:
            pass
        finally:
            connection.reset() if not connection.mute else None

    async def _pass_on(
        self, connection: Connection, data: bytes, sink: asyncio.StreamWriter, to_client: bool
    ) -> None:
        toxics = self.toxics
        if toxics.latency_s:
            await asyncio.sleep(max(0, toxics.latency_s + toxics.jitter_s * self._random.uniform(-1, 1)))
        if connection.mute or (to_client and self._spoiled(connection)):
            return
        resets = self._random.random() < toxics.reset_rate
        for piece in _slices(data, toxics.sliced_bytes):
            if resets and self._random.random() < RESET_HERE:
                self._reset(connection)
            if to_client and connection.budget is not None:
                connection.budget -= len(piece)
                if connection.budget < 0:
                    await self._cut_within(connection, piece, sink)
            sink.write(piece)
            await sink.drain()
        if resets:
            self._reset(connection)

    async def _cut_within(self, connection: Connection, piece: bytes, sink: asyncio.StreamWriter) -> None:
        """Ends a connection within a piece, half of the times in an orderly way, so that the half arrives."""
        sink.write(piece[: connection.budget])
        await sink.drain()
        if self._random.random() < 0.5:
            sink.close()
            await sink.wait_closed()
        self._reset(connection)

    def _spoiled(self, connection: Connection) -> bool:
        """Whether this reply does not arrive."""
        if connection.replies_to_swallow:
            connection.replies_to_swallow -= 1
            return True
        if connection.replies_to_cut:
            connection.replies_to_cut -= 1
            self._reset(connection)
        return False

    def _reset(self, connection: Connection) -> None:
        self.resets += 1
        connection.reset()
        raise ConnectionResetError


def _slices(data: bytes, count: int) -> list[bytes]:
    """The first bytes one by one, and the rest."""
    ones = [data[place : place + 1] for place in range(min(count, len(data)))]
    return [*ones, data[count:]] if len(data) > count else ones
