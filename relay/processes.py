"""Child processes that end with us, however we end.

Linux tells a child when its parent dies, also by SIGKILL; elsewhere only an orderly stop reaches them.
"""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

STOP_S = 15.0
"""How long a child may take to stop before it is killed."""

RESTART_S = 0.5

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Part:
    """A program to run: one of the servers, or one of our own processes."""

    name: str
    argv: Sequence[str]
    ready: Callable[[], bool]
    stop_signal: signal.Signals = signal.SIGTERM
    user: str | None = None
    log: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: Sequence[int] = ()


def die_with_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """Has this process get a signal when its parent dies."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)
        if os.getppid() != parent:
            os.kill(os.getpid(), how)


def start(part: Part) -> subprocess.Popen[bytes]:
    """Starts a part, without waiting for it."""
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(part.log.open("ab")) if part.log else sys.stderr
        return subprocess.Popen(  # noqa: S603
            part.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **part.env},
            user=part.user,
            group=part.user,
            extra_groups=[] if part.user else None,
            pass_fds=part.pass_fds,
            # Ctrl-C in a terminal goes to us alone, so that the parts stop in order.
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(part.stop_signal),  # noqa: PLW1509
        )


def wait_ready(part: Part, process: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    """Waits until a part does its work. Raises RuntimeError where it ends, or does not get ready."""
    deadline = time.monotonic() + timeout_s
    while not part.ready():
        if process.poll() is not None:
            where = f"; its output is in {part.log}" if part.log else ""
            raise RuntimeError(f"{part.name} ended with exit code {process.returncode} while starting{where}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{part.name} was not ready after {timeout_s:.0f} s")
        time.sleep(0.02)


def stop(part: Part, process: subprocess.Popen[bytes]) -> None:
    """Stops a part in its own way, or kills it."""
    if process.poll() is None:
        process.send_signal(part.stop_signal)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            log.error("%s did not stop and is killed", part.name)
            process.kill()
            process.wait()


@contextlib.contextmanager
def running(part: Part) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a part, ready, for as long as the context lasts."""
    process = start(part)
    try:
        wait_ready(part, process)
        yield process
    finally:
        stop(part, process)


class Supervisor:
    """Keeps parts running: starts them in order, and again when they end; stops them in reverse."""

    def __init__(self) -> None:
        self._running: list[tuple[Part, subprocess.Popen[bytes]]] = []

    def add(self, part: Part) -> None:
        """Starts a part and waits until it is ready."""
        process = start(part)
        self._running.append((part, process))
        wait_ready(part, process)

    def watch(self, stopping: Callable[[float], bool]) -> None:
        """Until `stopping`, a wait with a time-out in seconds, says so."""
        while not stopping(RESTART_S):
            for place, (part, process) in enumerate(self._running):
                if process.poll() is not None:
                    log.error("%s ended with exit code %s; starting it again", part.name, process.returncode)
                    self._running[place] = (part, start(part))

    def pids(self) -> dict[str, int]:
        return {part.name: process.pid for part, process in self._running}

    def stop(self) -> None:
        while self._running:
            part, process = self._running.pop()
            stop(part, process)
