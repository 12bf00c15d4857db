"""Pipelines as programs, for tests that need real processes: `pipelines.py <name> <url> <spool> [<number>]`.

They say what they have done on stdout, and wait for a line on stdin where the test has something to do.
"""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

from support import SWIFT, event

from rp_relay_client import Emitter, Settings

TOKEN = os.environ.get("TEST_TOKEN", "token-of-the-client-tests")


def emitter(url: str, spool: str, settings: Settings = SWIFT) -> Emitter:
    return Emitter(url, TOKEN, "run-1", spool_dir=spool, settings=settings)


def say(*words: object) -> None:
    print(*words, flush=True)


def until_spooled(emit: Emitter) -> None:
    while emit.stats().queued:
        time.sleep(0.001)


def spools(url: str, spool: str, number: str) -> None:
    """Emits events, says when they are on disk, and waits to be killed."""
    emit = emitter(url, spool)
    for place in range(int(number)):
        emit(event(place, pipeline=os.getpid()))
    until_spooled(emit)
    say("spooled", os.getpid())
    sys.stdin.readline()


def streams(url: str, spool: str, number: str) -> None:
    """Emits events for ever, and says each time how many are on disk or sent."""
    emit = emitter(url, spool)
    for place in range(int(number), sys.maxsize):
        emit(event(place))
        if place % 10 == 0:
            until_spooled(emit)
            say(place)


def resumes(url: str, spool: str) -> None:
    """Emits nothing, and ends."""
    with emitter(url, spool) as emit:
        say("resumed", emit.flush(20))


def ends(url: str, spool: str, number: str) -> None:
    """Emits events, and ends at once."""
    emit = emitter(url, spool)
    for place in range(int(number)):
        emit(event(place))


def forks(url: str, spool: str) -> None:
    """Emits before a fork, and after it in both processes."""
    emit = emitter(url, spool)
    for place in range(100):
        emit(event(place, process="before"))
    until_spooled(emit)
    say("before")
    sys.stdin.readline()
    child = os.fork()
    name = "parent" if child else "child"
    for place in range(100):
        emit(event(place, process=name))
    if not child:
        sys.exit(0)
    os.waitpid(child, 0)
    say(*emit.stats())


def outlived(url: str, spool: str) -> None:
    """Is killed, and outlived by a child that it forked while events were on disk."""
    emit = emitter(url, spool)
    for place in range(100):
        emit(event(place))
    until_spooled(emit)
    if os.fork():
        say("forked")
        time.sleep(60)
    sys.stdin.readline()


def fork_storm(url: str, spool: str) -> None:
    """Forks again and again in the midst of sending."""
    emit = emitter(url, spool, replace(SWIFT, exit_timeout_s=60))
    children = []
    for child in range(40):
        for place in range(25):
            emit(event(child * 25 + place, process="parent"))
        pid = os.fork()
        if not pid:
            for place in range(10):
                emit(event(place, child=child))
            sys.exit(0)
        children.append(pid)
    since = time.monotonic()
    for pid in children:
        os.waitpid(pid, 0)
    say("waited", time.monotonic() - since)


def imports(url: str, spool: str) -> None:
    """Says which modules are imported only when events are sent."""
    before = set(sys.modules)
    with emitter(url, spool) as emit:
        work(emit, 0)
        emit.flush(20)
    say("imported", *sorted(set(sys.modules) - before))


def work(emit: Emitter, worker: int) -> None:
    for place in range(50):
        emit(event(place, worker=worker))


def workers(url: str, spool: str, method: str) -> None:
    """Emits from eight processes, which get the emitter by inheritance or by pickle."""
    emit = emitter(url, spool)
    emit(event(0, worker="parent"))
    context: Any = multiprocessing.get_context(method)
    children = [context.Process(target=work, args=[emit, worker]) for worker in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    emit(event(1, worker="parent"))


def pool(url: str, spool: str) -> None:
    """Hands the emitter to the tasks of a pool, which ends without asking its workers."""
    emit = emitter(url, spool)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        for task in [executor.submit(work, emit, worker) for worker in range(20)]:
            task.result()
    say("threads", threading.active_count())


def killed_children(url: str, spool: str) -> None:
    """Has a child that is killed with events on disk, and goes on."""
    emit = emitter(url, spool)
    emit(event(0, process="parent"))
    child = os.fork()
    if not child:
        for place in range(100):
            emit(event(place, process="child"))
        until_spooled(emit)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    say("killed")
    sys.stdin.readline()


_ALL = (spools, streams, resumes, ends, forks, outlived, fork_storm, imports, workers, pool, killed_children)

PROGRAMS: dict[str, Callable[..., None]] = {program.__name__: program for program in _ALL}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
