"""The bound on requests in a second, by a clock that is moved by hand."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import RateLimited
from relay.http.rate import Rate, Rates


def through(per_s: float, waits: Sequence[float]) -> list[float]:
    """The moments at which a request was let through, one being tried after each wait."""
    now = 1000.0
    rate = Rate(per_s, lambda: now)
    passed = []
    for wait in waits:
        now += wait
        try:
            rate.take()
        except RateLimited:
            continue
        passed.append(now)
    return passed


@pytest.mark.parametrize("per_s", [1, 7, 100, 10_000])
def test_a_burst_is_a_second_s_worth_and_no_more(per_s: int) -> None:
    assert len(through(per_s, [0.0] * (2 * per_s))) == per_s
    assert len(through(per_s, [0.0] * per_s + [1.0] + [0.0] * per_s)) == 2 * per_s


def test_who_keeps_to_the_rate_is_never_refused() -> None:
    assert len(through(10, [0.1] * 1000)) == 1000


def test_less_than_one_in_a_second_is_possible() -> None:
    assert len(through(0.1, [0.0, 9.0, 1.1, 0.0])) == 2


@given(st.integers(1, 50), st.lists(st.floats(0, 0.2), max_size=300))
def test_no_stretch_of_time_sees_more_than_its_share_and_a_burst(per_s: int, waits: list[float]) -> None:
    passed = through(per_s, waits)
    for first, begin in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= (passed[last] - begin) * per_s + per_s + 1e-3


def test_each_has_a_bucket_of_its_own_and_there_are_not_too_many() -> None:
    rates = Rates(1)
    for who in ("a", "b"):
        rates.take(who)
        with pytest.raises(RateLimited):
            rates.take(who)
    for number in range(Rates.KEPT):
        rates.take(number)
    rates.take("a")
