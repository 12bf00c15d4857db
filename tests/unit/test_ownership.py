"""What a run looks like to those who are let in."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from relay.auth import Run
from relay.settings import Settings
from relay.stream.keys import START, StreamId, event_id


def run(status: str, heard_s_ago: float | None) -> Run:
    heard = None if heard_s_ago is None else datetime.now(UTC) - timedelta(seconds=heard_s_ago)
    return Run("run-1", 1, status, None, "", None, heard.isoformat() if heard else None)


@pytest.mark.parametrize(
    ("status", "heard_s_ago", "stale"),
    [
        ("running", 301, True),
        ("running", 299, False),
        ("running", None, False),
        ("pending", 301, False),
        ("completed", 301, False),
    ],
)
def test_a_run_is_stale_when_it_is_under_way_and_silent(
    status: str, heard_s_ago: float | None, stale: bool
) -> None:
    assert run(status, heard_s_ago).shown({}, START, 300)["stale"] is stale


def id_of(seconds_ago: float) -> int:
    """The id of an event of then."""
    return event_id(StreamId(int((datetime.now(UTC).timestamp() - seconds_ago) * 1000), 0), 0)


@pytest.mark.parametrize(
    ("heard_s_ago", "event_s_ago", "stale"),
    [(301, 299, False), (None, 301, True), (301, 302, True), (299, 301, False)],
)
def test_any_event_is_a_word_of_the_run(heard_s_ago: float | None, event_s_ago: float, stale: bool) -> None:
    assert run("running", heard_s_ago).shown({}, id_of(event_s_ago), 300)["stale"] is stale


def test_what_is_not_archived_yet_counts_unless_the_run_is_over() -> None:
    news = {"status": "running", "last_heartbeat_at": datetime.now(UTC).isoformat()}
    assert run("pending", None).shown(news, START, 300)["status"] == "running"
    assert run("running", 1000).shown(news, START, 300)["stale"] is False
    assert run("cancelled", None).shown(news, START, 300)["status"] == "cancelled"


@pytest.mark.parametrize("setting", ["conversation_sql", "runs_sql"])
def test_a_percent_sign_that_means_nothing_is_told_at_the_start(setting: str) -> None:
    says = "SELECT owner AS user_id FROM chats WHERE id = %(conversation_id)s AND {}"
    for broken in ("name LIKE 'a%'", "id = %(run_id)s", "id = %s"):
        with pytest.raises(ValidationError, match=r"has %% for any other %"):
            Settings.model_validate({setting: says.format(broken)})
    whole = says.format("name LIKE 'a%%'")
    assert getattr(Settings.model_validate({setting: whole}), setting) == whole
