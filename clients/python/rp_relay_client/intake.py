"""From the pipeline's threads to the spool: a queue that never makes its caller wait, and a thread."""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from rp_relay_client import traces
from rp_relay_client.counters import Counters
from rp_relay_client.encoding import line
from rp_relay_client.notices import Notices
from rp_relay_client.settings import Settings
from rp_relay_client.spool import Spool

_AT_ONCE = 1000

_REST_S = 0.005
"""How long to leave the interpreter to the pipeline after each write. A lone event is written at once; a
stream of them wakes this thread 200 times a second at most, and most calls wake nobody."""

_DOZE_S = 1.0

Event = tuple[Any, dict[str, Any], Any]
"""Its kind, its content, and the context of the span that it was emitted in."""


class Intake:
    """What was emitted and is not in the spool yet. It is there within milliseconds.

    The caller's side takes no lock: it appends, and rings where the thread sleeps. So it never waits, and
    a signal handler or a finalizer may emit in the middle of another event.
    """

    def __init__(self, run: str, settings: Settings, counters: Counters, notices: Notices) -> None:
        self._run = run
        self._limit = settings.queue_events
        self._counters = counters
        self._notices = notices
        self._events: deque[Event] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._asleep = False
        self._open = True
        self._find_span = traces.finder()

    @property
    def waiting(self) -> int:
        """Events that are not in the spool yet: never too few."""
        return len(self._events)

    def offer(self, kind: Any, data: dict[str, Any]) -> None:
        """Takes an event, or counts it as dropped where there is no room. Never waits, never raises."""
        if self._open and len(self._events) < self._limit:
            self._events.append((kind, data, self._find_span and self._find_span()))
            if self._asleep:
                self._bell.put(None)
        else:
            self._counters.add(dropped=1)

    def finish(self) -> None:
        """Takes nothing more."""
        self._open = False
        self._bell.put(None)

    def run(self, spool: Spool) -> None:
        """Moves events to the spool until the intake is finished."""
        while self._await():
            # They stay in the queue until they are in the spool, so they are always in one of the two.
            events = [self._events[place] for place in range(min(_AT_ONCE, len(self._events)))]
            self._keep(self._lines(events), traces.traceparent([span for _, _, span in events]), spool)
            for _ in events:
                self._events.popleft()
            spool.announce()
            self._find_span = self._find_span or traces.finder()
            time.sleep(_REST_S)
        spool.finish()

    def _await(self) -> bool:
        """Waits for an event; answers whether there is one, or else there will be none."""
        while not self._events:
            if not self._open:
                return False
            self._asleep = True
            # Looked at again: either an event is seen here, or whoever appends it sees that we sleep.
            if not self._events and self._open:
                with suppress(Empty):
                    self._bell.get(timeout=_DOZE_S)
            self._asleep = False
        return True

    def _lines(self, events: Sequence[Event]) -> list[bytes]:
        lines = []
        for kind, data, _ in events:
            try:
                lines.append(line(self._run, kind, data))
            except Exception as error:  # noqa: PERF203 - one bad event must not take others along
                self._counters.add(refused=1)
                self._notices.once_of("An event can not be sent", error)
        return lines

    def _keep(self, lines: Sequence[bytes], traceparent: str | None, spool: Spool) -> None:
        """A writer that dies would be silent loss."""
        if not lines:
            return
        try:
            spool.append(lines, traceparent)
        except Exception as error:
            self._counters.add(dropped=len(lines))
            self._notices.once_of("Events can not be kept", error)
