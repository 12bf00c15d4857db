"""How many streams may be open in one worker, in all and for one user. Who has a place keeps it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from relay.errors import TooManyViewers
from relay.settings import Settings

RESERVE = 100
"""Files that are kept for webhooks, stores and everything else."""


class Seats:
    """The places of one worker."""

    def __init__(self, settings: Settings) -> None:
        self._all = min(settings.viewers_per_worker, max(1, _open_files() - RESERVE))
        self._each = settings.viewers_per_user
        self._taken = 0
        self._of: dict[int, int] = {}

    @contextmanager
    def taken(self, user_id: int) -> Iterator[None]:
        """A place for as long as the context lasts. Raises TooManyViewers."""
        mine = self._of.get(user_id, 0)
        if self._taken >= self._all or mine >= self._each:
            raise TooManyViewers
        self._taken += 1
        self._of[user_id] = mine + 1
        try:
            yield
        finally:
            self._taken -= 1
            self._of[user_id] -= 1
            if not self._of[user_id]:
                del self._of[user_id]


def _open_files() -> int:
    """How many files the process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30
