"""Work in the background goes on, whatever happens in it, until it is told to end."""

import asyncio
import itertools
import logging
from typing import NoReturn

import pytest

from relay import background, metrics
from relay.background import Work, kept_up


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PAUSE_S", (0.0, 5.0))


class Stumbling:
    """Work that fails the first times, and then gets to where it does what it is for."""

    def __init__(self, times: int, error: BaseException) -> None:
        self.goes_on = asyncio.Event()
        self.ended = False
        self._turns = itertools.count(1)
        self._times = times
        self._error = error

    async def __call__(self) -> NoReturn:
        if next(self._turns) <= self._times:
            raise self._error
        self.goes_on.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.ended = True
        raise AssertionError("nobody sets it")


async def until_it_goes_on(work: Stumbling) -> None:
    async with kept_up("sweep", work):
        await work.goes_on.wait()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("error", [KeyError("x"), asyncio.CancelledError()], ids=["mistake", "cancelled"])
async def test_work_that_failed_twice_goes_on_and_both_times_are_logged_and_counted(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where what it waited for was cancelled, and not the work itself."""
    before = dict(metrics.BACKGROUND_FAILURES)
    await until_it_goes_on(Stumbling(2, error))
    after = dict(metrics.BACKGROUND_FAILURES)
    assert after == {**before, "sweep": before["sweep"] + 2}
    assert [(record.levelno, record.exc_info and record.exc_info[1]) for record in caplog.records] == [
        (logging.ERROR, error)
    ] * 2
    assert "sweep ended, and starts again in" in caplog.text


async def test_the_pause_grows_while_it_fails_at_once_and_is_short_again_once_it_worked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, pauses, enough, nap = 0.0, list[float](), asyncio.Event(), asyncio.sleep

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        pauses.append(seconds)
        await nap(0)

    async def work() -> NoReturn:
        nonlocal now
        if len(pauses) == 8:
            now += 5.1  # in which it did what it is for
        if len(pauses) == 10:
            enough.set()
        raise ValueError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    async with kept_up("sweep", work):
        await enough.wait()
    assert pauses[:10] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 0.1, 0.2]


async def test_the_end_waits_for_what_the_work_still_has_to_do(caplog: pytest.LogCaptureFixture) -> None:
    work = Stumbling(0, KeyError())
    await until_it_goes_on(work)
    assert work.ended
    assert caplog.records == []


async def test_work_that_fails_while_it_ends_is_not_started_again() -> None:
    starts, started = itertools.count(), asyncio.Event()

    async def work() -> NoReturn:
        next(starts)
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError

    async with kept_up("sweep", work):
        await started.wait()
    assert next(starts) == 1


async def test_what_the_context_ends_by_is_what_it_raises() -> None:
    work: Work = Stumbling(0, KeyError())
    with pytest.raises(ZeroDivisionError):
        async with kept_up("sweep", work):
            raise ZeroDivisionError
