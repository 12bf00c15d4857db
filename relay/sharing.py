"""Work that many ask for at once, done once."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

from relay.errors import Unavailable

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Sharing(Generic[K, T]):
    """One piece of work for all who ask for the same at about the same time.

    An answer is never older than its question: whoever asks while one is being made waits for the next one,
    which then serves everybody who waits.
    """

    def __init__(self) -> None:
        self._waiting: dict[K, asyncio.Future[T]] = {}
        self._working: dict[K, asyncio.Task[None]] = {}

    async def ask(self, key: K, make: Callable[[], Awaitable[T]]) -> T:
        """What `make`, which is the same for everybody with this key, returns or raises."""
        answer = self._waiting.get(key)
        if answer is None:
            answer = self._waiting[key] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(noticed)
            if key not in self._working:
                self._working[key] = asyncio.create_task(self._work(key, make))
        return await asyncio.shield(answer)

    async def _work(self, key: K, make: Callable[[], Awaitable[T]]) -> None:
        """Until nobody waits."""
        try:
            while (answer := self._waiting.pop(key, None)) is not None:
                try:
                    answer.set_result(await make())
                except BaseException as error:
                    answer.set_exception(_told(error))
                    if not isinstance(error, Exception):
                        raise
        finally:
            del self._working[key]
            if (behind := self._waiting.pop(key, None)) is not None:
                behind.set_exception(Unavailable("This was given up; ask again."))


def _told(error: BaseException) -> Exception:
    """What is told to others: the end of one task is not theirs."""
    return error if isinstance(error, Exception) else Unavailable("This was given up; ask again.")


def noticed(answer: asyncio.Future[Any]) -> None:
    """Keeps asyncio from complaining about errors that nobody waits for any more."""
    if not answer.cancelled():
        answer.exception()
