"""What a client may cost before it has asked for anything: the size of a request's head, and the time that
head and body may take. uvicorn bounds none of it.

No request has a timer of its own. A connection that owes something is in the guard's list, which one sweep
goes through every second; a request that arrives in one piece is never in it, and costs a few comparisons.
"""

import asyncio
import socket
import struct
from enum import IntEnum
from typing import Any, NoReturn

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from relay.errors import BadRequest, BodyTimeout, HeadTimeout, HeadTooLarge, RelayError
from relay.http.problems import problem
from relay.http.shortcut import ShortcutProtocol, rendered
from relay.settings import Settings

STATE = "relay.guard"
"""Where the application's lifespan leaves its guard for the connections."""

SWEEP_S = 1.0

LINGER_S = 2.0
"""How long a client that was refused may go on sending, unread, so that it gets to reading the answer: closed
at once, the kernel would reset the connection and take the answer with it."""


class Owed(IntEnum):
    """What a connection has not sent yet."""

    NOTHING = 0
    HEAD = 1  # of its first request, or of one that it began
    BODY = 2
    NEXT = 3  # another request, or the end
    GOODBYE = 4  # it was refused


class Guard:
    """The limits, and the connections of one worker that owe something or do not read."""

    def __init__(self, settings: Settings) -> None:
        self.header_bytes = settings.header_bytes
        self.header_count = settings.header_count
        self.message_bytes = 2 * max(settings.batch_bytes, settings.event_bytes) + settings.header_bytes
        self.times = {
            Owed.HEAD: settings.header_timeout_s,
            Owed.BODY: settings.body_timeout_s,
            Owed.GOODBYE: LINGER_S,
        }
        self._slow_reader_s = settings.slow_viewer_s
        self._owing: dict[GuardedProtocol, float] = {}
        self._unread: dict[GuardedProtocol, float] = {}

    def owes(self, connection: "GuardedProtocol", timeout_s: float) -> None:
        self._owing[connection] = connection.loop.time() + timeout_s

    def settled(self, connection: "GuardedProtocol") -> None:
        self._owing.pop(connection, None)

    def unread(self, connection: "GuardedProtocol") -> None:
        """What was written to it piles up."""
        self._unread[connection] = connection.loop.time() + self._slow_reader_s

    def reads(self, connection: "GuardedProtocol") -> None:
        self._unread.pop(connection, None)

    async def sweep(self) -> NoReturn:
        """Ends connections whose time is over, for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = asyncio.get_running_loop().time()
            for connection in [late for late, deadline in self._owing.items() if deadline <= now]:
                self.settled(connection)
                connection.overdue()
            for connection in [slow for slow, deadline in self._unread.items() if deadline <= now]:
                self.reads(connection)
                connection.stalled()


class GuardedProtocol(ShortcutProtocol):
    """uvicorn's protocol, with bounds on heads and on time, and its refusals as problems."""

    __slots__ = ("_arrived", "_guard", "_message", "_noted", "_piece", "_refusal")

    transport: asyncio.Transport

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._noted = Owed.HEAD
        self._refusal: RelayError | None = None
        self._message: Any = None  # the headers of the last one that did not come in one piece
        self._piece = self._arrived = 0
        self._guard: Guard = self.app_state[STATE]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._note(Owed.HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.settled(self)
        self._guard.reads(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._noted and self._noted is Owed.GOODBYE:
            return
        self._piece = len(data)
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle
        if self._noted or self.in_head or cycle is None or cycle.more_body or cycle.response_complete:
            self._look()

    def on_headers_complete(self) -> None:
        guard, headers = self._guard, self.headers
        if len(headers) > guard.header_count:
            self._fail(_too_many(guard))
        if self._piece > guard.header_bytes or self._message is headers:
            self._check_length()
        hosts = 0
        for name, _ in headers:
            if name == b"host":
                hosts += 1
        if hosts != 1 and (hosts or self.parser.get_http_version() != "1.0"):
            self._fail(BadRequest("A request has to have one Host header, and not more than one."))
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._guard.unread(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._guard.reads(self)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser, or a callback of it, has raised."""
        self._shortcut = None
        error = self._refusal or BadRequest("The request is not valid HTTP/1.1.")
        self._refuse(error, own=self._owed() is Owed.BODY)

    def overdue(self) -> None:
        """The time for what it owes is over."""
        owed = self._owed()
        if self._noted is Owed.GOODBYE or self.transport.is_closing():
            self.transport.abort()
        elif owed is Owed.BODY:
            self._refuse(BodyTimeout(), own=True)
        elif self.in_head:
            self._refuse(HeadTimeout())
        else:
            self.leave()

    def stalled(self) -> None:
        """The client does not read what it asked for."""
        cut(self.transport)

    def leave(self) -> None:
        """Says no more and hears no more, but lets the client read what it was told."""
        self._noted = Owed.GOODBYE
        self._guard.owes(self, LINGER_S)
        if self.transport.is_closing():
            return
        self.flow.resume_reading()  # what still comes is thrown away
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _owed(self) -> Owed:
        cycle: RequestResponseCycle | None = self.cycle
        if self.in_head or cycle is None:
            return Owed.HEAD
        if cycle.more_body:
            return Owed.BODY
        return Owed.NEXT if cycle.response_complete else Owed.NOTHING

    def _look(self) -> None:
        """After a piece that leaves something to wait for, or ends the wait."""
        if self._noted is Owed.GOODBYE:
            return
        owed, news = self._owed(), self._message is not self.headers
        self._count(owed, news)
        if owed is not self._noted or news:
            self._note(owed)
        self._message = self.headers
        if owed is Owed.BODY:
            self.cycle.transport = _Leaving(self)  # type: ignore[assignment]

    def _note(self, owed: Owed) -> None:
        if self._noted is Owed.GOODBYE or self.transport.is_closing():
            return
        self._noted = owed
        if owed:
            self._guard.owes(self, self._guard.times.get(owed, self.timeout_keep_alive))
        else:
            self._guard.settled(self)

    def _count(self, owed: Owed, news: bool) -> None:
        """Bounds what a request that is not all there may hold in memory, also in trailers."""
        guard = self._guard
        if owed is Owed.HEAD:
            self._arrived = self._head_bytes() if news else self._arrived + self._piece
            if self._arrived > guard.header_bytes:
                self._refuse(_too_long(guard))
        elif owed is Owed.BODY:
            self._arrived = self._piece if news else self._arrived + self._piece
            if self._arrived > guard.message_bytes or len(self.headers) > guard.header_count:
                self._refuse(_too_long(guard), own=True)

    def _fail(self, error: RelayError) -> None:
        """What is wrong with the head that has just arrived. Its request is never begun."""
        self._refusal = error
        raise error

    def _check_length(self) -> None:
        if self._head_bytes() > self._guard.header_bytes:
            self._fail(_too_long(self._guard))

    def _head_bytes(self) -> int:
        """The size of what is parsed of the head, written without needless blanks."""
        request_line = len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n")
        return request_line + sum(len(name) + len(value) + 4 for name, value in self.headers) + 2

    def _refuse(self, error: RelayError, *, own: bool = False) -> None:
        """Answers the request that is at fault, or ends the connection after the answers to those before it.

        `own`: it is the last one that the application got.
        """
        cycle: RequestResponseCycle | None = self.cycle
        alone = not self.pipeline
        if cycle is None or (cycle.response_complete and not own):
            self.transport.write(_answer(problem(error)))
            self.leave()
        elif own and alone and not cycle.response_started:
            cycle.disconnected = True  # its own answer would be the second one
            cycle.message_event.set()
            self.transport.write(_answer(problem(error)))
            self.leave()
        elif cycle.response_complete:
            self.leave()
        else:
            cycle.keep_alive = False
            self._noted = Owed.GOODBYE
            self._guard.settled(self)


def cut(transport: asyncio.Transport) -> None:
    """Resets a connection: after a mere close the kernel would keep what the client does not read."""
    if not transport.is_closing():
        at_once = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    transport.abort()


class _Leaving:
    """The transport, for the answer to a request whose body is still coming: its end is a gentle one."""

    def __init__(self, connection: GuardedProtocol) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.leave


def _answer(response: Response) -> bytes:
    response.headers["connection"] = "close"
    return rendered(response)


def _too_many(guard: Guard) -> HeadTooLarge:
    return HeadTooLarge(f"The request has more than {guard.header_count} headers.")


def _too_long(guard: Guard) -> HeadTooLarge:
    return HeadTooLarge(f"The request's line and headers are longer than {guard.header_bytes} bytes.")
