"""The fast lane: the paths that matter for speed, found by one look-up instead of the router and its
middleware. What is not found here takes the ordinary way, with the same result. `shortcuts` is for our own
protocol class, which can do without a task for a request as well."""

import re
from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from relay.http.shortcut import Shortcut
from relay.http.webhooks import Webhook

_RUN = re.compile(r"/conversations/([^/]+)/idea/research-run/([^/]+)(/[a-z-]+)")


class FastLane:
    """In front of the framework: hands POSTs to `webhooks`, and GETs of what is below a run to `live`, or to
    `plain` where they have no parameters."""

    def __init__(
        self,
        app: ASGIApp,
        webhooks: Mapping[str, Webhook],
        live: Mapping[str, ASGIApp],
        plain: Mapping[str, ASGIApp],
    ) -> None:
        self._app = app
        self._webhooks = webhooks
        self._live = live
        self._plain = plain
        self.shortcuts: Mapping[bytes, Shortcut] = {
            path.encode(): webhook.shortcut for path, webhook in webhooks.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if scope["method"] == "POST" and path in self._webhooks:
                await self._webhooks[path](scope, receive, send)
                return
            if scope["method"] == "GET" and (match := _RUN.fullmatch(path)):
                found = self._live.get(match[3]) or (not scope["query_string"] and self._plain.get(match[3]))
                if found:
                    scope["path_params"] = {"conversation_id": match[1], "run_id": match[2]}
                    await found(scope, receive, send)
                    return
        await self._app(scope, receive, send)
