"""What became of the events of one process."""

import threading
from typing import NamedTuple


class Stats(NamedTuple):
    """Where the events are that this process was given, or took over from dead ones.

    queued   in memory only: gone if the process is killed now
    spooled  on disk: survives the process, and is sent by the next one if need be
    sent     the relay has them
    refused  the relay would never take them, or said so
    dropped  there was no room, or the emitter was closed
    """

    queued: int
    spooled: int
    sent: int
    refused: int
    dropped: int


class Counters:
    """Counts that several threads raise. The lock is reentrant: signal handlers and finalizers emit too."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.sent = self.refused = self.dropped = 0

    def add(self, *, sent: int = 0, refused: int = 0, dropped: int = 0) -> None:
        with self._lock:
            self.sent += sent
            self.refused += refused
            self.dropped += dropped
