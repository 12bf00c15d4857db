"""What a worker says of itself: where its event loop is stuck, and where its stores do not answer."""

import asyncio
import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI

from relay import app
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


async def silent() -> None:
    """A store that does not answer."""
    await asyncio.Event().wait()


async def away() -> str:
    return "It is away"


async def there() -> None:
    return


async def test_stores_that_do_not_answer_are_no_lag_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.http.figures.READ_S", 0.5)
    link: Any = None
    health = ops.Health({"redis": silent}, nothing)
    figures = Figures(asyncio.get_running_loop(), health, link, [], Seats(Settings()))
    families = {family.name: family for family in await asyncio.to_thread(lambda: list(figures.collect()))}
    (lag,) = families["relay_loop_lag_seconds"].samples
    assert lag.value < 0.5


async def test_where_redis_is_away_it_is_not_asked_how_far_everybody_is() -> None:
    unasked: Any = None
    health = ops.Health({"redis": away, "postgres": there}, nothing)
    figures = Figures(asyncio.get_running_loop(), health, unasked, [unasked], Seats(Settings()))
    families = {family.name: family for family in await asyncio.to_thread(lambda: list(figures.collect()))}
    up = {sample.labels["dependency"]: sample.value for sample in families["relay_dependency_up"].samples}
    assert up == {"redis": 0, "postgres": 1}


async def test_stores_are_asked_at_once_and_not_for_everybody_who_asks() -> None:
    together, asked = asyncio.Barrier(3), 0

    async def meeting() -> None:
        nonlocal asked
        asked += 1
        async with asyncio.timeout(5):
            await together.wait()

    health = ops.Health(dict.fromkeys(("redis", "tailers", "postgres"), meeting), nothing)
    answers = await asyncio.gather(*(health.ready() for _ in range(10)))
    assert [status for status, _ in [*answers, await health.ready()]] == [200] * 11
    assert asked == 3


class Frozen:
    """A database that does not answer for longer than a load balancer waits."""

    async def rows(self, statement: str, values: object) -> None:
        await asyncio.Event().wait()


async def test_a_frozen_postgresql_does_not_keep_who_asks_for_readiness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "PROBE_S", 0.01)
    services: Any = SimpleNamespace(database=Frozen())
    async with asyncio.timeout(2):
        assert await app._postgres(services) == "PostgreSQL does not answer"
