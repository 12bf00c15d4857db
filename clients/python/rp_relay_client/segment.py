"""One file of waiting events: lines that are sent as they stand, and how far they were sent.

    00000000000000004242 00000000000000009000     everything before is settled; up to here is under way
    {"run_id":"r1","kind":"run_log","event":{"message":"hello","level":"info"}}
    ...

Lines are only ever appended. Before a batch is sent, its two ends are written into the mark. So whoever
reads the file after a crash sends exactly that batch again, under the same key, which is made of the
file's name and the two ends: one key, one payload, for ever.
"""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

_MARK = b"%020d %020d\n"
START = len(_MARK % (0, 0))
"""Where the first line is."""

_CHUNK = 1024 * 1024


class Batch(NamedTuple):
    """Consecutive lines of a segment."""

    segment: "Segment"
    start: int
    end: int
    body: bytes
    events: int

    @property
    def key(self) -> str:
        """The idempotency key: no other batch ever has it."""
        return f"{self.segment.name}.{self.start}-{self.end}"

    def place(self, index: int) -> int:
        """Where in the segment the event of that index begins."""
        offset = 0
        for _ in range(index):
            offset = self.body.index(b"\n", offset) + 1
        return self.start + offset


class Segment:
    """One such file, open. One thread appends, another takes and settles."""

    def __init__(self, name: str, fd: int, path: Path | None) -> None:
        self.name = name
        self.path = path
        self.fd = fd
        self.size = START
        self.waiting = 0
        self.sealed = False
        self.traceparent: str | None = None
        """Of the trace that its newest events are in. It is not in the file: who finds that is in another."""
        self._settled = self._ahead = START
        self._refused: set[int] = set()

    @classmethod
    def create(cls, name: str, path: Path) -> "Segment":
        """A new file. Raises OSError."""
        segment = cls(name, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), path)
        segment._write_mark()
        return segment

    @classmethod
    def in_memory(cls, name: str) -> "Segment":
        """A file that no disk holds, for where none may or can."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create(name)
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        return cls(name, fd, None)

    @classmethod
    def load(cls, name: str, path: Path) -> "Segment":
        """The file of a dead process; empty until `survey`. Raises OSError."""
        segment = cls(name, os.open(path, os.O_RDWR), path)
        segment.sealed = True
        return segment

    def survey(self) -> None:
        """Finds out where sending stood, and what waits. A line that is not whole was never accepted."""
        self._read_mark()
        self._count()

    @property
    def bytes_waiting(self) -> int:
        return self.size - self._settled

    def append(self, lines: bytes, *, fsync: bool) -> None:
        """Writes whole lines, or nothing. They count from `grow` on. Raises OSError."""
        try:
            place = self.size
            rest = memoryview(lines)
            while rest:
                written = os.pwrite(self.fd, rest, place)
                place, rest = place + written, rest[written:]
            if fsync:
                os.fsync(self.fd)
        except OSError:
            os.ftruncate(self.fd, self.size)
            raise

    def grow(self, size: int, events: int) -> None:
        self.size += size
        self.waiting += events

    def take(self, most_events: int, most_bytes: int) -> Batch | None:
        """The next batch, marked as under way; the same until it is settled or let go. None at the end."""
        if self._ahead == self._settled:
            self._ahead = self._boundary(most_events, most_bytes)
            if self._ahead == self._settled:
                return None
            self._write_mark()
        body = os.pread(self.fd, self._ahead - self._settled, self._settled)
        return Batch(self, self._settled, self._ahead, body, body.count(b"\n"))

    def settle(self, batch: Batch) -> None:
        """The batch is done with, one way or another."""
        self._settled = self._ahead = batch.end
        self.waiting -= batch.events
        self._write_mark()

    def let_go(self) -> None:
        """The batch under way was refused whole: the next one may have other ends."""
        self._ahead = self._settled

    def refuse(self, place: int) -> None:
        """The event there will not be sent."""
        self._refused.add(place)

    def skip_refused(self) -> int:
        """Passes over the refused events that come next; answers how many they are."""
        skipped = 0
        while self._ahead == self._settled and self._settled in self._refused:
            self._refused.remove(self._settled)
            end = self._boundary(1, _CHUNK)
            self.settle(Batch(self, self._settled, end, b"", 1))
            skipped += 1
        return skipped

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def remove(self) -> None:
        """Closes the file, and deletes it."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _boundary(self, most_events: int, most_bytes: int) -> int:
        """The end of the next batch: at least one line, none that is refused after the first."""
        left = self.size - self._settled
        data = os.pread(self.fd, min(left, most_bytes), self._settled)
        while data and b"\n" not in data and len(data) < left:
            data += os.pread(self.fd, min(left - len(data), _CHUNK), self._settled + len(data))
        length = 0
        for _ in range(most_events):
            end = data.find(b"\n", length) + 1
            if not end:
                break
            length = end
            if self._settled + length in self._refused:
                break
        return self._settled + length

    def _write_mark(self) -> None:
        os.pwrite(self.fd, _MARK % (self._settled, self._ahead), 0)

    def _read_mark(self) -> None:
        """Where sending stood. A mark that a crash of the machine destroyed means the beginning."""
        try:
            settled, ahead = (int(part) for part in os.pread(self.fd, START, 0).split())
        except ValueError:
            return
        if START <= settled <= ahead <= os.fstat(self.fd).st_size:
            self._settled, self._ahead = settled, ahead

    def _count(self) -> None:
        """Finds the end of the last whole line, and how many lines wait."""
        place = self._settled
        self.size = max(self._ahead, place)
        while chunk := os.pread(self.fd, _CHUNK, place):
            if last := chunk.rfind(b"\n") + 1:
                self.size = max(self.size, place + last)
                self.waiting += chunk.count(b"\n")
            place += len(chunk)
