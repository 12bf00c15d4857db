"""Logs: on stderr, one event a line, as JSON for machines or as text for people.

No line holds what came from outside without need: of an exception only its name and where it was raised are
kept, since its message may quote a payload or SQL. Control characters are escaped, so that nobody who sends
them can write a line of their own.
"""

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any, Literal

from relay.errors import RelayError

Format = Literal["json", "text"]
Level = Literal["debug", "info", "warning", "error"]

FRAMES = 12
"""Of the innermost calls of an exception, that many are told."""

_ROOT = f"{Path(__file__).parents[1]}{os.sep}"
_CALL = re.compile(r"[^\n(<]*")
"""Of what asyncio says, all before the task or the callback, which it quotes with its arguments."""

_TRACEBACK = "Traceback (most recent call last):"
"""From here on a message quotes an exception, with what that says."""

_UNPREPARED = "nobody was prepared for this"


def configure(format: Format, level: Level = "info") -> None:
    """For programs, once: what is logged from this level on, or not caught, goes to stderr in this format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log whole URLs
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)  # a line for each of its own
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


class JsonLines(logging.Formatter):
    """An object a line: time, level, logger, process, message, and `errors` where there is an exception."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": _message(record),
        }
        if errors := list(_errors(record)):
            told["errors"] = errors
        return json.dumps(told)


class TextLines(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.name}: {_message(record)}"
        for error in _errors(record):
            line += f" | {error['error']} at {' < '.join(error['at'])}"
        return line


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.name == "asyncio" and (said := _CALL.match(message)):
        message = said.group()
    message, quotes, _ = message.partition(_TRACEBACK)
    return _escaped(message.strip()) or (_UNPREPARED if quotes else "")


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _errors(record: logging.LogRecord) -> Iterator[dict[str, Any]]:
    """The exception, and what it came from: names and places. The innermost call comes first."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None and _TRACEBACK in record.getMessage():
        error = sys.exception()  # some libraries log as text what they are just handling
    while error is not None:
        name = type(error).__name__
        calls = extract_tb(error.__traceback__)[::-1][:FRAMES]
        yield {
            # Our own errors say nothing that may not be said.
            "error": f"{name}: {_escaped(str(error))}" if isinstance(error, RelayError) else name,
            "at": [f"{call.filename.removeprefix(_ROOT)}:{call.lineno} {call.name}" for call in calls],
        }
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    logging.getLogger("relay").critical(_UNPREPARED, exc_info=(kind, error, trace))
