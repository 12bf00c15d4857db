"""Server-sent events: frames and `Last-Event-ID`. Pure: no framework, no I/O.

A frame is one block of the stream, `data: {"type": ..., "data": ...}`, in one of two framings: the
plain one, which begins with `data: ` and holds nothing else, and the resumable one, which carries
the event's id before the data. See the WHATWG HTML standard, section 9.2, for how clients read it.
"""

import re

from relay.errors import MalformedPosition
from relay.stream.keys import MAX_EVENT_ID

CONTENT_TYPE = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"

_POSITION = re.compile(r"[0-9]{1,16}")


def opening(event_id: int, resumable: bool) -> bytes:
    """How a block begins; one line of JSON and `CLOSING` follow."""
    return b"id: %d\ndata: " % event_id if resumable else b"data: "


CLOSING = b"\n\n"


class Frame:
    """One event as viewers get it, encoded once however many of them there are.

    `data` is one line of JSON. `last` says that the stream ends with this frame.
    """

    def __init__(self, event_id: int, data: bytes, *, last: bool = False) -> None:
        if b"\n" in data or b"\r" in data:
            raise ValueError("the data of a frame is one line")
        self.id = event_id
        self.last = last
        self._data = data

    def block(self, resumable: bool) -> bytes:
        return opening(self.id, resumable) + self._data + CLOSING


def message(type: str, data: bytes) -> bytes:
    """The JSON line of a frame. `type` comes from the registry, `data` is JSON text."""
    return b'{"type":"%b","data":%b}' % (type.encode(), data)


def greeting(retry_ms: int) -> bytes:
    """The first block: a comment, so that proxies let the stream through, and the time to wait
    before a reconnect, chosen at random by the caller so that viewers do not come back all at once."""
    return b": connected\nretry: %d\n\n" % retry_ms


def goodbye(retry_ms: int) -> bytes:
    """The last block of a stream that is to be reconnected."""
    return b": reconnect\nretry: %d\n\n" % retry_ms


def parse_position(text: str) -> int:
    """The event id in a `Last-Event-ID`. Raises MalformedPosition for anything the relay never sent."""
    if not _POSITION.fullmatch(text) or (position := int(text)) > MAX_EVENT_ID:
        raise MalformedPosition
    return position
