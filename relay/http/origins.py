"""Cross-origin requests of scripts (CORS), for an exact list of origins.

The framework's own middleware keeps a request's headers for as long as its answer lasts, which for a stream
is hours, and refuses what is not allowed in a form of its own. Here that is left to the browser: it gets no
permission, and tells the page so.
"""

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.http.asgi import header

_PERMITTED = [
    (b"access-control-allow-methods", b"GET, HEAD, POST"),
    (b"access-control-allow-headers", b"authorization, cache-control, content-type, last-event-id"),
    (b"access-control-max-age", b"600"),
]


class CrossOrigin:
    """Lets pages of these origins read the answers of `app`, also with the cookie."""

    def __init__(self, app: ASGIApp, origins: Iterable[str]) -> None:
        self._app = app
        self._headers = {
            origin.encode(): [
                (b"access-control-allow-origin", origin.encode()),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", b"retry-after"),
                (b"vary", b"origin"),
            ]
            for origin in origins
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = header(scope, b"origin") if scope["type"] == "http" else None
        headers = self._headers.get(origin) if origin else None
        if headers is None:
            await self._app(scope, receive, send)
        elif scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method"):
            await send({"type": "http.response.start", "status": 204, "headers": headers + _PERMITTED})
            await send({"type": "http.response.body"})
        else:
            await self._app(scope, receive, _adding(headers, send))


def _adding(headers: list[tuple[bytes, bytes]], send: Send) -> Send:
    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return send_with
