"""Webhooks where there is somewhere to send traces to. Only a POST that names the trace that it is part of is
traced, if that trace is recorded at all: which ones are is up to the pipeline. Others come here and go on.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.types import Message, Receive, Scope, Send

from relay.http.fastlane import Hook
from relay.http.shortcut import Answer
from relay.stream.entry import NewEvent
from relay.stream.publish import Publisher

if TYPE_CHECKING:
    from relay.spans import Parent, Spans


class TracedWebhook:
    """A webhook, with a span around requests that are traced. These go the ordinary way."""

    def __init__(self, webhook: Hook, route: str, spans: "Spans") -> None:
        self._webhook = webhook
        self._route = route
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parent = self._parent(scope["headers"])
        if parent is None:
            await self._webhook(scope, receive, send)
            return
        with self._spans.request(self._route, parent) as answer:

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


class TracedPublisher(Publisher):
    """A publisher that has the events of a traced request carry their trace to the archive."""

    def __init__(self, spans: "Spans", *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        self._spans = spans

    async def append(self, events: Sequence[NewEvent], key: str | None = None) -> list[int]:
        with self._spans.append(events) as carrying:
            return await super().append(carrying, key)
