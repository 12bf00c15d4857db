"""The shortcut: a POST that is there as a whole is taken by a plain call and answered by a plain write,
without the request, the task and the queue that ASGI needs. That is most of what a webhook request costs.

Only success is worth a shortcut. Whatever is unusual about a request, be it that it comes in pieces, that its
connection is to be closed, or that a check fails, sends it the ordinary way, which knows what to say.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from relay.direct import Direct
from relay.http.slim import Flow, Pipeline

Answer = Callable[[Response | None], None]
"""Is called once, with the answer; None stands for 204."""


class Shortcut(Protocol):
    """Takes a request and calls `answer` later. False: nothing was done, and it goes the ordinary way."""

    def __call__(self, headers: Sequence[tuple[bytes, bytes]], body: bytes, answer: Answer) -> bool: ...


class ShortcutProtocol(HttpToolsProtocol):
    """uvicorn's protocol for an application that offers `shortcuts`, by their URLs."""

    # What would go beyond uvicorn's own attributes costs a connection a dictionary of its own.
    __slots__ = ("_answering", "_body", "_shortcut", "_shortcuts", "in_head")

    transport: asyncio.Transport
    in_head: bool
    """Whether a request has begun whose headers are not all there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.in_head = False
        self.pipeline = Pipeline()  # type: ignore[assignment]
        self._shortcuts: Mapping[bytes, Shortcut] = getattr(self.app, "shortcuts", {})
        self._shortcut: Shortcut | None = None
        self._body = b""
        self._answering: _Answering | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._shortcut is not None and not self.transport.is_closing():
            self._go_ordinary_way()  # the rest of it is still to come

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self.in_head = True
        self._shortcut = None
        self._body = b""

    def on_headers_complete(self) -> None:
        self.in_head = False
        shortcut = self._shortcuts.get(self.url)
        if (
            shortcut is not None
            and not self._busy()
            and self.parser.get_method() == b"POST"
            and self.parser.should_keep_alive()
            and not self.expect_100_continue
        ):
            self._shortcut = shortcut
        else:
            self._go_ordinary_way()

    def on_body(self, body: bytes) -> None:
        if self._shortcut is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        if self._shortcut is None or not self._take(self._shortcut):
            super().on_message_complete()

    def begin(self, scope: dict[str, Any]) -> None:
        """A request takes the ordinary way; subclasses add to its scope."""

    def _busy(self) -> bool:
        """Whether a request before this one waits for its answer."""
        cycle: object | None = self.cycle
        return cycle is not None and not self.cycle.response_complete

    def _take(self, shortcut: Shortcut) -> bool:
        """Whether the request is on its way. Where it is not, it now goes the ordinary one."""
        before = self.cycle
        answering = self._answering = self._answering or _Answering(self)
        self.cycle = answering  # type: ignore[assignment]
        answering.response_complete = False
        try:
            taken = shortcut(self.headers, self._body, answering.answer)
        except Exception:  # the ordinary way will meet it too, and answer
            taken = False
        if taken:
            self._shortcut = None
            return True
        answering.response_complete = True
        self.cycle = before
        self._go_ordinary_way()
        return False

    def _go_ordinary_way(self) -> None:
        """Makes up for what uvicorn would have done with what was received so far."""
        self._shortcut = None
        url, headers, expect, body = self.url, self.headers, self.expect_100_continue, self._body
        super().on_message_begin()
        self.begin(cast("dict[str, Any]", self.scope))
        self.url, self.expect_100_continue = url, expect
        self.headers += headers
        super().on_headers_complete()
        if body:
            super().on_body(body)


class _Answering:
    """A request that took the shortcut, as uvicorn sees a request under way: those behind it on the same
    connection wait for it, and a server that shuts down lets it finish. There is one for each connection."""

    __slots__ = ("_direct", "_protocol", "disconnected", "keep_alive", "response_complete")

    message_event = asyncio.Event()  # nobody waits for it
    more_body = False

    def __init__(self, protocol: ShortcutProtocol) -> None:
        self._protocol = protocol
        self._direct = Direct(protocol.transport)
        self.response_complete = True
        self.disconnected = False
        self.keep_alive = True

    def answer(self, response: Response | None) -> None:
        self.response_complete = True
        protocol = self._protocol
        # One whose connection is gone must not keep the others from their answers.
        with contextlib.suppress(RuntimeError):
            self._direct.doubt()  # other answers may wait there
            self._direct.write(_NO_CONTENT if response is None else rendered(response))
            if not self.keep_alive:
                protocol.transport.close()
        protocol.on_response_complete()


_NO_CONTENT = STATUS_LINE[204] + b"\r\n"


def rendered(response: Response) -> bytes:
    """An answer as it goes over the wire."""
    head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
    return STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body)
