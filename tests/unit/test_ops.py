"""The private pages of a worker whose event loop does not get to anything."""

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from relay.http import ops
from relay.http.figures import Figures
from relay.http.seats import Seats
from relay.listener import Page
from relay.settings import Settings


async def nothing() -> dict[str, str]:
    return {}


HEALTH = ops.Health({}, nothing)


@pytest.fixture
def stuck() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that does not run while the test does."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_a_stuck_worker_says_that_it_is_stuck(
    stuck: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "LIVE_S", 0.05)
    pages = ops.pages(stuck, FastAPI(), HEALTH, lambda: Page(200, "", b""))
    answer = pages["/livez"]()
    assert (answer.status, json.loads(answer.body)) == (503, {"status": "the event loop does not get to it"})


def test_a_stuck_worker_shows_its_figures_and_for_how_long_it_was_asked(
    stuck: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.http.figures.READ_S", 0.05)
    asked = time.monotonic()
    link: object = None
    figures = Figures(stuck, HEALTH, [link], [], Seats(Settings()))  # type: ignore[list-item]
    families = {family.name: family for family in figures.collect()}
    assert {"relay_events", "relay_viewers"} <= families.keys()
    assert "relay_dependency_up" not in families
    (lag,) = families["relay_loop_lag_seconds"].samples
    assert 0.05 <= lag.value <= time.monotonic() - asked
