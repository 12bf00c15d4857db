"""The fast lane: the paths that matter for speed, found by one look-up instead of the router and its
middleware. What is not found here takes the ordinary way, with the same result. `shortcuts` is for our own
protocol class, which can do without a task for a request as well."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.http.problems import unexpected
from relay.http.shortcut import Answer, Shortcut

_RUN = re.compile(r"/conversations/([^/]+)/idea/research-run/([^/]+)(/[a-z-]+)")


class Hook(Protocol):
    """A webhook: an ASGI application, with a shortcut for what is there as a whole."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def shortcut(self, headers: Sequence[tuple[bytes, bytes]], body: bytes, answer: Answer) -> bool: ...


class FastLane:
    """In front of the framework: hands POSTs to `webhooks`, and GETs of what is below a run to `live`, or to
    `plain` where they have no parameters. `crossing` wraps what pages of other origins may read: all but the
    webhooks, and also the answer to what nobody foresaw."""

    def __init__(
        self,
        app: ASGIApp,
        webhooks: Mapping[str, Hook],
        live: Mapping[str, ASGIApp],
        plain: Mapping[str, ASGIApp],
        crossing: Callable[[ASGIApp], ASGIApp],
    ) -> None:
        self._app = crossing(app)
        self._webhooks = webhooks
        self._live = {path: crossing(found) for path, found in live.items()}
        self._plain = {path: crossing(found) for path, found in plain.items()}
        self._crossing = crossing
        self.shortcuts: Mapping[bytes, Shortcut] = {
            path.encode(): webhook.shortcut for path, webhook in webhooks.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._find(scope) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await found(scope, receive, send_on)
        except Exception as error:
            if begun:
                raise  # the server logs it and ends the connection
            await self._crossing(unexpected(scope["method"], error))(scope, receive, send)

    def _find(self, scope: Scope) -> ASGIApp | None:
        path = scope["path"]
        if scope["method"] == "POST":
            return self._webhooks.get(path)
        if scope["method"] != "GET" or not (match := _RUN.fullmatch(path)):
            return None
        found = self._live.get(match[3])
        if found is None and not scope["query_string"]:
            found = self._plain.get(match[3])
        if found is not None:
            scope["path_params"] = {"conversation_id": match[1], "run_id": match[2]}
        return found
