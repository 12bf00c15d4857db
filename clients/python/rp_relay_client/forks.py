"""Fork: the child has none of the parent's threads, and must use nothing else that is the parent's.

A lock on a file lives as long as any process has the file open. So that the child can close all that it
inherited, and no file is open that nobody knows of yet, files are opened and closed inside `gate`, and a
fork waits for it. It is held for a few system calls at a time, and never while the network is waited for.
"""

import os
import threading
from typing import Protocol
from weakref import WeakValueDictionary

gate = threading.Lock()


class Forkable(Protocol):
    """What wants to know in the child that a fork happened."""

    def after_fork(self) -> None: ...


_known: "WeakValueDictionary[int, Forkable]" = WeakValueDictionary()


def tell(thing: Forkable) -> None:
    """Calls `after_fork` of the thing in each child, for as long as it exists."""
    _known[id(thing)] = thing


def _in_child() -> None:
    for thing in list(_known.values()):
        thing.after_fork()
    gate.release()


os.register_at_fork(before=gate.acquire, after_in_parent=gate.release, after_in_child=_in_child)
