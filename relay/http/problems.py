"""Errors as answers: RFC 9457 problem details, with `detail` always a string.

The body never holds input, tokens, SQL or a stack trace. `errors` lists what is wrong in a valid JSON
body, as `[{"loc", "msg", "type"}]`.
"""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from relay import errors, metrics
from relay.events.intake import validation_errors
from relay.headers import PRIVATE

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_TABLE: Mapping[type[errors.RelayError], tuple[int, str]] = {
    errors.MalformedJson: (400, "invalid-json"),
    errors.InvalidEvent: (422, "invalid-event"),
    errors.BatchTooLong: (413, "batch-too-long"),
    errors.BodyTooLarge: (413, "body-too-large"),
    errors.BodyTimeout: (408, "body-timeout"),
    errors.HeadTooLarge: (431, "headers-too-large"),
    errors.HeadTimeout: (408, "headers-timeout"),
    errors.UnsupportedMediaType: (415, "unsupported-media-type"),
    errors.MalformedPosition: (400, "malformed-last-event-id"),
    errors.BadRequest: (400, "bad-request"),
    errors.Unauthenticated: (401, "unauthenticated"),
    errors.Forbidden: (403, "forbidden"),
    errors.NotFound: (404, "not-found"),
    errors.Conflict: (409, "conflict"),
    errors.KeyReused: (409, "idempotency-key-reused"),
    errors.NotAcceptable: (406, "not-acceptable"),
    errors.RateLimited: (429, "rate-limited"),
    errors.RunQuota: (429, "run-quota"),
    errors.TooManyViewers: (429, "too-many-viewers"),
    errors.TooMany: (429, "too-many"),
    errors.NotStored: (503, "not-stored"),
    errors.OutcomeUnknown: (503, "outcome-unknown"),
    errors.DatabaseUnavailable: (503, "archive-unavailable"),
    errors.Unavailable: (503, "unavailable"),
    errors.Misconfigured: (500, "misconfigured"),
    errors.RelayError: (500, "internal"),
}

_OF_THE_FRAMEWORK = {404: "not-found", 405: "method-not-allowed"}

metrics.REFUSALS.update(
    dict.fromkeys([*(slug for _, slug in _TABLE.values()), *_OF_THE_FRAMEWORK.values(), "http-error"], 0)
)

_HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"www-authenticate": "Bearer", "connection": "close"},
    408: {"connection": "close"},
    413: {"connection": "close"},
    431: {"connection": "close"},
}
"""A body that was not read has to be cut off, or it would be taken for the next request."""

_EVERY = {name.decode(): value.decode() for name, value in PRIVATE}


def problem(error: errors.RelayError) -> Response:
    """The answer to an error."""
    status, slug = next(_TABLE[cls] for cls in type(error).__mro__ if cls in _TABLE)
    details = error.errors if isinstance(error, errors.InvalidEvent) else None
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s else None
    return _response(status, slug, str(error), details, headers)


def unexpected(method: str, error: Exception) -> Response:
    """The answer to an error that nobody foresaw, which is logged."""
    log.error("unexpected %s while answering %s", type(error).__name__, method, exc_info=error)
    return _response(500, "internal", "Something unexpected went wrong; it is in the server's log.")


def _response(
    status: int,
    slug: str,
    detail: str,
    details: list[errors.FieldError] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    metrics.REFUSALS[slug] += 1
    body = {
        "type": f"urn:rp-relay:problem:{slug}",
        "title": slug.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
    }
    if details is not None:
        body["errors"] = details
    sent = {**_EVERY, **_HEADERS.get(status, {}), **(headers or {})}
    return Response(to_json(body), status, sent, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Makes every answer of the application that is an error a problem."""

    async def relay_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.RelayError)  # noqa: S101 - registered for it below
        return problem(error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for it below
        detail = {
            404: "There is nothing at this path.",
            405: "This path does not take that method; see the header Allow.",
        }.get(error.status_code, "The request failed.")
        slug = _OF_THE_FRAMEWORK.get(error.status_code, "http-error")
        return _response(error.status_code, slug, detail, headers=error.headers)

    async def invalid_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it below
        found = validation_errors(list(error.errors()))
        return problem(errors.InvalidEvent(found, "A parameter of the request is not valid; see 'errors'."))

    async def unexpected_error(request: Request, error: Exception) -> Response:
        return unexpected(request.method, error)

    app.add_exception_handler(errors.RelayError, relay_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(Exception, unexpected_error)
