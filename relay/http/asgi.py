"""The few things that an ASGI application needs, for the paths that skip the framework."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.errors import BodyTimeout, BodyTooLarge, UnsupportedMediaType
from relay.headers import PRIVATE
from relay.http.protocol import EXTENSION

JSON = b"application/json"
NDJSON = b"application/x-ndjson"

_JSON_HEADERS = [(b"content-type", JSON), *PRIVATE]

Headers = Mapping[bytes, bytes]

PIECE_BYTES = 256 * 1024
"""What a long answer is sent in."""

Piece = tuple[bytes, bool]
"""A piece of an answer, and whether more follow."""


class HandOff(Response):
    """What a route answers that leaves the rest to an ASGI application."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Streamed(Response):
    """A JSON answer, sent piece by piece as it is read."""

    def __init__(self, first: Piece, rest: AsyncIterator[Piece]) -> None:
        super().__init__()
        self._first: Piece | None = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _JSON_HEADERS})
        piece, self._first = self._first, None  # which is not held for as long as the others take
        while piece:
            await send(_body(piece))
            piece = await anext(self._rest, None)


def _body(piece: Piece) -> Message:
    text, more = piece
    return {"type": "http.response.body", "body": text, "more_body": more}


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            assert isinstance(value, bytes)  # noqa: S101 - what ASGI says, for the type checker
            return value
    return None


def query(scope: Scope, name: str) -> Sequence[str]:
    """The values of a parameter of the query, in their order."""
    return parse_qs(scope["query_string"].decode("latin-1")).get(name, ()) if scope["query_string"] else ()


def first_headers(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The first header of each (lower-case) name."""
    return dict(reversed(headers))


def check_media_type(headers: Headers, *accepted: bytes) -> bytes:
    """The content type, one of `accepted`. Raises UnsupportedMediaType."""
    declared = headers.get(b"content-type", b"")
    if declared in accepted and b"content-encoding" not in headers:
        return declared  # as nearly everybody writes it
    media_type, _, parameters = declared.partition(b";")
    media_type = media_type.strip().lower()
    charset = parameters.strip().lower().replace(b'"', b"")
    if media_type not in accepted or charset not in (b"", b"charset=utf-8"):
        wanted = " or ".join(kind.decode() for kind in accepted)
        raise UnsupportedMediaType(f"Send the body as {wanted}, in UTF-8.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Send the body without a content encoding.")
    return media_type


async def read_body(scope: Scope, receive: Receive, limit: int, timeout_s: float) -> bytes:
    """The whole body. Raises BodyTooLarge (before reading, where the length is declared) or BodyTimeout."""
    declared = header(scope, b"content-length")
    if declared is not None and int(declared) > limit:
        raise _too_large(limit)
    if EXTENSION in scope.get("extensions", ()):  # there the connection's guard has an eye on the time
        return await _whole(receive, limit)
    try:
        async with asyncio.timeout(timeout_s):
            return await _whole(receive, limit)
    except TimeoutError as error:
        raise BodyTimeout from error


async def _whole(receive: Receive, limit: int) -> bytes:
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request":
        body: bytes = message.get("body", b"")
        _check_length(body, limit)
        return body
    return await _rest(message, receive, limit)


async def _rest(message: Message, receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        _check_length(body, limit)
        if not message.get("more_body"):
            return bytes(body)
        message = await receive()


def _check_length(body: bytes | bytearray, limit: int) -> None:
    if len(body) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the {limit} bytes that this endpoint takes.")
