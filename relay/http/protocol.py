"""uvicorn's HTTP protocol, with three things that a stream of events needs.

The stream gets at its connection through `scope["extensions"]["relay.connection"]`: to write a ready chunk
to the transport without an awaited call per viewer and event, to hear when the connection is lost without
a task that waits for it, and to hear when the server shuts down, since uvicorn itself would wait for an
endless response for ever.
"""

import asyncio
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from relay.http.guard import GuardedProtocol

EXTENSION = "relay.connection"


_NOBODY_WAITS = asyncio.Event()


class Stream(Protocol):
    """An answer without an end, that wants to hear of its connection."""

    def lost(self) -> None:
        """The connection is lost."""
        ...

    def leave(self) -> None:
        """The server shuts down."""
        ...


class StreamingProtocol(GuardedProtocol):
    """One connection. `stream` is told at most once each, while it is set."""

    __slots__ = ("stream",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stream: Stream | None = None

    def carry(self, stream: Stream) -> None:
        """The answer to the request under way is a stream."""
        self.stream = stream
        cycle: RequestResponseCycle | None = self.cycle  # none where the connection is lost already
        if cycle is not None and not self.pipeline:  # or these would be another request's
            # It has no body to wait for, and what was asked is known.
            cycle.message_event = _NOBODY_WAITS
            self.headers.clear()

    def begin(self, scope: dict[str, Any]) -> None:
        super().begin(scope)
        scope["extensions"] = {EXTENSION: self}

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.stream is not None:
            self.stream.lost()
        # They know this connection, which would then wait for the collector of cycles: a worker whose viewers
        # come and go had four dead ones for each that lived.
        self.cycle = self.scope = self._answering = None  # type: ignore[assignment]

    def stalled(self) -> None:
        if self.stream is None:  # a viewer's task sees to it by itself
            super().stalled()

    def shutdown(self) -> None:
        super().shutdown()
        if self.stream is not None:
            self.stream.leave()
