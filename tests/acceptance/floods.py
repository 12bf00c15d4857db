"""Floods, and how large they are: a little of each in every run of the suite, all of it where FLOODS is set,
as `make floods` does."""

import os
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

FULL = bool(os.environ.get("FLOODS"))

READS = 100_000 if FULL else 5_000
RUNS = 10_000 if FULL else 2_000
SLOW_S = 60.0 if FULL else 0.0
"""For how long slow senders send at least."""

DROP_S = 0.5
"""How often a slow sender sends a byte."""


class SlowSenders:
    """So many connections, each with a request that never ends. Who is cut off comes again."""

    def __init__(self, connect: Callable[[], socket.socket], count: int, begin: bytes) -> None:
        self.answers: list[bytes] = []
        """What those were told that were cut off."""
        self._connect = connect
        self._begin = begin
        self._count = count
        self._selector = selectors.DefaultSelector()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self._open()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            self._close(key.data)
        self._selector.close()

    def _open(self) -> None:
        connection = self._connect()
        connection.sendall(self._begin)
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, connection)

    def _close(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()

    def _send(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(DROP_S):
                self._hear(key.data)
            for key in list(self._selector.get_map().values()):
                with suppress(OSError):  # cut off: it will be heard
                    key.data.send(b"x")

    def _hear(self, connection: socket.socket) -> None:
        told = b""
        with suppress(OSError):
            told = connection.recv(65536)
        self.answers.append(told)
        self._close(connection)
        self._open()


def timed(ask: Callable[[], object], count: int, for_s: float) -> list[float]:
    """How long each of at least so many requests took, in ms, over at least so many seconds."""
    took: list[float] = []
    end = time.monotonic() + for_s
    while len(took) < count or time.monotonic() < end:
        began = time.monotonic()
        ask()
        took.append((time.monotonic() - began) * 1000)
    return took


def said(took: list[float]) -> str:
    """The figures of these times, for a person."""
    middle, p99 = statistics.median(took), statistics.quantiles(took, n=100, method="inclusive")[98]
    return f"{len(took)} requests, median {middle:.2f} ms, p99 {p99:.2f} ms, longest {max(took):.1f} ms"
