"""From what a pipeline emits to the line that is sent. Pure: no I/O.

In two halves. The caller's thread takes a `snapshot`, so that an event says what was true when it was
emitted, even where the pipeline goes on to change a dict that is in it. The writer's thread makes a `line`
of it, which takes several times as long.
"""

import datetime
import json
import numbers
import os
from typing import Any

EVENT_BYTES = 256 * 1024
"""What the relay takes of one event."""

_IMMUTABLE = frozenset((str, int, float, bool, type(None)))


class Unsendable(Exception):
    """An event that the relay would never take."""


def snapshot(data: Any) -> dict[str, Any]:
    """A copy of an event's content that nobody can change any more.

    `data` is a dict or can be made one, or is a model of pydantic's. Raises what making one raises, or
    RecursionError for a cycle.
    """
    if not isinstance(data, dict):
        data = data.model_dump(mode="json") if hasattr(data, "model_dump") else dict(data)
    return {name: item if type(item) in _IMMUTABLE else _copy(item) for name, item in data.items()}


def _copy(value: Any) -> Any:
    """Containers are copied; whatever else could change is no JSON, and is found out later."""
    if isinstance(value, dict):
        return snapshot(value)
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _IMMUTABLE else _copy(item) for item in value]
    return value


def line(run: str, kind: Any, data: dict[str, Any]) -> bytes:
    """One event as one line of JSON. `run` is the run's id as JSON.

    Raises Unsendable, or what the encoder raises for what JSON can not hold: TypeError for a foreign
    object, ValueError for NaN, RecursionError for an abyss.
    """
    text = f'{{"run_id":{run},"kind":{_ENCODER.encode(kind)},"event":{_ENCODER.encode(data)}}}\n'
    if len(text) >= EVENT_BYTES:
        raise Unsendable(f"its {len(text)} bytes are more than the relay takes")
    return text.encode("ascii")


def _plain(value: Any) -> Any:
    """What pipelines put into `details` beside plain values: numbers of numpy's, times, paths."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, (datetime.datetime, datetime.date)):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"JSON can not hold an object of class {type(value).__name__}")


_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_plain)
