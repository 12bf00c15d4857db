"""A bound on requests in a second, without a timer and without anything to keep per request."""

import time
from collections.abc import Callable, Hashable

from relay.errors import RateLimited


class Rate:
    """A bucket that holds as many requests as a second may have, and fills up evenly.

    What it keeps is one moment: when the bucket will be full again. Each request moves it on by its share of
    a second, and there is no room when it is more than a second away.
    """

    BURST_S = 1.0

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share_s = 1 / per_s
        self._room_s = max(self.BURST_S, self._share_s)
        self._clock = clock
        self._full = 0.0

    def take(self) -> None:
        """Lets one request through. Raises RateLimited."""
        now = self._clock()
        full = max(self._full, now) + self._share_s
        if full - now > self._room_s + 1e-9:  # sums of shares are a little off
            raise RateLimited
        self._full = full


class Rates:
    """A bucket for each of many. Who has none yet gets a full one; when there are too many, all do."""

    KEPT = 10_000

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._rates: dict[Hashable, Rate] = {}

    def take(self, who: Hashable) -> None:
        """Lets one request of theirs through. Raises RateLimited."""
        rate = self._rates.get(who)
        if rate is None:
            if len(self._rates) >= self.KEPT:
                self._rates.clear()
            rate = self._rates[who] = Rate(self._per_s)
        rate.take()
