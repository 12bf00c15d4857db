"""Whether those who watch a run may still see it, asked again while their streams are open.

It is asked once for all who watch a run by the same right, however many they are, and evenly over the period,
one question after the other. A store that does not answer takes nobody's right away.
"""

import asyncio
import logging
import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple, NoReturn

from relay.auth.viewers import Caller
from relay.errors import Refused, RelayError
from relay.http.access import Access
from relay.hub import Hub, Wake

log = logging.getLogger(__name__)

READERS = 10_000
"""Rights that those who come share, instead of each having one in memory."""


class Reader(NamedTuple):
    """By what right a viewer watches a run. The caller's token has an end of its own, so it has none here."""

    caller: Caller
    conversation: int


@lru_cache(READERS)
def _reader(caller: Caller, conversation: int) -> Reader:
    return Reader(caller, conversation)


def reader(caller: Caller, conversation: int) -> Reader:
    """The right by which the caller watches a run of the conversation: the same for all who have it."""
    return _reader(caller._replace(expires=math.inf), conversation)


class Recheck:
    """Asks, for ever, and wakes those who have lost their right."""

    def __init__(self, access: Access, hubs: Iterable[Hub], period_s: float) -> None:
        self._access = access
        self._hubs = list(hubs)
        self._period_s = period_s

    async def run(self) -> NoReturn:
        while True:
            watched = [(hub, run_id) for hub in self._hubs for run_id in hub.runs()]
            pause_s = self._period_s / max(len(watched), 1)
            for hub, run_id in watched:
                await asyncio.sleep(pause_s)
                await self._ask(hub, run_id)
            if not watched:
                await asyncio.sleep(pause_s)

    async def _ask(self, hub: Hub, run_id: str) -> None:
        for asked in dict.fromkeys(_readers(hub, run_id)):
            if await self._has_lost(asked, run_id):
                for viewer in hub.watching(run_id):
                    if viewer.reader == asked:
                        viewer.wake(Wake.FORBIDDEN)

    async def _has_lost(self, reader: Reader, run_id: str) -> bool:
        try:
            await self._access.still(reader.caller, reader.conversation, run_id)
        except Refused:
            return True
        except RelayError:
            return False
        except Exception:  # and the others are asked about all the same
            log.exception("it could not be asked whether a run may still be watched")
        return False


def _readers(hub: Hub, run_id: str) -> Iterator[Reader]:
    for viewer in hub.watching(run_id):
        if isinstance(viewer.reader, Reader):
            yield viewer.reader
