"""Everything that can go wrong on purpose, as one tree.

    RelayError
    ├── Invalid                  the request can never succeed as it is
    │   ├── MalformedJson        not JSON at all
    │   ├── InvalidEvent         JSON, but not what the endpoint takes (carries `errors`)
    │   ├── BatchTooLong         more events than one call may carry
    │   ├── BodyTooLarge
    │   ├── BodyTimeout          the body did not arrive in time
    │   ├── HeadTooLarge         more headers, or longer ones, than a request may have
    │   ├── HeadTimeout          the headers did not arrive in time
    │   ├── UnsupportedMediaType
    │   ├── MalformedPosition    a `Last-Event-ID` that no relay ever sent
    │   └── BadRequest           any other malformed part of a request
    ├── Refused                  the request is fine, the caller or the state is not
    │   ├── Unauthenticated
    │   ├── Forbidden
    │   ├── NotFound
    │   ├── Conflict             another owner has it
    │   ├── KeyReused            an idempotency key came back with another payload
    │   └── NotAcceptable
    ├── TooMany                  a limit is reached; try the same again later
    │   ├── RateLimited          requests in a second
    │   ├── RunQuota             runs that have a log at the same time
    │   └── TooManyViewers       streams at the same time
    ├── Unavailable              try the same again later
    │   ├── NotStored            certainly not stored
    │   ├── OutcomeUnknown       may have been stored; retry with the same idempotency key
    │   └── DatabaseUnavailable
    └── Misconfigured            the operator has to act
        └── Insecure             a process does not start with what it found

The message of an error is shown to the caller: it says what was wrong and what to do, and never
holds input, tokens or SQL.
"""

from collections.abc import Sequence
from typing import ClassVar, TypedDict


class FieldError(TypedDict):
    """Where in the input, and what is wrong there; never the input itself."""

    loc: list[str | int]
    msg: str
    type: str


class RelayError(Exception):
    """Something went wrong that has a name."""

    default: ClassVar[str] = "The request failed."
    retry_after_s: ClassVar[int | None] = None
    """When the same may succeed, where it may at all."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.default)


class Invalid(RelayError):
    default = "The request is not valid."


class MalformedJson(Invalid):
    default = "The body is not valid JSON."


class InvalidEvent(Invalid):
    default = "The body does not have the form that this endpoint takes; see 'errors'."

    def __init__(self, errors: Sequence[FieldError], message: str | None = None) -> None:
        super().__init__(message)
        self.errors = list(errors)


class BatchTooLong(Invalid):
    pass


class BodyTooLarge(Invalid):
    pass


class BodyTimeout(Invalid):
    default = "The body did not arrive in time; send it without pauses."


class HeadTooLarge(Invalid):
    pass


class HeadTimeout(Invalid):
    default = "The headers did not arrive in time; send them without pauses."


class UnsupportedMediaType(Invalid):
    pass


class MalformedPosition(Invalid):
    default = "Last-Event-ID must be an event id as the stream sent it: a whole number."


class BadRequest(Invalid):
    pass


class Refused(RelayError):
    default = "The request was refused."


class Unauthenticated(Refused):
    default = "Authentication is missing or not valid."


class Forbidden(Refused):
    pass


class NotFound(Refused):
    pass


class Conflict(Refused):
    pass


class KeyReused(Refused):
    default = "This Idempotency-Key was used with another payload; use a new key for a new payload."


class NotAcceptable(Refused):
    default = "This endpoint answers text/event-stream; accept that type."


class TooMany(RelayError):
    default = "A limit is reached; try again later."
    retry_after_s = 1


class RateLimited(TooMany):
    default = "This token makes more requests in a second than it may; send events in batches, or slow down."


class RunQuota(TooMany):
    default = (
        "As many runs of the shard have a log as RELAY_LIVE_RUNS of the service allows at the same time, so "
        "nothing was stored of a new one; it can be once older runs have expired."
    )
    retry_after_s = 60


class TooManyViewers(TooMany):
    default = "As many streams are open as may be at the same time; close one, or connect again later."
    retry_after_s = 10


class Unavailable(RelayError):
    default = "The service is not available; try again later."
    retry_after_s = 1


class NotStored(Unavailable):
    default = "The event was not stored, because the event log is not available; send it again."


class OutcomeUnknown(Unavailable):
    default = (
        "The event log did not answer in time, so the event may or may not have been stored; "
        "send it again with the same Idempotency-Key."
    )


class DatabaseUnavailable(Unavailable):
    default = "The archive is not available; try again later."


class Misconfigured(RelayError):
    default = "The server is not configured for this request."


class Insecure(Misconfigured):
    pass
