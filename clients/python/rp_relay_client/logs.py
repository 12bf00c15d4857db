"""The pipeline's own log as events."""

import logging
import threading
from collections.abc import Callable

from rp_relay_client.events import RunLogEvent
from rp_relay_client.notices import LOGGER

TEXT_CHARACTERS = 100_000
"""What the relay takes of one message."""

_CUT = "\n[cut]"


class RelayLogHandler(logging.Handler):
    """Turns log records into `run_log` events: `logging.getLogger().addHandler(RelayLogHandler(emitter))`.

    It leaves out what the client itself logs, and what is logged while a record is being turned into an
    event, so it never feeds on itself. It never raises. Long messages are cut to what the relay takes.
    """

    def __init__(self, emitter: Callable[[RunLogEvent], None], level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self._emitter = emitter
        self._inside = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.name).split(".", 1)[0] == LOGGER or getattr(self._inside, "record", None) is not None:
            return
        self._inside.record = record
        try:
            self._emitter(RunLogEvent(self._message(record), record.levelname.lower()))
        finally:
            self._inside.record = None

    def _message(self, record: logging.LogRecord) -> str:
        try:
            message = self.format(record)
        except Exception as error:  # arguments that do not fit must not stop the pipeline
            message = f"{record.msg} ({type(error).__name__} while formatting)"
        if len(message) > TEXT_CHARACTERS:
            message = message[: TEXT_CHARACTERS - len(_CUT)] + _CUT
        return message
