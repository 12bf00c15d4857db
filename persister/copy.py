"""Rows as COPY reads them, in its text format. COPY is the fastest way into a table, but it knows no ON
CONFLICT: it is for a batch in which nothing is wrong and nothing is there already, as nearly every one is.

They are made as COPY asks for them, so that PostgreSQL is at the first while the others are made.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedIOBase
from itertools import islice
from math import isfinite
from typing import Any

from pydantic_core import from_json, to_json

from relay.events.base import Kind
from relay.events.registry import REGISTRY
from relay.stream.entry import Entry
from relay.stream.keys import created_at

NULL = "\\N"
_BACKSLASH = ord("\\")


def statement(kind: type[Kind]) -> str:
    """What takes the rows of a kind."""
    columns = ", ".join(kind.columns)
    return f"COPY {kind.table} (id, run_id, {columns}, occurred_at, created_at) FROM STDIN (ENCODING 'UTF8')"


ROWS = 128
"""In a piece: PostgreSQL is busy with them for some 2 ms, and gets the next ones sooner."""

NO_ROW = b"not what the webhook makes\n"
"""What no table takes for a row: the server then refuses the whole, as where it finds something wrong."""


class Rows(BufferedIOBase):
    """Entries of one kind as a file of rows."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._rows = _rows(entries)

    def read(self, size: int | None = -1, /) -> bytes:
        """The next piece, however long; empty at the end."""
        return b"".join(islice(self._rows, ROWS))


def _rows(entries: Iterable[Entry]) -> Iterator[bytes]:
    try:
        for entry in entries:
            yield _row(_WRITERS[entry.kind], entry)
    except (ValueError, OverflowError):  # a value of another type, a number that no float holds
        yield NO_ROW


def _row(writers: "tuple[Writers, Writers]", entry: Entry) -> bytes:
    id, run_id, _, text = entry
    # What JSON wrote without a backslash needs none in COPY either: most texts are not looked at one by one.
    columns = writers[_BACKSLASH in text]
    value = from_json(text).get
    fields = [str(id), run_id, *[write(value(name)) for name, write in columns], created_at(id)]
    return ("\t".join(fields) + "\n").encode()


def _text(value: Any) -> str:
    if value is None:
        return NULL
    if type(value) is not str:
        raise ValueError("a text is not one")
    return value


def _number(value: Any) -> str:
    if value is None:
        return NULL
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError("a number is not one")
    return repr(value)


def _json(value: Any) -> str:
    return NULL if value is None else to_json(value).decode()


def _escaped(write: "Writer") -> "Writer":
    """The same, with what COPY takes for a sign of its own after a backslash."""

    def escaped(value: Any) -> str:
        text = write(value)
        if text is not NULL:
            for sign, written in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
                text = text.replace(sign, written)
        return text

    return escaped


Writer = Callable[[Any], str]

_BY_TYPE: Mapping[str, Writer] = {
    "text": _text,
    "jsonb": _json,
    "bigint": _number,
    "double precision": _number,
}

Writers = list[tuple[str, Writer]]
"""The members of an event that a row has, in its order."""


def _writers(kind: type[Kind]) -> tuple[Writers, Writers]:
    """For texts without a backslash, and for those with one."""
    plain = [(name, _BY_TYPE[type]) for name, type in {**kind.columns, "occurred_at": "text"}.items()]
    return plain, [(name, _escaped(write)) for name, write in plain]


_WRITERS = {name: _writers(kind) for name, kind in REGISTRY.items() if kind.table}
