"""The fast lane: the paths that matter for speed, found by one look-up instead of the router and its
middleware. What is not found here takes the ordinary way, with the same result. `shortcuts` is for our own
protocol class, which can do without a task for a request as well."""

import re
from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from relay.http.shortcut import Shortcut
from relay.http.webhooks import Webhook

_LIVE = re.compile(r"/conversations/([^/]+)/idea/research-run/([^/]+)/events")


class FastLane:
    """In front of the framework: hands POSTs to `webhooks` and GETs of a run's events to `live`."""

    def __init__(self, app: ASGIApp, webhooks: Mapping[str, Webhook], live: ASGIApp) -> None:
        self._app = app
        self._webhooks = webhooks
        self._live = live
        self.shortcuts: Mapping[bytes, Shortcut] = {
            path.encode(): webhook.shortcut for path, webhook in webhooks.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if scope["method"] == "POST" and path in self._webhooks:
                await self._webhooks[path](scope, receive, send)
                return
            if scope["method"] == "GET" and (match := _LIVE.fullmatch(path)):
                scope["path_params"] = {"conversation_id": match[1], "run_id": match[2]}
                await self._live(scope, receive, send)
                return
        await self._app(scope, receive, send)
