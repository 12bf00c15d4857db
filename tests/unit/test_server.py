"""Workers that end are replaced: at once, but not over and over at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import uvicorn
from uvicorn.supervisors import multiprocess

from relay import server


@pytest.fixture
def handlers() -> Iterator[None]:
    """A supervisor takes signals for itself."""
    before = {number: signal.getsignal(number) for number in multiprocess.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


START_S = 3.0
"""How long it takes to start a worker."""


class Clock(threading.Event):
    """Time that passes only while somebody waits, up to an hour."""

    now = 1000.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.now > 4600


def starts(monkeypatch: pytest.MonkeyPatch, lasts: Callable[[int], float]) -> list[float]:
    """When the workers of a service with two of them are started, in seconds from its own start. The first
    lasts for ever, and the Nth that takes the other's place for `lasts(N)` seconds once it is started."""
    clock, started = Clock(), list[float]()

    class Process:
        pid, exitcode = 7, -9

        def __init__(self, *_: Any) -> None: ...

        def start(self) -> None:
            started.append(clock.now - 1000)
            clock.now += START_S
            self._until = clock.now + lasts(len(started) - 2) if len(started) > 1 else 1e9

        def is_alive(self, timeout: float) -> bool:
            return clock.now < self._until

        def terminate(self) -> None: ...
        def kill(self) -> None: ...
        def join(self) -> None: ...

    monkeypatch.setattr(multiprocess, "Process", Process)
    monkeypatch.setattr(server, "monotonic", lambda: clock.now)
    workers = server.Workers(uvicorn.Config("unused", workers=2), sockets=[])
    workers.should_exit = clock
    workers.run()
    return started


@pytest.mark.usefixtures("handlers")
def test_a_worker_that_ends_is_replaced_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert starts(monkeypatch, lambda number: 10 if number == 0 else 1e9) == [0, START_S, 2 * START_S + 10]
    assert "worker 7 ended with exit code -9, and was replaced" in caplog.text


@pytest.mark.usefixtures("handlers")
def test_workers_that_end_over_and_over_are_replaced_ever_later_until_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, *found = starts(monkeypatch, lambda number: 0.1 if number < 8 else 100)
    gaps = [later - sooner - START_S for sooner, later in pairwise(found)]
    assert gaps[:12] == [0.5, 1, 2, 4, 8, 16, 16, 16, 100, 100, 100, 100]
