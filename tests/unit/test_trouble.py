"""Why appends fail, in our words, from the answers that servers give."""

import logging

import pytest
import redis.exceptions
from redis._parsers import BaseParser

from relay.errors import DatabaseUnavailable, NotStored, OutcomeUnknown
from relay.stream.trouble import QUIET_S, Trouble, reason_of


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "memory of Redis is full"),
        ("READONLY You can't write against a read only replica.", "a replica"),
        ("MISCONF Errors writing to the AOF file: No space left on device", "its disk is full"),
        ("NOREPLICAS Not enough good replicas to write.", "min-replicas-to-write"),
        ("NOPERM User relay_web has no permissions to run the 'fcall' command", "may not append"),
        ("ERR ACL failure in script: User relay_web has no permissions", "may not append"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "user or password"),
        ("NOAUTH Authentication required.", "user or password"),
        ("LOADING Valkey is loading the dataset in memory", "reading its file"),
        ("MOVED 13907 127.0.0.1:6379", "another node"),
        ("CLUSTERDOWN The cluster is down", "no primary"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "something else"),
        ("ERR what nobody foresaw, and a secret", "its own log"),
    ],
)
def test_each_answer_of_a_server_has_its_reason_without_its_words(answer: str, words: str) -> None:
    refusal: Exception = BaseParser.parse_error(answer)  # type: ignore[no-untyped-call]
    error = NotStored()
    error.__cause__ = refusal
    assert words in reason_of(error)
    assert answer.partition(" ")[2] not in reason_of(error)


def test_what_has_no_answer_has_its_reason_too() -> None:
    assert "RELAY_WAITAOF" in reason_of(OutcomeUnknown())
    assert "in time" in reason_of(TimeoutError())
    assert "archive is not available" in reason_of(DatabaseUnavailable())
    assert reason_of(redis.exceptions.ConnectionError("x")) == "Redis does not answer"
    assert reason_of(ZeroDivisionError("x")) == "ZeroDivisionError, which nobody foresaw"


def test_one_reason_floods_no_log_however_often_it_comes_and_goes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, trouble = 1000.0, Trouble(3)
    monkeypatch.setattr("relay.stream.trouble.time.monotonic", lambda: now)
    caplog.set_level(logging.ERROR)
    for _ in range(3):
        for error in (TimeoutError(), TimeoutError(), OSError()):
            trouble.failed(error)
        trouble.over()
    both = [
        "shard 3: events can not be stored: Redis did not answer in time",
        "shard 3: events can not be stored: Redis does not answer",
    ]
    assert caplog.messages == both
    now += QUIET_S
    trouble.failed(TimeoutError())
    assert caplog.messages == [*both, both[0]]


def test_an_append_of_nothing_does_not_show_that_writes_are_kept() -> None:
    trouble = Trouble(0)
    trouble.over()
    trouble.failed(OutcomeUnknown())
    trouble.tried()
    assert "RELAY_WAITAOF" in str(trouble.reason)
    trouble.over()
    assert trouble.reason is None


def test_a_process_that_never_stored_is_let_try() -> None:
    trouble = Trouble(0)
    trouble.failed(OutcomeUnknown())
    trouble.tried()
    assert trouble.reason is None
