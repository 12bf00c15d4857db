"""Logs: a line for each event, and nothing in it that somebody else wrote without need."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from traceback import format_exc
from typing import Any

import pytest

from relay.errors import NotStored
from relay.logs import Format, JsonLines, TextLines

SECRET = "the-payload-of-somebody"
NASTY = 'a\r\n{"level":"INFO"}\x1b[31m\u2028\u2029\x7f\x85\x00\ud800é'


def written(formatter: logging.Formatter, message: str, *args: object, **how: Any) -> str:
    record = logging.LogRecord(
        how.get("name", "relay.x"), logging.ERROR, "", 1, message, args, how.get("error")
    )
    return formatter.format(record)


def raised(fails: Callable[[], object]) -> Any:
    try:
        fails()
    except Exception:
        return sys.exc_info()
    raise AssertionError("it did not fail")


def not_stored() -> None:
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        raise NotStored from error


@pytest.mark.parametrize("formatter", [JsonLines(), TextLines()])
def test_row_16_whatever_is_logged_is_one_line_without_control_characters(
    formatter: logging.Formatter,
) -> None:
    line = written(formatter, "run %s", NASTY)
    assert line.isprintable()
    assert "é" in line or r"\u00e9" in line
    assert len(line.splitlines()) == 1


def test_a_line_says_when_who_and_what() -> None:
    told = json.loads(written(JsonLines(), "shard %d", 7))
    assert told.keys() == {"time", "level", "logger", "process", "message"}
    assert (told["level"], told["logger"], told["message"]) == ("ERROR", "relay.x", "shard 7")
    assert told["time"].endswith("+00:00")


def test_of_an_exception_its_name_and_its_place_are_kept_and_not_its_message() -> None:
    error = raised(not_stored)
    told = json.loads(written(JsonLines(), "it failed", error=error))
    assert [each["error"] for each in told["errors"]] == [f"NotStored: {NotStored()}", "ValueError"]
    assert all(each["at"][0].startswith("tests/unit/test_logs.py:") for each in told["errors"])
    assert told["errors"][0]["at"][0].endswith(" not_stored")
    for line in (json.dumps(told), written(TextLines(), "it failed", error=error)):
        assert SECRET not in line
        assert "ValueError" in line


def test_what_asyncio_quotes_is_left_out() -> None:
    quoted = f"Task exception was never retrieved\nfuture: <Task exception=ValueError('{SECRET}')>"
    called = f"Exception in callback answer('{SECRET}')\nhandle: <Handle answer('{SECRET}')>"
    assert (
        json.loads(written(JsonLines(), quoted, name="asyncio"))["message"]
        == "Task exception was never retrieved"
    )
    assert (
        json.loads(written(JsonLines(), called, name="asyncio"))["message"] == "Exception in callback answer"
    )


@pytest.mark.parametrize("formatter", [JsonLines(), TextLines()])
def test_a_traceback_that_a_library_logs_as_text_is_names_and_places_too(
    formatter: logging.Formatter,
) -> None:
    try:
        raise ValueError(SECRET)
    except ValueError:
        line = written(formatter, format_exc())
        also = written(formatter, f"it failed:\n{format_exc()}")
    assert "nobody was prepared for this" in line
    assert "it failed:" in also
    for each in (line, also, written(formatter, f"Traceback (most recent call last):\n{SECRET}")):
        assert SECRET not in each
    assert "ValueError" in line
    assert "ValueError" in also


def test_what_is_below_the_level_is_not_written() -> None:
    program = """
import logging
from relay import logs
logs.configure("text", "warning")
logging.info("too little")
logging.warning("enough")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert line.endswith("WARNING root: enough")


@pytest.mark.parametrize("format", ["json", "text"])
def test_what_nobody_caught_is_a_line_too(format: Format) -> None:
    program = f"""
import threading
from relay import logs
logs.configure({format!r})
def fail():
    raise ValueError({SECRET!r})
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all("ValueError" in line and SECRET not in line for line in lines)
