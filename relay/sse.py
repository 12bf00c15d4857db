"""Server-sent events: frames and `Last-Event-ID`. Pure: no framework, no I/O.

A frame is one block of the stream, `data: {"type": ..., "data": ...}`, in one of two framings: the
plain one, which begins with `data: ` and holds nothing else, and the resumable one, which carries
the event's id before the data. See the WHATWG HTML standard, section 9.2, for how clients read it.
"""

import re
from collections.abc import Iterable, Sequence
from enum import IntEnum

from pydantic_core import to_json

from relay.errors import MalformedPosition
from relay.stream.keys import MAX_EVENT_ID

CONTENT_TYPE = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"

_POSITION = re.compile(r"[0-9]{1,16}")


class Framing(IntEnum):
    """How a block is written."""

    PLAIN = 0  # it begins with `data: `
    RESUMABLE = 1  # it has its id, before the data
    LABELLED = 2  # the same, and the message says which run it is about


_NO_ID, CLOSING = b"data: ", b"\n\n"


def opening(position: int | str, framing: Framing) -> bytes:
    """How a block begins; one line of JSON and `CLOSING` follow."""
    return _NO_ID if framing is Framing.PLAIN else b"id: %b\ndata: " % str(position).encode()


def _block(opening: bytes, type: str, data: bytes, run_id: str | None = None) -> bytes:
    """A whole block. `type` comes from the registry, `data` is one line of JSON."""
    label = b"" if run_id is None else b'"run_id":"%b",' % run_id.encode()
    return b'%b{"type":"%b",%b"data":%b}%b' % (opening, type.encode(), label, data, CLOSING)


_LF, _CR = b"\n\r"
"""As numbers, since `in` tries a byte string as one before it looks, which takes ten times as long."""


class Frame:
    """One event as viewers get it, encoded once however many of them there are.

    `messages` are (type, data), the data one line of JSON. The last one is the event; those before it tell
    of state, and have no id of their own: a viewer that is cut between them gets all of them again.
    `last` says that the stream ends with this frame.
    """

    __slots__ = ("_messages", "id", "last", "run_id")

    def __init__(
        self, event_id: int, run_id: str, messages: Sequence[tuple[str, bytes]], *, last: bool = False
    ) -> None:
        for _, data in messages:
            if _LF in data or _CR in data:
                raise ValueError("the data of a message is one line")
        self.id = event_id
        self.run_id = run_id
        self.last = last
        self._messages = messages

    def block(self, framing: Framing, position: str | None = None) -> bytes:
        """The block, with the event's id, or with the position of a viewer for whom that is not enough."""
        label = self.run_id if framing is Framing.LABELLED else None
        *state, (type, data) = self._messages
        news = _block(opening(position or self.id, framing), type, data, label)
        return b"".join([_block(_NO_ID, *message, label) for message in state]) + news if state else news


def greeting(retry_ms: int) -> bytes:
    """The first block: a comment, so that proxies let the stream through, and the time to wait
    before a reconnect, chosen at random by the caller so that viewers do not come back all at once."""
    return b": connected\nretry: %d\n\n" % retry_ms


def complaint(text: str) -> bytes:
    """A block that tells a person what is wrong. It is no event, and moves nobody's position."""
    return _block(_NO_ID, "error", to_json(text))


def goodbye(retry_ms: int) -> bytes:
    """The last block of a stream that is to be reconnected."""
    return b": reconnect\nretry: %d\n\n" % retry_ms


def parse_positions(text: str) -> list[int]:
    """The positions in a `Last-Event-ID` of a stream over several shards, as `join_positions` made it."""
    return [parse_position(part) for part in text.split(".")]


def join_positions(positions: Iterable[int]) -> str:
    """One text for a position in each shard. Where there is one shard, it is the event's id."""
    return ".".join(map(str, positions))


def parse_position(text: str) -> int:
    """The event id in a `Last-Event-ID`. Raises MalformedPosition for anything the relay never sent."""
    if not _POSITION.fullmatch(text) or (position := int(text)) > MAX_EVENT_ID:
        raise MalformedPosition
    return position
