"""Waiting for a predicate: tests never sleep for a time that they hope is long enough."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.01


def wait_until(predicate: Callable[[], T], what: str, timeout_s: float = 20) -> T:
    """The first true answer of the predicate; fails, saying what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain: {what}")
        time.sleep(POLL_S)
    return answer


async def until(predicate: Callable[[], Awaitable[T] | T], what: str, timeout_s: float = 20) -> T:
    """The same in an event loop."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = predicate()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain: {what}")
        await asyncio.sleep(POLL_S)
