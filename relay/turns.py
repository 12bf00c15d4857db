"""Work for many who ask for much: so much of it at a time, and by turns."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Turns(Generic[K]):
    """Bounds how much is done at once. Where more is asked for, all who wait get a turn before anybody
    gets another one: who asks for a thousand things makes others wait for one of them, not for a thousand."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: dict[K, deque[asyncio.Future[None]]] = {}
        """By whom they are for; who was called longest ago comes first."""

    async def take(self, whose: K, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` returns or raises, done when it is its turn."""
        await self._called(whose)
        try:
            return await work()
        finally:
            self._call_next()

    async def _called(self, whose: K) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(whose, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was called just before
                self._call_next()
            raise

    def _call_next(self) -> None:
        while self._waiting:
            whose = next(iter(self._waiting))
            turns = self._waiting.pop(whose)
            turn = turns.popleft()
            if turns:
                self._waiting[whose] = turns  # behind all others
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
