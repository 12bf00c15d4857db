"""The places for streams: taken, given back, refused."""

import contextlib
import resource

import pytest

from relay.errors import TooManyViewers
from relay.http.seats import RESERVE, Seats
from relay.settings import Settings


def taken(places: Seats, *users: int) -> int:
    """How many of these users got a place, each holding on to theirs."""
    got = 0
    with contextlib.ExitStack() as stack:
        for user in users:
            with contextlib.suppress(TooManyViewers):
                stack.enter_context(places.taken(user))
                got += 1
    return got


def test_a_place_is_given_back_however_a_stream_ends() -> None:
    places = Seats(Settings(viewers_per_user=1, viewers_per_worker=2))
    for _ in range(3):
        with contextlib.suppress(ConnectionError), places.taken(1):
            raise ConnectionError
    assert taken(places, 1, 1, 2, 3) == 2
    assert taken(places, 1, 2) == 2


def test_some_files_are_kept_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (RESERVE + 3, RESERVE + 3))
    assert taken(Seats(Settings()), *range(10)) == 3
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    assert taken(Seats(Settings()), *range(10)) == 1


def test_without_a_limit_of_files_the_setting_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (unlimited, unlimited))
    assert taken(Seats(Settings(viewers_per_worker=5)), *range(10)) == 5
