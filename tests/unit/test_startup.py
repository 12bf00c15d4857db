"""A store that was away when the program started is looked at later, whatever becomes of that look."""

import logging
import signal
from collections.abc import Iterator

import pytest
from redis.connection import parse_url

from relay import startup
from relay.errors import Insecure
from relay.settings import StoreSettings
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("redis://u:p@h:1/0", "redis://h:1/0"),
        (
            "rediss://:p@[::1]:7/0?ssl_ca_certs=/etc/a@b.pem",
            "rediss://[::1]:7/0?ssl_ca_certs=%2Fetc%2Fa%40b.pem",
        ),
        ("redis://h/0?username=u&password=p", "redis://h/0"),
        ("unix://u:p@/run/a@b.sock?db=1", "unix:///run/a@b.sock?db=1"),
    ],
)
def test_a_url_without_its_user_leads_to_the_same_place(url: str, bare: str) -> None:
    assert startup.without_user(url) == bare
    known, asked = parse_url(url), parse_url(bare)  # type: ignore[no-untyped-call]
    assert asked == {name: value for name, value in known.items() if name not in ("username", "password")}


@pytest.fixture
def interrupts() -> Iterator[list[int]]:
    """The times that somebody wanted this program to end."""
    found: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, _: found.append(signum))
    yield found
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Insecure("Redis keeps no append-only file"), "Redis keeps no append-only file"),
        (KeyError("aof_enabled"), "unexpected: a store that was away can not be looked at"),
    ],
    ids=["weakness", "mistake"],
)
def test_what_is_found_later_ends_the_program_and_so_does_a_look_that_fails(
    error: Exception,
    said: str,
    interrupts: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    away = iter([["Redis"], ["Redis"]])

    def look(_: StoreSettings) -> list[str]:
        for stores in away:
            return stores
        raise error

    monkeypatch.setattr(startup, "refuse_insecure", look)
    monkeypatch.setattr(startup, "LATER_S", 0.0)
    with pytest.raises(SystemExit, match="1"), startup.guard(StoreSettings()):
        wait_until(lambda: interrupts, "the program to be ended")
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL] == [said]
