"""The end of the process: what waits is sent, within a bound.

The interpreter calls `atexit` functions when it ends. Children that `multiprocessing` forked end without
them, but with its own finalizers. Where neither runs (`os._exit`, a signal), the spool keeps the events.
"""

import atexit
import multiprocessing
import multiprocessing.util
import time
from typing import Protocol


class Closing(Protocol):
    """Something to close in two steps, so that many can use the same time."""

    def hurry(self, deadline: float) -> None: ...

    def join(self, deadline: float) -> bool: ...


_open: dict[int, tuple[Closing, float]] = {}


def remember(thing: Closing, timeout_s: float) -> None:
    """Closes the thing at the end of this process, which may take that long; until `forget`."""
    if not _open and multiprocessing.parent_process() is not None:
        # Only now, since a new child begins by clearing what it inherited.
        multiprocessing.util.Finalize(None, _close_all, exitpriority=100)
    _open[id(thing)] = (thing, timeout_s)


def forget(thing: Closing) -> None:
    _open.pop(id(thing), None)


def _close_all() -> None:
    now = time.monotonic()
    things = [(thing, now + timeout_s) for thing, timeout_s in _open.values()]
    _open.clear()
    for thing, deadline in things:
        thing.hurry(deadline)
    for thing, deadline in things:
        thing.join(deadline)


atexit.register(_close_all)
