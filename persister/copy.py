"""Rows as COPY reads them, in its text format. COPY is the fastest way into a table, but it knows no ON
CONFLICT: it is for a batch in which nothing is wrong and nothing is there already, as nearly every one is.
"""

from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any

from pydantic_core import from_json, to_json

from relay.events.base import Kind
from relay.events.registry import REGISTRY
from relay.stream.entry import Entry
from relay.stream.keys import created_at

NULL = "\\N"


def statement(kind: type[Kind]) -> str:
    """What takes the rows of a kind."""
    columns = ", ".join(kind.columns)
    return f"COPY {kind.table} (id, run_id, {columns}, occurred_at, created_at) FROM STDIN (ENCODING 'UTF8')"


Rows = Mapping[str, bytes]
"""By the name of their kind."""


def rows(entries: Iterable[Entry]) -> Rows | None:
    """The entries as rows; None where one is not what the webhook makes."""
    made: dict[str, list[str]] = {}
    try:
        for entry in sorted(entries):
            if columns := _WRITERS.get(entry.kind):
                made.setdefault(entry.kind, []).append(_row(columns, entry))
        return {kind: "".join(lines).encode() for kind, lines in made.items()}
    except ValueError:
        return None


def _row(columns: "Iterable[tuple[str, Writer]]", entry: Entry) -> str:
    event = from_json(entry.text)
    values = "\t".join([write(event.get(name)) for name, write in columns])
    moment = _text(event.get("occurred_at"))
    return f"{entry.id}\t{entry.run_id}\t{values}\t{moment}\t{created_at(entry.id)}\n"


def _text(value: Any) -> str:
    if value is None:
        return NULL
    if type(value) is not str:
        raise ValueError("a text is not one")
    return _escaped(value)


def _number(value: Any) -> str:
    if value is None:
        return NULL
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError("a number is not one")
    return repr(value)


def _json(value: Any) -> str:
    return NULL if value is None else _escaped(to_json(value).decode())


def _escaped(value: str) -> str:
    """What COPY takes for the value. Most have nothing to escape, and `isprintable` is quick to say so."""
    if "\\" in value or not value.isprintable():
        value = value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return value


Writer = Callable[[Any], str]

_BY_TYPE: Mapping[str, Writer] = {
    "text": _text,
    "jsonb": _json,
    "bigint": _number,
    "double precision": _number,
}

_WRITERS: Mapping[str, list[tuple[str, Writer]]] = {
    name: [(column, _BY_TYPE[type]) for column, type in kind.columns.items()]
    for name, kind in REGISTRY.items()
    if kind.table
}
