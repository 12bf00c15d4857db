"""More points for `failing`, which the rows about the archive and about the machine need.

python -m tests.faults.points POINT[:N][+POINT...] relay serve ...
python -m tests.faults.points POINT[:N][+POINT...] persister run ...
"""

import asyncio
import contextlib
import itertools
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import relay.app
import relay.stream.tail
from persister import copy, store
from persister.consumer import Consumer, Delivery
from relay.auth.reread import Reread
from relay.settings import Settings
from relay.stream.tail import Tailer
from tests.faults import failing


def impatient(seconds: int) -> None:
    """No failure: a tailer mistrusts its place after so many seconds without being run, not after 30."""
    relay.stream.tail.STALLED_S = float(seconds)


def stops_in_dispatch(times: int) -> None:
    """The process stops itself, as SIGSTOP does, while a tailer hands out news for the Nth time."""
    turns, dispatch = itertools.count(1), Tailer._dispatch

    def stopped(self: Tailer, entries: Any) -> None:
        if next(turns) == times:
            os.kill(os.getpid(), signal.SIGSTOP)
        dispatch(self, entries)

    Tailer._dispatch = stopped  # type: ignore[method-assign]


def linger(tenths: int) -> None:
    """No failure: so many tenths of a second between a claim and the insert."""
    insert = store.Store.insert

    def later(self: store.Store, entries: Any, rows: Any = None) -> Any:
        if entries:
            time.sleep(tenths / 10)
        return insert(self, entries, rows)

    store.Store.insert = later  # type: ignore[method-assign]


def backwards(times: int) -> None:
    """No failure: batches come from the log in the opposite order."""
    claim = Consumer.claim

    def claimed(self: Consumer) -> list[Delivery]:
        return claim(self)[::-1]

    Consumer.claim = claimed  # type: ignore[method-assign]


def unsorted(times: int) -> None:
    """Mutant: rows are inserted in the order in which they were claimed."""
    ordered = store.insert
    vars(store)["sorted"] = vars(copy)["sorted"] = list
    store.insert = lambda kind: ordered(kind).replace("ORDER BY id", "")


def few_files(count: int) -> None:
    """So many files may be open, and no more."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def count_tasks(times: int) -> None:
    """No failure: a web worker writes once a second how many tasks it has, to the file TASKS_FILE."""
    running, path = relay.app.running, Path(os.environ["TASKS_FILE"])

    async def count() -> None:
        while True:
            path.write_text(str(len(asyncio.all_tasks())))
            await asyncio.sleep(1)

    @contextlib.asynccontextmanager
    async def counted(settings: Settings, sources: Sequence[Reread]) -> AsyncIterator[Any]:
        counting = asyncio.create_task(count())
        async with running(settings, sources) as services:
            yield services
        counting.cancel()

    relay.app.running = counted


for point in (impatient, stops_in_dispatch, linger, backwards, unsorted, few_files, count_tasks):
    failing.POINTS[point.__name__] = point


if __name__ == "__main__":
    failing.main(sys.argv[1:])
