"""Who watches is looked at again: once for all of one right; and nobody is cut because a store is away."""

import asyncio
import math
from collections.abc import Iterable
from typing import Any

import pytest

from relay.auth.viewers import Caller
from relay.errors import DatabaseUnavailable, Forbidden, Misconfigured, NotFound, RelayError, Unauthenticated
from relay.http.recheck import Recheck, reader
from relay.hub import Hub, Viewer, Wake
from relay.sse import Framing
from tests.unit.test_hub import Wire

USER, OTHER = Caller(7, 2**40), Caller(8, 2**40)


class Access:
    """Lets everybody see everything but what is in `refused`, and counts the questions."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, str]] = []
        self.refused: dict[tuple[int, str], RelayError] = {}
        self.twice = asyncio.Event()

    async def still(self, caller: Caller, conversation: int, run_id: str) -> None:
        question = (caller.user_id, conversation, run_id)
        if question in self.asked:
            self.twice.set()
        self.asked.append(question)
        if error := self.refused.get((caller.user_id, run_id)):
            raise error


@pytest.fixture
async def access() -> Access:
    return Access()


def watching(hub: Hub, run_id: str, *callers: Caller) -> list[Viewer]:
    made = [
        Viewer(Wire(), framing=Framing.PLAIN, buffer_limit=100, reader=reader(caller, 1))
        for caller in callers
    ]
    for viewer in made:
        hub.register(viewer, run_id)
    return made


async def a_round(access: Any, hubs: Iterable[Hub]) -> None:
    """Until the first question comes again."""
    asking = asyncio.create_task(Recheck(access, hubs, 0.0).run())
    await access.twice.wait()
    asking.cancel()


async def test_all_who_watch_a_run_by_the_same_right_cost_one_question(access: Access) -> None:
    hubs = Hub(), Hub()
    tabs = [USER._replace(expires=2.0**40 + number) for number in range(100)]  # each with a token of its own
    first = watching(hubs[0], "a", *tabs)
    watching(hubs[0], "b", USER, OTHER)
    watching(hubs[1], "c", OTHER)
    await a_round(access, hubs)
    assert sorted(access.asked[:4]) == [(7, 1, "a"), (7, 1, "b"), (8, 1, "b"), (8, 1, "c")]
    assert len({id(viewer.reader) for viewer in first}) == 1, "the right takes the memory of one"
    assert reader(USER, 1).caller.expires == math.inf


@pytest.mark.parametrize("error", [NotFound("gone"), Forbidden("another's"), Unauthenticated()])
async def test_who_lost_the_right_is_woken_and_nobody_else(access: Access, error: RelayError) -> None:
    hub = Hub()
    lost, others = watching(hub, "a", USER, USER), [*watching(hub, "a", OTHER), *watching(hub, "b", USER)]
    access.refused[7, "a"] = error
    await a_round(access, [hub])
    assert [await viewer.woken() for viewer in lost] == [Wake.FORBIDDEN] * 2
    assert not any(viewer.leaving for viewer in others)


@pytest.mark.parametrize("error", [DatabaseUnavailable(), Misconfigured("no such table")])
async def test_what_can_not_be_found_out_takes_nobody_s_right_away(access: Access, error: RelayError) -> None:
    hub = Hub()
    viewers = watching(hub, "a", USER)
    access.refused[7, "a"] = error
    await a_round(access, [hub])
    assert not any(viewer.leaving for viewer in viewers)


async def test_where_nobody_watches_nothing_is_asked_until_somebody_does(access: Access) -> None:
    hub = Hub()
    asking = asyncio.create_task(Recheck(access, [hub], 0.0).run())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    watching(hub, "a", USER)
    await access.twice.wait()
    asking.cancel()
    assert set(access.asked) == {(7, 1, "a")}
