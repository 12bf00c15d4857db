"""The search at the end of a session finds what it is for."""

from pathlib import Path

import pytest

from tests.canaries import IN_NO_LOG, PAYLOAD, SECRET, TOKEN, leaks
from tests.factories import EXAMPLES


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"GET /?token={TOKEN}", "the webhook token"),
        (f"secret {SECRET}.", "the viewers' secret"),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.e30.x", "a viewer's token"),
        (f"bad event: {PAYLOAD!r}", "a payload"),
        (f"bad event: {PAYLOAD!a}", "a payload"),
        ("psycopg2: INSERT INTO rp_run_log_events", "SQL"),
    ],
)
def test_a_leak_is_found_wherever_the_log_is(tmp_path: Path, text: str, what: str) -> None:
    log = tmp_path / "somewhere" / "web.log"
    log.parent.mkdir()
    log.write_text(f"2026-01-01 INFO started\n{text}\n")
    assert list(leaks(tmp_path)) == [f"{what} is in somewhere/web.log"]


def test_the_log_of_postgresql_may_have_statements_but_no_secrets(tmp_path: Path) -> None:
    statement = "STATEMENT: INSERT INTO rp_run_log_events"
    (tmp_path / "postgres.log").write_text(f"{statement} {PAYLOAD}\n{TOKEN}")
    assert list(leaks(tmp_path)) == ["the webhook token is in postgres.log"]


def test_what_a_program_usually_writes_is_no_leak(tmp_path: Path) -> None:
    (tmp_path / "web.log").write_text("2026-01-01 WARNING relay: tailer of shard 0 starts anew\n")
    assert list(leaks(tmp_path)) == []
    assert len(IN_NO_LOG) == 6


def test_the_payload_is_in_an_event() -> None:
    assert any(PAYLOAD in str(example) for example in EXAMPLES.values())
