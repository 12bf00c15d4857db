"""What an event looks like in a stream, and as JSON. Pure: no I/O.

A stream entry has three fields, always in this order: `r` the run, `k` the kind, `e` the event's
own JSON text and its seal. What viewers, history and the archive's insert see is the *payload*: that text
with id, run and time spliced around it, so that nothing is parsed and written again on the way.

The seal is a checksum of run, kind and text, as eight hexadecimal digits behind the text: Redis keeps none
of its own, and a byte that its disk changes would else be archived as if it were sent. An entry without one,
whose text ends as JSON does, is taken as it is: a version before the seal wrote it.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from relay.events.registry import REGISTRY
from relay.sse import Frame
from relay.stream.keys import created_at, id_of

FIELDS = (b"r", b"k", b"e")

SEAL_BYTES = 8

_OPEN, _CLOSE = b"{}"


class NewEvent(NamedTuple):
    """An event that is valid and not stored yet. `text` is a JSON object with at least one member."""

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
        payload = b'{"id":%d,"run_id":"%b",%b,"created_at":"%b"}' % (
            self.id,
            self.run_id.encode(),
            self.text[1:-1],
            created_at(self.id).encode(),
        )
        return Record(self.id, self.run_id, self.kind, payload)


class Record(NamedTuple):
    """An event as viewers and history see it. `payload` is a JSON object: id, run_id, the columns of its
    kind, occurred_at where that is known, created_at."""

    id: int
    run_id: str
    kind: str
    payload: bytes

    @property
    def ends_run(self) -> bool:
        return self.kind in REGISTRY and REGISTRY[self.kind].ends_run


class MalformedEntry(ValueError):
    """An entry that this relay's function did not write."""


@lru_cache(maxsize=4096)
def seal_of(run_id: bytes, kind: bytes) -> int:
    """Where the checksum of a text of this run and kind starts: crc32(text, this) is the seal."""
    return crc32(b"%b %b" % (run_id, kind))


def _unsealed(run_id: bytes, kind: bytes, sealed: bytes) -> bytes:
    text = sealed[:-SEAL_BYTES]
    if sealed[-SEAL_BYTES:] != b"%08x" % crc32(text, seal_of(run_id, kind)):
        raise MalformedEntry("it is damaged: its checksum does not fit")
    return text


def decode(stream_id: bytes, fields: Sequence[bytes] | None, shard: int) -> Entry:
    """The entry behind one item of an XRANGE or XREAD reply. Raises MalformedEntry."""
    try:
        if not fields or len(fields) != 6 or (fields[0], fields[2], fields[4]) != FIELDS:
            raise MalformedEntry("it does not have the fields of an event")
        run_id, kind, text = fields[1], fields[3], fields[5]
        if text and text[-1] != _CLOSE:
            text = _unsealed(run_id, kind, text)
        if len(text) <= 2 or text[0] != _OPEN or text[-1] != _CLOSE:
            raise MalformedEntry("its text is not a JSON object")
        return Entry(id_of(stream_id, shard), run_id.decode(), kind.decode(), text)
    except MalformedEntry:
        raise
    except ValueError as error:
        raise MalformedEntry("its id or a name in it is not one that the relay writes") from error


def frame(record: Record) -> Frame | None:
    """The live frame of an event; None for a kind that this version does not know."""
    known = _SHOWN.get(record.kind)
    if known is None:
        return None
    messages, ends_run = known
    return Frame(record.id, record.run_id, messages(record.payload), last=ends_run)


_SHOWN = {name: (kind.messages, kind.ends_run) for name, kind in REGISTRY.items()}
"""Looked up once: the attributes of a model's class are slow to read."""
