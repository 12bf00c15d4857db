"""The benchmarks' own eyes: what the load generator counts, and what the table says of it."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from benchmarks.growth import grown
from benchmarks.load import Load, Service, WentWrong
from benchmarks.table import Row, render

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


@dataclass(frozen=True)
class Scripted(Service):
    """A server of one viewer."""

    def post(self, run: str, events: int) -> bytes:
        return b""

    def view(self, run: str) -> bytes:
        return b"GET / HTTP/1.1\r\n"


@contextmanager
def sending(numbers: Sequence[int]) -> Iterator[Scripted]:
    """A server that sends events with these numbers once it was asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(HEAD)
                asked.wait(10)
                for number in numbers:
                    connection.sendall(b'data: {"mark":"000%09d%016d"}\n\n' % (number, 0))
                over.wait(10)

        asked, over = threading.Event(), threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        service = Scripted("scripted", listener.getsockname()[1], b"\r\n\r\n", to_blank=False)
        service.__dict__["asked"] = asked
        try:
            yield service
        finally:
            over.set()
            thread.join()


def watched(numbers: Sequence[int], count: int) -> int:
    """How many events the viewer counted. Raises WentWrong."""
    with sending(numbers) as service, Load(service, ["run"], producers=0, viewers=1, cores="0") as load:
        load.connect()
        vars(service)["asked"].set()
        return load.expect(count).deliveries


def test_a_viewer_that_saw_everything_once_and_in_order_is_counted() -> None:
    assert watched(range(100), 100) == 100


@pytest.mark.parametrize(
    ("numbers", "wrong"), [([0, 1, 3], "gaps"), ([0, 1, 1, 2], "repeated"), ([0, 2, 1, 3], "repeated")]
)
def test_an_event_that_is_lost_repeated_or_out_of_order_ends_the_run(numbers: list[int], wrong: str) -> None:
    with pytest.raises(WentWrong, match=wrong):
        watched(numbers, 3)


def test_growth_is_told_by_the_two_steps_that_are_furthest_apart_round_by_round() -> None:
    row = grown("a step", "s", {1: [10, 20, 41], 2: [12, 24, 42], 3: [9, 30, 60]}, "sizes")
    assert (row.ours, row.peer, row.ratio) == ([9, 30, 60], [10, 20, 41], 60 / 41)


def test_a_row_compares_round_by_round_and_with_its_goal() -> None:
    faster = Row("a", "1/s", [30, 8, 200], ">= 1.5", peer=[15, 4, 10])
    assert (faster.ratio, faster.met) == (2.0, True)
    dearer = Row("b", "ms", [3.0], "<= 1.3", limit=[2.0], to_limit=True)
    assert (dearer.ratio, dearer.met) == (1.5, False)
    shown = Row("c", "ms", [1.0], "", peer=[4.0])
    assert (shown.ratio, shown.met) == (0.25, None)
    lines = render([faster, dearer, shown]).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["yes", "NO", "-"]
