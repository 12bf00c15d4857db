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
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import relay.app
import relay.http.ops
import relay.stream.tail
from persister import store
from persister.consumer import Batch, Consumer
from relay.auth.reread import Reread
from relay.http.guard import Guard
from relay.http.recheck import Recheck
from relay.hub import Viewer
from relay.settings import Settings
from relay.stream.tail import Tailer
from tests.faults import failing


def impatient(seconds: int) -> None:
    """No failure: a tailer mistrusts its place after so many seconds without being run, not after 30."""
    relay.stream.tail.STALLED_S = float(seconds)


def fresh(times: int) -> None:
    """No failure: who asks whether a worker is ready is told of now, and not of up to a second ago."""
    relay.http.ops.FRESH_S = 0.0


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

    def later(self: store.Store, entries: Any, *, by_copy: bool = True) -> Any:
        if entries:
            time.sleep(tenths / 10)
        return insert(self, entries, by_copy=by_copy)

    store.Store.insert = later  # type: ignore[method-assign]


def backwards(times: int) -> None:
    """No failure: batches come from the log in the opposite order."""
    claim = Consumer.claim

    def claimed(self: Consumer) -> Batch | None:
        batch = claim(self)
        return batch and batch._replace(deliveries=batch.deliveries[::-1])

    Consumer.claim = claimed  # type: ignore[method-assign]


def unsorted(times: int) -> None:
    """Mutant: rows are inserted in the order in which they were claimed."""
    ordered = store.insert
    vars(store)["sorted"] = list
    store.insert = lambda kind: ordered(kind).replace("ORDER BY id", "")


def few_files(count: int) -> None:
    """So many files may be open, and no more."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def stumble(times: int) -> None:
    """Each work in the background of a web worker ends by a mistake, the first so many times that it has
    something to do, or is started."""
    for owner, name in (
        (Tailer, "_dispatch"),
        (Viewer, "keep_alive"),
        (Recheck, "_ask"),
        (Reread, "follow"),
        (Guard, "sweep"),
    ):
        _mistaken(owner, name, times)


def _mistaken(owner: type, name: str, times: int) -> None:
    turns, method = itertools.count(1), getattr(owner, name)

    def mistaken(*args: Any) -> Any:
        if next(turns) <= times:
            raise RuntimeError("a mistake of ours")
        return method(*args)

    setattr(owner, name, mistaken)


TICK_S, TICKS = 0.1, 20


def vitals(times: int) -> None:
    """No failure: a web worker writes to the file VITALS_FILE, ten times a second, how many tasks it has, and
    how late, in ms, the latest of its timers of the last two seconds was."""
    running, path = relay.app.running, Path(os.environ["VITALS_FILE"])

    async def note() -> None:
        clock, late_ms = asyncio.get_running_loop().time, deque([0.0], maxlen=TICKS)
        while True:
            path.with_suffix(".new").write_text(f"{len(asyncio.all_tasks())} {max(late_ms):.1f}")
            path.with_suffix(".new").replace(path)
            due = clock() + TICK_S
            await asyncio.sleep(TICK_S)
            late_ms.append(1000 * (clock() - due))

    @contextlib.asynccontextmanager
    async def noted(settings: Settings, sources: Sequence[Reread], spans: Any = None) -> AsyncIterator[Any]:
        noting = asyncio.create_task(note())
        async with running(settings, sources, spans) as services:
            yield services
        noting.cancel()

    relay.app.running = noted


for point in (impatient, fresh, stops_in_dispatch, linger, backwards, unsorted, few_files, stumble, vitals):
    failing.POINTS[point.__name__] = point


if __name__ == "__main__":
    failing.main(sys.argv[1:])
