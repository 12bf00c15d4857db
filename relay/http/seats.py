"""How many streams may be open in one worker, in all and for one user. Who has a place keeps it."""

import resource

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

    def __len__(self) -> int:
        return self._taken

    def taken(self, user_id: int) -> "Seat":
        """A place, for as long as the context lasts. Raises TooManyViewers."""
        if self._taken >= self._all or self._of.get(user_id, 0) >= self._each:
            raise TooManyViewers
        self._taken += 1
        self._of[user_id] = self._of.get(user_id, 0) + 1
        return Seat(self, user_id)

    def give_back(self, user_id: int) -> None:
        self._taken -= 1
        self._of[user_id] -= 1
        if not self._of[user_id]:
            del self._of[user_id]


class Seat:
    """A place that is taken. (A generator for each viewer would be twenty times as large.)"""

    __slots__ = ("_seats", "_user_id")

    def __init__(self, seats: Seats, user_id: int) -> None:
        self._seats = seats
        self._user_id = user_id

    def __enter__(self) -> None:
        return

    def __exit__(self, *why: object) -> None:
        self._seats.give_back(self._user_id)


def _open_files() -> int:
    """How many files the process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30
