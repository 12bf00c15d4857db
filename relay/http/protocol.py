"""uvicorn's HTTP protocol, with three things that a stream of events needs.

The stream gets at its connection through `scope["extensions"]["relay.connection"]`: to write a ready chunk
to the transport without an awaited call per viewer and event, to hear when the connection is lost without
a task that waits for it, and to hear when the server shuts down, since uvicorn itself would wait for an
endless response for ever.
"""

from collections.abc import Callable
from typing import Any

from relay.http.guard import GuardedProtocol

EXTENSION = "relay.connection"


class StreamingProtocol(GuardedProtocol):
    """One connection. `on_lost` and `on_shutdown` are called at most once each, while they are set."""

    on_lost: Callable[[], None] | None = None
    on_shutdown: Callable[[], None] | None = None

    def begin(self, scope: dict[str, Any]) -> None:
        super().begin(scope)
        scope["extensions"] = {EXTENSION: self}

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def stalled(self) -> None:
        if self.on_lost is None:  # a viewer's task sees to it by itself
            super().stalled()

    def shutdown(self) -> None:
        super().shutdown()
        if self.on_shutdown is not None:
            self.on_shutdown()
