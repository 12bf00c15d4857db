"""The small things that the client's tests make again and again."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fake_relay import TOKEN, FakeRelay

from rp_relay_client import Emitter, PaperGenerationProgressEvent, Settings

T = TypeVar("T")

PIPELINES = Path(__file__).with_name("pipelines.py")

SWIFT = Settings(
    batch_interval_s=0.01, backoff_s=0.02, backoff_max_s=0.05, slow_retry_s=0.05, adopt_interval_s=0.05
)
"""As the defaults, but without patience."""


def wait_until(predicate: Callable[[], T], what: str, timeout_s: float = 20) -> T:
    """The first true answer of the predicate; fails, saying what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain: {what}")
        time.sleep(0.005)
    return answer


def event(number: int, **details: Any) -> PaperGenerationProgressEvent:
    """An event that can be told from all others."""
    return PaperGenerationProgressEvent("paper_writeup", None, 0.5, 0.4, {"number": number, **details})


@contextmanager
def emitter_to(
    relay: FakeRelay, spool: Path, settings: Settings = SWIFT, **options: Any
) -> Iterator[Emitter]:
    """An emitter that is closed at the end, at once if the relay is away."""
    emitter = Emitter(relay.url, TOKEN, "run-1", spool_dir=spool, settings=settings, **options)
    try:
        yield emitter
    finally:
        emitter.close(0)


@contextmanager
def pipeline(*words: object, **env: str) -> Iterator["subprocess.Popen[str]"]:
    """A program of `pipelines.py`, in a process of its own, which does not outlive the context."""
    argv = [sys.executable, "-W", "ignore::DeprecationWarning", str(PIPELINES), *map(str, words)]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env or None
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def says(process: "subprocess.Popen[str]") -> str:
    """The next line of the process."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the process ended with {process.wait()}"
    return line.strip()


def ends(process: "subprocess.Popen[str]", timeout_s: float = 30) -> int:
    """The exit code."""
    return process.wait(timeout_s)


def files_in(directory: Path) -> list[Path]:
    """All files below, however deep and hidden."""
    return [path for path in directory.rglob("*") if path.is_file()]
