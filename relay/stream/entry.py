"""What an event looks like in a stream, and as JSON. Pure: no I/O.

A stream entry has one field, `e`: a run, a space, a kind, the event's own JSON text, and a seal. One, since
what a call takes Redis goes by its words. What viewers, history and the insert see is the *payload*: that
text with id, run and time spliced around it, so that nothing is parsed and written again on the way.

The seal is a checksum of all that, as eight hexadecimal digits: Redis keeps none of its own, and a byte that
its disk changes would else be archived as if it were sent. What has none, or has names that no webhook takes,
was not written by the relay, and is no entry.

Where the POST of an event is traced, the `traceparent` of its append and a tilde stand between text and seal,
and are sealed with the text. They are for the trace alone: nobody is shown them.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from relay.events.registry import REGISTRY
from relay.sse import Frame
from relay.stream.keys import LONGEST_NAME, RUN_ID, created_at, id_of

FIELD = b"e"

SEAL_BYTES = 8

_OPEN = b"{"
CLOSE = ord("}")

LARGEST_BODY = 16 * 1024 * 1024
"""What the body of an event may be allowed to have, in bytes."""

LARGEST_TEXT = 4 * LARGEST_BODY
"""What becomes of such a body at most. (A number is what grows when it is written anew: 1e15 gets 18.)"""

_NAME = re.compile(RUN_ID)

_HEAD = re.compile(f"({RUN_ID}) ({RUN_ID})".encode())

_LONGEST_HEAD = 2 * LONGEST_NAME + 1
"""Two names, and the space between them."""

_TRACED = re.compile(rb"(\{.+\})(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})~", re.DOTALL)


class NewEvent(NamedTuple):
    """An event that is valid and not stored yet. `text` is a JSON object with at least one member, followed
    by its trace where it has one."""

    run_id: str
    kind: str
    text: bytes


class Entry(NamedTuple):
    """An event in a stream."""

    id: int
    run_id: str
    kind: str
    text: bytes

    @property
    def record(self) -> "Record":
        """The event as viewers see it."""
        return Record(self.id, self.run_id, self.kind, _payload(self.id, self.run_id, self.text))


class Record(NamedTuple):
    """An event as viewers and history see it. `payload` is a JSON object: id, run_id, the columns of its
    kind, occurred_at where that is known, created_at."""

    id: int
    run_id: str
    kind: str
    payload: bytes


class MalformedEntry(ValueError):
    """An entry that this relay's function did not write."""


class Names(NamedTuple):
    """Of what run and kind an event is, and where the checksum of its text starts: crc32(text, `seal`) is the
    seal."""

    run_id: str
    kind: str
    seal: int


def head_of(run_id: str, kind: str) -> bytes:
    """What the entries of these events begin with; their text follows."""
    return f"{run_id} {kind}".encode()


@lru_cache(maxsize=4096)
def names_in(head: bytes) -> Names:
    """The names that an entry begins with. Raises MalformedEntry for what could be more than names where it
    is put into JSON, or into a row: asked here, where the answer is remembered for many entries."""
    found = _HEAD.fullmatch(head)
    if found is None:
        raise MalformedEntry("it is damaged: it does not begin with a run and a kind")
    return Names(found[1].decode(), found[2].decode(), crc32(head))


def run_of(sealed: bytes) -> str:
    """Of what run an entry says to be, unproved; empty where it says nothing of the kind."""
    return sealed[: max(sealed.find(b" ", 0, _LONGEST_HEAD), 0)].decode(errors="replace")


def kind_of(sealed: bytes) -> str:
    """The kind of an entry that can be decoded."""
    return names_in(sealed[: sealed.index(_OPEN)]).kind


def decode(stream_id: bytes, fields: Sequence[bytes], shard: int) -> Entry:
    """The entry behind one item of an XRANGE or XREAD reply. Raises MalformedEntry."""
    id, names, text = _parts(stream_id, fields, shard)
    if len(text) > LARGEST_TEXT:
        raise MalformedEntry("it is larger than any event")
    return Entry(id, names.run_id, names.kind, text)


def named(stream_id: bytes, fields: Sequence[bytes], shard: int) -> tuple[str, int] | None:
    """Run and id of an entry that can not be decoded, as far as it says; None where it names no run."""
    try:
        run_id = run_of(fields[1])
        return (run_id, id_of(stream_id, shard)) if _NAME.fullmatch(run_id) else None
    except (ValueError, IndexError):
        return None


def decode_record(stream_id: bytes, fields: Sequence[bytes], shard: int) -> Record:
    """The same as viewers see it, made without the entry. Raises MalformedEntry."""
    id, names, text = _parts(stream_id, fields, shard)
    return Record(id, names.run_id, names.kind, _payload(id, names.run_id, text))


def _parts(stream_id: bytes, fields: Sequence[bytes], shard: int) -> tuple[int, Names, bytes]:
    """Id, names and text. Raises MalformedEntry."""
    try:
        e, sealed = fields or ()
        if e != FIELD:
            raise ValueError
    except ValueError as error:
        raise MalformedEntry("it does not have the field of an event") from error
    start = sealed.find(_OPEN, 0, _LONGEST_HEAD + 1)
    names = names_in(sealed[: max(start, 0)])
    text = _unsealed(sealed, start, names.seal)
    if len(text) <= 2 or text[-1] != CLOSE:
        text = untraced(text)
    try:
        return id_of(stream_id, shard), names, text
    except ValueError as error:
        raise MalformedEntry("its id is not one that the relay gives") from error


def _unsealed(sealed: bytes, start: int, seal: int) -> bytes:
    text = sealed[start:-SEAL_BYTES]
    if sealed[-SEAL_BYTES:] != b"%08x" % crc32(text, seal):
        raise MalformedEntry("it is damaged: its checksum does not fit")
    return text


def traced(event: NewEvent, traceparent: str) -> NewEvent:
    """The event with the `traceparent` that its entry is to carry, 55 characters as W3C has them."""
    return event._replace(text=b"%b%b~" % (event.text, traceparent.encode()))


def traceparent_of(sealed: bytes) -> str | None:
    """The `traceparent` in an entry, where there is one."""
    found = _trace_in(sealed)
    return found[2].decode() if found else None


def without_trace(sealed: bytes) -> bytes:
    """An entry, to be shown: names, text and seal. (The seal is that of the whole.)"""
    found = _trace_in(sealed)
    return sealed[: found.end(1)] + sealed[-SEAL_BYTES:] if found else sealed


def _trace_in(sealed: bytes) -> "re.Match[bytes] | None":
    if sealed[-SEAL_BYTES - 1 : -SEAL_BYTES] != b"~":
        return None  # most have none, and looking for one takes the longer the more text there is
    return _TRACED.fullmatch(sealed, sealed.find(_OPEN), len(sealed) - SEAL_BYTES)


def untraced(text: bytes) -> bytes:
    """The text without the trace behind it. Raises MalformedEntry where that is not why it is no object."""
    found = _TRACED.fullmatch(text)
    if found is None:
        raise MalformedEntry("its text is not a JSON object")
    return found[1]


def _payload(id: int, run_id: str, text: bytes) -> bytes:
    run, moment = run_id.encode(), created_at(id).encode()
    return b'{"id":%d,"run_id":"%b",%b,"created_at":"%b"}' % (id, run, text[1:-1], moment)


def frame(record: Record) -> Frame | None:
    """The live frame of an event; None for a kind that this version does not know."""
    known = _SHOWN.get(record.kind)
    if known is None:
        return None
    messages, ends_run = known
    return Frame(record.id, record.run_id, messages(record.payload), last=ends_run)


_SHOWN = {name: (kind.messages, kind.ends_run) for name, kind in REGISTRY.items()}
"""Looked up once: the attributes of a model's class are slow to read."""
