"""All that waits to be sent, in order: what dead processes left, then what this one was given.

There is no second way from the pipeline to the relay: every event passes through a segment, whether the
relay is there or not. The writer's thread appends, the sender's thread takes and settles.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Condition

from rp_relay_client import forks
from rp_relay_client.claims import Claim, left_behind
from rp_relay_client.counters import Counters
from rp_relay_client.notices import Notices
from rp_relay_client.segment import Batch, Segment
from rp_relay_client.settings import Settings

_DISK_AGAIN_S = 5.0
"""How long to stay in memory after the disk failed."""


class Spool:
    """The waiting events of one process. `root` is the relay's directory; without one all is in memory."""

    def __init__(self, root: Path | None, settings: Settings, counters: Counters, notices: Notices) -> None:
        self._root = root
        self._settings = settings
        self._counters = counters
        self._notices = notices
        self._news = Condition()
        self._claim: Claim | None = None
        self._disk_from = 0.0
        self._memory_name = secrets.token_hex(16)
        self._memory_made = 0
        self._own: deque[Segment] = deque()
        self._adopted: deque[tuple[Claim, deque[Segment]]] = deque()
        self.finished = False
        self.lost = 0

    # What the writer does

    def append(self, lines: Sequence[bytes], traceparent: str | None = None) -> None:
        """Takes events over, in order, with the trace that they are part of. What there is no room for is
        dropped, and counted. Raises OSError."""
        segment = self._writable()
        lines = self._fitting(lines, segment)
        data = b"".join(lines)
        try:
            segment.append(data, fsync=self._settings.fsync)
        except OSError as error:
            if segment.path is None:
                raise
            segment = self._instead_of_disk(error)
            segment.append(data, fsync=False)
        segment.traceparent = traceparent
        with self._news:
            segment.grow(len(data), len(lines))
            self._news.notify_all()

    def finish(self) -> None:
        """Nothing more will come."""
        with self._news:
            self.finished = True
            self._news.notify_all()

    def _writable(self) -> Segment:
        segment = self._own[-1] if self._own else None
        on_disk = self._root is not None and time.monotonic() >= self._disk_from
        if (
            segment is None
            or segment.size >= self._settings.segment_bytes
            or (on_disk and segment.path is None)
        ):
            return self._begin_on_disk(self._root) if on_disk and self._root else self._begin_in_memory()
        return segment

    def _begin_on_disk(self, root: Path) -> Segment:
        try:
            with forks.gate:
                if self._claim is None:
                    self._claim = Claim.new(root)
                return self._begin(self._claim.create())
        except OSError as error:
            return self._instead_of_disk(error)

    def _instead_of_disk(self, error: OSError) -> Segment:
        self._disk_from = time.monotonic() + _DISK_AGAIN_S
        self._notices.once(
            f"Events can not be spooled to {self._root} ({error.strerror}): they wait in memory, and are "
            "lost if this process is killed."
        )
        return self._begin_in_memory()

    def _begin_in_memory(self) -> Segment:
        self._memory_made += 1
        with forks.gate:
            return self._begin(Segment.in_memory(f"{self._memory_name}.{self._memory_made}"))

    def _begin(self, segment: Segment) -> Segment:
        with self._news:
            if self._own:
                self._own[-1].sealed = True
            self._own.append(segment)
        return segment

    def _fitting(self, lines: Sequence[bytes], segment: Segment) -> Sequence[bytes]:
        limit = self._settings.memory_bytes if segment.path is None else self._settings.spool_bytes
        with self._news:
            room = limit - sum(segment.bytes_waiting for segment in self._segments())
        if sum(map(len, lines)) <= room:
            return lines
        fitting: list[bytes] = []
        for line in lines:
            if len(line) <= room:
                fitting.append(line)
                room -= len(line)
        self._counters.add(dropped=len(lines) - len(fitting))
        self._notices.once("The spool is full: events are dropped until the relay takes some.")
        return fitting

    # What the sender does

    def next(self, most_events: int) -> Batch | None:
        """The oldest events that wait; the same ones until they are settled."""
        while segment := self._head():
            self._skip_refused(segment)
            if batch := segment.take(most_events, self._settings.batch_bytes):
                return batch
            with self._news:
                if not segment.sealed:
                    return None
                over = segment.bytes_waiting == 0
            if over:
                self._discard(segment)
        return None

    def _skip_refused(self, segment: Segment) -> None:
        with self._news:
            if skipped := segment.skip_refused():
                self._counters.add(refused=skipped)
                self._news.notify_all()

    def settle(self, batch: Batch, *, sent: bool) -> None:
        """The batch is in the relay, or is refused for good."""
        with self._news:
            batch.segment.settle(batch)
            self._counters.add(**{"sent" if sent else "refused": batch.events})
            self._news.notify_all()

    def adopt(self) -> None:
        """Takes over what dead processes left, before what is here already."""
        if self._root is None:
            return
        adopted, unreadable = self._adopt_all(self._root)
        for segment in adopted:
            with self._news:
                segment.survey()
                self._news.notify_all()
        if unreadable:
            self._notices.once(f"What waits in {', '.join(unreadable)} can not be read.")

    def _adopt_all(self, root: Path) -> tuple[list[Segment], list[str]]:
        """Adopts what can be opened; answers that, and the paths of the rest."""
        adopted: list[Segment] = []
        unreadable = []
        with forks.gate:
            for claim in left_behind(root):
                try:
                    segments = claim.load()
                except OSError:
                    claim.close()
                    unreadable.append(str(claim.path))
                    continue
                if segments:
                    with self._news:
                        self._adopted.append((claim, deque(segments)))
                    adopted += segments
                else:
                    claim.give_up()
        return adopted, unreadable

    def _head(self) -> Segment | None:
        with self._news:
            if self._adopted:
                return self._adopted[0][1][0]
            return self._own[0] if self._own else None

    def _discard(self, segment: Segment) -> None:
        """Removes a segment of which all is settled: the head."""
        with forks.gate:
            segment.remove()
            with self._news:
                if not self._adopted:
                    self._own.popleft()
                    return
                claim, segments = self._adopted[0]
                segments.popleft()
                if segments:
                    return
                self._adopted.popleft()
            claim.give_up()

    def release(self) -> None:
        """Gives everything up, once the writer has finished. What is on disk and was not sent is the next
        process's."""
        self.wait(lambda: self.finished, None)
        with forks.gate, self._news:
            for segment in self._segments():
                if segment.path is None:
                    self.lost += segment.waiting
                    self._counters.add(dropped=segment.waiting)
                    segment.waiting = 0
                if segment.bytes_waiting:
                    segment.close()
                else:
                    segment.remove()
            for claim in self._claims():
                claim.give_up()
            self._news.notify_all()

    # What both do, and those who look on

    def counts(self) -> tuple[int, int]:
        """How many events wait in memory, and on disk."""
        with self._news:
            memory = sum(segment.waiting for segment in self._segments() if segment.path is None)
            return memory, sum(segment.waiting for segment in self._segments()) - memory

    def wait(self, predicate: Callable[[], bool], timeout: float | None) -> bool:
        """Waits until the predicate holds; it is asked again at each change."""
        with self._news:
            return self._news.wait_for(predicate, timeout)

    def announce(self) -> None:
        """Something changed that a predicate may depend on."""
        with self._news:
            self._news.notify_all()

    def abandon(self) -> None:
        """In a forked child: closes what is the parent's, and touches nothing else."""
        for segment in self._segments():
            segment.close()
        for claim in self._claims():
            claim.close()

    def _segments(self) -> list[Segment]:
        return [segment for _, segments in self._adopted for segment in segments] + list(self._own)

    def _claims(self) -> list[Claim]:
        return [claim for claim, _ in self._adopted] + ([self._claim] if self._claim else [])
