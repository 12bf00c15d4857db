"""Work by turns: so much at a time, and nobody waits for all of somebody else's."""

import asyncio

import pytest

from relay.turns import Turns


class Work:
    """Pieces of work that end when they are told to."""

    def __init__(self, at_once: int) -> None:
        self.turns = Turns[str](at_once)
        self.begun: list[str] = []
        self.tasks: dict[str, asyncio.Task[str]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def ask(self, *names: str) -> None:
        """Pieces of work for whoever their names begin with."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self.turns.take(name[0], lambda name=name: self._do(name)))  # type: ignore[misc]
        await asyncio.sleep(0)

    async def _do(self, name: str) -> str:
        self.begun.append(name)
        await self._ends[name].wait()
        return name

    async def end(self, name: str) -> None:
        self._ends[name].set()
        assert await self.tasks[name] == name
        await asyncio.sleep(0)


async def test_so_much_is_done_at_a_time_and_no_more() -> None:
    work = Work(2)
    await work.ask("a1", "a2", "a3")
    assert work.begun == ["a1", "a2"]
    await work.end("a2")
    assert work.begun == ["a1", "a2", "a3"]


async def test_who_asks_for_little_waits_for_one_piece_of_who_asks_for_much() -> None:
    work = Work(1)
    await work.ask(*(f"a{number}" for number in range(5)), "b0", "b1", "c0")
    for name in ("a0", "a1", "b0", "c0", "a2", "b1", "a3", "a4"):
        await work.end(name)
    assert work.begun == ["a0", "a1", "b0", "c0", "a2", "b1", "a3", "a4"]
    await work.ask("d0")
    assert work.begun[-1] == "d0", "the place is free again"


@pytest.mark.parametrize("called", [False, True])
async def test_who_gives_up_keeps_no_place(called: bool) -> None:
    work = Work(1)
    await work.ask("a0", "a1", "b0")
    if called:
        work._ends["a0"].set()
        await asyncio.sleep(0)
        assert work.turns._waiting.keys() == {"b"}
        assert work.begun == ["a0"], "it is called, and does not know it yet"
    work.tasks["a1"].cancel()
    with pytest.raises(asyncio.CancelledError):
        await work.tasks["a1"]
    if not called:
        await work.end("a0")
    await work.end("b0")


async def test_what_fails_gives_its_place_back() -> None:
    turns = Turns[str](1)

    async def fail() -> None:
        raise ValueError("failed")

    for _ in range(2):
        with pytest.raises(ValueError, match="failed"):
            await turns.take("a", fail)
