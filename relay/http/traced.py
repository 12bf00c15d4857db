"""The write path where there is somewhere to send traces to: webhooks with a span around a request, and a
publisher whose events carry their trace. Only a POST that names the trace that it is part of is traced, if
that trace is recorded at all: which ones are is up to the pipeline. Others come here and go on.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.types import Message, Receive, Scope, Send

from relay.http.fastlane import Hook
from relay.http.shortcut import Answer
from relay.http.webhooks import LET_IN
from relay.stream.entry import NewEvent
from relay.stream.publish import Publisher

if TYPE_CHECKING:
    from relay.spans import Parent, Spans


class TracedWebhook:
    """A webhook, with a span around requests that are traced. These go the ordinary way.

    A span is kept where the webhook has let the writer in: others must not be able to fill traces.
    """

    def __init__(self, webhook: Hook, route: str, spans: "Spans") -> None:
        self._webhook = webhook
        self._route = route
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parent = self._parent(scope["headers"])
        if parent is None:
            await self._webhook(scope, receive, send)
            return
        with self._spans.request(self._route, parent, lambda: scope.get(LET_IN, False)) as answer:

            async def send_on(message: Message) -> None:
                if message["type"] == "http.response.start":
                    answer(message["status"])
                await send(message)

            await self._webhook(scope, receive, send_on)

    def shortcut(self, headers: Sequence[tuple[bytes, bytes]], body: bytes, answer: Answer) -> bool:
        """The webhook's own, for what is not traced."""
        return self._parent(headers) is None and self._webhook.shortcut(headers, body, answer)

    def _parent(self, headers: Sequence[tuple[bytes, bytes]]) -> "Parent | None":
        for name, value in headers:
            if name == b"traceparent":
                return self._spans.parent(value.decode("latin-1"))
        return None


def traced_publisher(spans: "Spans") -> type[Publisher]:
    """Publishers, made as any, that have the events of a traced request carry their trace to the archive."""

    class TracedPublisher(Publisher):
        async def append(self, events: Sequence[NewEvent], key: str | None = None) -> list[int]:
            with spans.append(events) as carrying:
                return await super().append(carrying, key)

    return TracedPublisher
