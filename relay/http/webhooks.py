"""The webhooks: token, body, validation, append, 204 — in that order.

Each is an ASGI application. The routes, which put them into the OpenAPI document, hand over to them; so
does the fast lane, which gets there without the router.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.auth import MAX_BIGINT, Ownership
from relay.auth.writers import SIGNED, Grant, Tokens
from relay.errors import BadRequest, RelayError, Unauthenticated
from relay.events.base import Kind
from relay.events.intake import (
    BATCH,
    RUN_WEBHOOKS,
    WEBHOOKS,
    parse,
    parse_batch,
    parse_event,
    parse_lines,
)
from relay.events.registry import REGISTRY
from relay.http.asgi import JSON, NDJSON, HandOff, Headers, check_media_type, first_headers, read_body
from relay.http.document import RUN_PARAMETER, body_of
from relay.http.problems import problem
from relay.http.rate import Rates
from relay.http.shortcut import Answer
from relay.settings import Settings
from relay.stream.entry import NewEvent
from relay.stream.keys import RUN_ID
from relay.stream.publish import Publisher

PREFIX = "/research-pipeline/events"
RUN_PREFIX = f"{PREFIX}/{{run_id}}"
BATCH_PATH = f"{PREFIX}/batch"

_KEY = re.compile(rb"[\x21-\x7e]{1,255}")

_START: Message = {"type": "http.response.start", "status": 204, "headers": []}
_BODY: Message = {"type": "http.response.body"}

LET_IN = "relay.let_in"
"""In the scope of a request once its token, or its signature, has proved good."""

Parse = Callable[[bytes, bytes, str | None], Sequence[NewEvent]]
"""(media type, body, the run that the path names) to events."""


class Writers:
    """Lets pipelines in, each token as fast as it may be."""

    def __init__(self, settings: Settings, tokens: Tokens) -> None:
        self.tokens = tokens
        self._rates = Rates(settings.requests_per_s) if settings.requests_per_s else None

    def take(self, grant: Grant) -> None:
        """Lets one more request through. Raises RateLimited."""
        if self._rates is not None:
            self._rates.take(grant)


class Webhook:
    """One webhook: an ASGI application that stores the events of a body."""

    def __init__(
        self,
        settings: Settings,
        writers: Writers,
        publisher: Callable[[], Publisher],
        parse: Parse,
        *media_types: bytes,
        limit: int,
    ) -> None:
        self._settings = settings
        self._writers = writers
        self._publisher = publisher
        self._parse = parse
        self._media_types = media_types
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        run_id = scope.get("path_params", {}).get("run_id")
        try:
            headers = first_headers(scope["headers"])
            grant = self._writers.tokens.check(headers)
            if grant is SIGNED and run_id is not None:
                raise Unauthenticated("A signature does not cover the path; send the run in the body.")
            scope[LET_IN] = grant is not SIGNED
            media_type = check_media_type(headers, *self._media_types)
            key = _idempotency_key(headers, b"webhook-id" if grant is SIGNED else b"idempotency-key")
            body = await read_body(scope, receive, self._limit, self._settings.body_timeout_s)
            if grant is SIGNED:
                self._writers.tokens.verify(headers, body)
                scope[LET_IN] = True
            self._writers.take(grant)
            events = self._parse(media_type, body, run_id)
            grant.check(events)
            await self._publisher().append(events, grant.own(key))
        except RelayError as error:
            await problem(error)(scope, receive, send)
        except ClientDisconnect:
            return  # nobody is left to be answered, and nothing was taken
        else:
            await send(_START)
            await send(_BODY)

    def shortcut(self, headers: Sequence[tuple[bytes, bytes]], body: bytes, answer: Answer) -> bool:
        """The same for a request that is there as a whole, where nothing is wrong with it. False: something
        is, and nothing was done; the ordinary way finds it again and says what."""
        try:
            named = first_headers(headers)
            grant = self._writers.tokens.check(named)
            if grant is SIGNED:
                return False
            media_type = check_media_type(named, *self._media_types)
            key = _idempotency_key(named)
            if len(body) > self._limit:
                return False
            events = self._parse(media_type, body, None)
            if grant.run_id is not None:
                grant.check(events)
                key = grant.own(key)
            publisher = self._publisher()
            if publisher.spans_shards(events):
                return False
            self._writers.take(grant)
        except RelayError:
            return False
        publisher.submit(
            events, key, lambda stored: answer(problem(stored) if isinstance(stored, RelayError) else None)
        )
        return True


def _idempotency_key(headers: Headers, name: bytes = b"idempotency-key") -> str | None:
    key = headers.get(name)
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise BadRequest(
            "The Idempotency-Key, or webhook-id, must be 1 to 255 visible ASCII characters without spaces."
        )
    return key.decode()


class RunClaim(BaseModel):
    """Whose run it is."""

    model_config = ConfigDict(strict=True)

    conversation_id: Annotated[int, Field(gt=0, le=MAX_BIGINT)]
    user_id: Annotated[int, Field(ge=0, le=MAX_BIGINT)]


def webhooks(
    settings: Settings, writers: Writers, publisher: Callable[[], Publisher]
) -> Mapping[str, Webhook]:
    """The webhook at each path. Every kind has two: one takes the run from the body, one from the path."""

    def of_kind(kind: type[Kind]) -> Webhook:
        def parse_one(media_type: bytes, body: bytes, run_id: str | None) -> Sequence[NewEvent]:
            return (parse_event(kind, body, run_id),)

        return Webhook(settings, writers, publisher, parse_one, JSON, limit=settings.event_bytes)

    def parse_many(media_type: bytes, body: bytes, run_id: str | None) -> Sequence[NewEvent]:
        parse_all = parse_lines if media_type == NDJSON else parse_batch
        return parse_all(body, settings.batch_events, settings.event_bytes)

    limit = settings.batch_bytes
    batch = Webhook(settings, writers, publisher, parse_many, JSON, NDJSON, limit=limit)
    single = {kind: of_kind(kind) for kind in REGISTRY.values()}
    return {
        **{PREFIX + kind.path: app for kind, app in single.items()},
        **{RUN_PREFIX + kind.path: app for kind, app in single.items()},
        BATCH_PATH: batch,
    }


def router(
    settings: Settings, writers: Writers, apps: Mapping[str, ASGIApp], ownership: Callable[[], Ownership]
) -> APIRouter:
    """The routes of the pipeline's side."""
    routes = APIRouter(tags=["pipeline"])

    async def check_writer(request: Request) -> None:
        grant = writers.tokens.check(first_headers(request.scope["headers"]))
        grant.check_unbounded()
        writers.take(grant)

    schemas: dict[str, Any] = {
        BATCH_PATH: {**body_of(BATCH), "minItems": 1, "maxItems": settings.batch_events}
    }
    for name, kind in REGISTRY.items():
        schemas[PREFIX + kind.path] = body_of(WEBHOOKS[name], flat=kind.flat)
        schemas[RUN_PREFIX + kind.path] = body_of(RUN_WEBHOOKS[name], flat=kind.flat)
    for path, app in apps.items():
        routes.add_api_route(
            path,
            _hand_off(app),
            methods=["POST"],
            status_code=204,
            summary=f"Store {'a batch of events' if path == BATCH_PATH else 'one event'}",
            openapi_extra={
                "requestBody": {"required": True, "content": {"application/json": {"schema": schemas[path]}}},
                "parameters": [_KEY_PARAMETER, *([_RUN_PARAMETER] if "{" in path else [])],
            },
            name=path,
        )

    @routes.put(
        "/research-pipeline/runs/{run_id}",
        status_code=204,
        summary="Make a run known, with its owner",
        dependencies=[Depends(check_writer)],
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": RunClaim.model_json_schema()}},
            },
        },
    )
    async def claim(request: Request, run_id: Annotated[str, Path(pattern=f"^{RUN_ID}$")]) -> Response:
        owner = parse(RunClaim, await _body(request))
        await ownership().claim(run_id, owner.conversation_id, owner.user_id)
        return Response(status_code=204)

    async def _body(request: Request) -> bytes:
        check_media_type(first_headers(request.scope["headers"]), JSON)
        return await read_body(request.scope, request.receive, settings.event_bytes, settings.body_timeout_s)

    return routes


def _hand_off(app: ASGIApp) -> Callable[[], Response]:
    async def endpoint() -> Response:
        return HandOff(app)

    return endpoint  # type: ignore[return-value]


_RUN_PARAMETER = {
    "name": "run_id",
    "in": "path",
    "required": True,
    "schema": RUN_PARAMETER,
}

_KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Makes a retry safe: the same key and payload are stored once.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
