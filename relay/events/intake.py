"""From the bytes of a webhook body to valid events. Pure: no I/O, no framework.

One validation straight from the bytes, by pydantic-core; then the event is written as JSON once, with all
its fields and no unknown ones, and stays that text on its whole way. What is special (a NUL, a lone
surrogate, a number that is none, deep nesting) is looked for with a substring search, and handled slowly
where it is found.
"""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails

from relay import metrics
from relay.errors import BatchTooLong, FieldError, InvalidEvent, MalformedJson
from relay.events.base import Kind, Moment, RunId
from relay.events.registry import REGISTRY
from relay.stream.entry import NewEvent
from relay.stream.keys import RUN_ID

MAX_DEPTH = 64
"""Nesting of arrays and objects in an event: far more than a person can read."""

REPLACEMENT = rb"\ufffd"

# Looked for first: a byte, as a number, is found at a tenth of what a word costs, since `in` first asks of
# whatever it is given whether that is a number.
_BACKSLASH, _BRACKET, _I, _N = b"\\[IN"

_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL
)
_BAD_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2})")
_RUN_ID = re.compile(RUN_ID)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)

Model = TypeVar("Model", bound=BaseModel)


class _Envelope(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    occurred_at: Moment | None = None


class _FlatEnvelope(_Envelope):
    """Takes the event's fields beside its own, or in `event`."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        return data if not isinstance(data, dict) or "event" in data else {**data, "event": data}


def _webhook(kind: type[Kind], **place: Any) -> TypeAdapter[Any]:
    """What the webhook of a kind takes."""
    base = _FlatEnvelope if kind.flat else _Envelope
    return TypeAdapter(create_model(f"{kind.__name__}Webhook", __base__=base, event=(kind, ...), **place))


def _item(kind: type[Kind]) -> type[BaseModel]:
    """What a batch takes of a kind."""
    name: Any = Literal[kind.kind]
    return create_model(
        f"{kind.__name__}Item", __base__=_Envelope, run_id=(RunId, ...), kind=(name, ...), event=(kind, ...)
    )


WEBHOOKS: Mapping[str, TypeAdapter[Any]] = {
    name: _webhook(kind, run_id=(RunId, ...)) for name, kind in REGISTRY.items()
}
RUN_WEBHOOKS: Mapping[str, TypeAdapter[Any]] = {name: _webhook(kind) for name, kind in REGISTRY.items()}
"""The same for the paths that name the run."""

_ITEM: Any = Annotated[Union[tuple(map(_item, REGISTRY.values()))], Discriminator("kind")]  # noqa: UP007
BATCH: TypeAdapter[Any] = TypeAdapter(list[_ITEM])
"""What the batch endpoint takes."""


def parse_event(kind: type[Kind], body: bytes, run_id: str | None = None) -> NewEvent:
    """The event in a webhook's body, of the run that the path or else the body names.

    Raises MalformedJson or InvalidEvent, the latter also where both name one and it is not the same.
    """
    name = kind.kind
    if run_id is None:
        envelope = _validate(WEBHOOKS[name], body)
        return NewEvent(envelope.run_id, name, _text(envelope, ()))
    if not _RUN_ID.fullmatch(run_id):
        raise InvalidEvent(
            [_error(("path", "run_id"), "Input is not the name of a run", "string_pattern_mismatch")]
        )
    envelope = _validate(RUN_WEBHOOKS[name], body)
    if envelope.__pydantic_extra__.get("run_id") not in (None, run_id):
        raise InvalidEvent(
            [_error(("run_id",), "Input is another run than that in the path", "run_mismatch")]
        )
    return NewEvent(run_id, name, _text(envelope, ()))


def parse_batch(body: bytes, limit: int, event_bytes: int) -> list[NewEvent]:
    """The events in a JSON array, each of at most `event_bytes`.

    Raises MalformedJson, InvalidEvent or BatchTooLong.
    """
    items = _validate(BATCH, body)
    if len(items) > limit:
        raise BatchTooLong(f"The batch holds more than {limit} events; send it in parts.")
    if not items:
        raise InvalidEvent([_error((), "The batch is empty", "too_short")])
    events = [NewEvent(item.run_id, item.kind, _text(item, (index,))) for index, item in enumerate(items)]
    for index, event in enumerate(events):
        if len(event.text) > event_bytes:
            raise InvalidEvent(
                [_error((index, "event"), f"Input is larger than {event_bytes} bytes", "too_large")]
            )
    return events


def parse_lines(body: bytes, limit: int, event_bytes: int) -> list[NewEvent]:
    """The events in NDJSON, one a line; blank lines do not count. Raises as `parse_batch` does."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    events = parse_batch(b"[" + b",\n".join(lines) + b"]", limit, event_bytes)
    if len(events) != len(lines):
        raise MalformedJson("Each line has to hold exactly one JSON object.")
    return events


def parse(model: type[Model], body: bytes) -> Model:
    """A model from a body. Raises MalformedJson or InvalidEvent."""
    result: Model = _validate(TypeAdapter(model), body)
    return result


def _validate(adapter: TypeAdapter[Any], body: bytes) -> Any:
    if _BACKSLASH in body and b"\\u" in body and _BAD_ESCAPE.search(body):
        body = _ESCAPE.sub(_replace, body)
    try:
        return adapter.validator.validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        # pydantic's message says what the parser missed and where, and nothing of the input.
        raise MalformedJson(f"The body is not valid JSON ({found[0]['msg'].removeprefix('Invalid JSON: ')}).")
    raise InvalidEvent(validation_errors(found, beside=b'"event"' not in body))


def _replace(escape: re.Match[bytes]) -> bytes:
    """NUL, which PostgreSQL does not store, and half surrogate pairs, which are no text, become U+FFFD."""
    text = escape.group()
    return REPLACEMENT if len(text) == 6 and _BAD_ESCAPE.fullmatch(text) else text


def _text(envelope: Any, place: tuple[int, ...]) -> bytes:
    """The event as JSON. Raises MalformedJson or InvalidEvent for what validation let through."""
    event: Kind = envelope.event
    unknown = set(event.__pydantic_extra__) if event.__pydantic_extra__ else None
    if unknown or envelope.__pydantic_extra__:
        _count_unknown(envelope)
    text: bytes = event.__pydantic_serializer__.to_json(event, exclude=unknown)
    odd = (_N in text and b"NaN" in text) or (_I in text and b"Infinity" in text)
    if odd and not _finite(event.model_dump()):
        raise MalformedJson("The body holds a number that JSON can not hold: NaN, or an infinite one.")
    brackets = text.count(b"{") + (text.count(b"[") if _BRACKET in text else 0)
    if brackets > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        message = f"Input is nested more than {MAX_DEPTH} levels deep"
        raise InvalidEvent([_error((*place, "event"), message, "too_deep")])
    occurred_at = envelope.occurred_at or event.happened_at()
    return text if occurred_at is None else _with_time(text, occurred_at)


def _count_unknown(envelope: Any) -> None:
    """Counts an event with fields that neither it nor its envelope has. (A flat one has its own in both.)"""
    event: Kind = envelope.event
    known = type(event).model_fields.keys() | type(envelope).model_fields.keys() | {"run_id", "kind"}
    if (set(envelope.__pydantic_extra__) | set(event.__pydantic_extra__ or ())) - known:
        metrics.UNKNOWN_FIELDS[event.kind] += 1


def _with_time(text: bytes, occurred_at: datetime) -> bytes:
    moment = occurred_at.isoformat(timespec="microseconds")
    return b'%b,"occurred_at":"%b"}' % (text[:-1], moment.encode())


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return not isinstance(value, list) or all(map(_finite, value))


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for bracket in re.findall(rb"[\[{\]}]", _STRING.sub(b"", text)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _error(loc: Sequence[str | int], msg: str, type: str) -> FieldError:
    return {"loc": list(loc), "msg": msg, "type": type}


def validation_errors(found: Sequence[ErrorDetails], *, beside: bool = False) -> list[FieldError]:
    """What pydantic found, in terms of the body. `beside`: it has no event, but the fields of one."""
    return [_of_body(item["loc"], item["msg"], item["type"], beside) for item in found[:20]]


def _of_body(loc: tuple[int | str, ...], msg: str, type: str, beside: bool) -> FieldError:
    """Pydantic names the tag of a union as if it were a place, and repeats it where it is wrong."""
    match type:
        case "union_tag_not_found":
            return _error((*loc, "kind"), "Field required", "missing")
        case "union_tag_invalid":
            return _error((*loc, "kind"), f"Input should be one of {', '.join(REGISTRY)}", "literal_error")
    if len(loc) > 1 and isinstance(loc[0], int) and loc[1] in REGISTRY:
        loc = (loc[0], *loc[2:])
    elif beside and len(loc) > 1 and loc[0] == "event":
        loc = loc[1:]
    return _error(loc, msg, type)
