"""Work that goes on for as long as the worker does, also after a mistake of ours.

A task that dies is silent: nobody would be cut any more whose right is gone, or hear what is new. To end the
worker instead would cut all its viewers, again and again where the mistake comes back at once.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NoReturn

from relay import metrics

log = logging.getLogger(__name__)

PAUSE_S = (0.1, 5.0)
"""Before the work is started again: at first, and at most. It doubles, until the work has lasted for longer
than that most."""

Work = Callable[[], Coroutine[Any, Any, NoReturn]]
"""Starts what never ends by itself. What it has to know from one start to the next it keeps elsewhere."""


@contextlib.asynccontextmanager
async def kept_up(name: str, work: Work) -> AsyncIterator[None]:
    """Does the work for as long as the context lasts. Where it ends by an exception, whichever it is, that is
    logged as an error and counted under the name, and the work is started again after a pause."""
    task = asyncio.create_task(_for_ever(name, work))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _for_ever(name: str, work: Work) -> NoReturn:
    clock, pause_s = asyncio.get_running_loop().time, PAUSE_S[0]
    while True:
        began = clock()
        try:
            await work()
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled():  # and not only something that it waited for
                raise
            if clock() - began > PAUSE_S[1]:
                pause_s = PAUSE_S[0]
            metrics.BACKGROUND_FAILURES[name] += 1
            log.error("unexpected: %s ended, and starts again in %g s", name, pause_s, exc_info=error)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_S[1])


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
