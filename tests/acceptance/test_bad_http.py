"""What is no good HTTP, and senders that take their time: answered where there is something to answer, and
closed by a deadline, whatever the client does."""

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.acceptance.floods import SLOW_S, SlowSenders, said, timed
from tests.acceptance.raw import PROBLEM, closed, connect, exchange, head
from tests.acceptance.running import EVENTS, Relay, viewer
from tests.acceptance.test_bad_input import CANARY, JSON, PATH, assert_unharmed, body, log_of
from tests.acceptance.test_live import is_cut
from tests.factories import new_run_id, progress
from tests.waiting import wait_until


def test_row_21_a_body_that_nobody_reads_costs_no_memory(guarded: Relay) -> None:
    (pid,) = guarded.pids("relay", "serve")
    before = psutil.Process(pid).memory_info().rss
    megabyte = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    for path, method, status in (("/livez", "GET", 200), ("/nowhere", "POST", 404), (PATH, "GET", 405)):
        pieces = [head(method, path, "transfer-encoding: chunked"), *[megabyte] * 100, b"0\r\n\r\n"]
        assert exchange(guarded, *pieces).status == status
    assert psutil.Process(pid).memory_info().rss - before < 30_000_000
    assert_unharmed(guarded)


LENGTHS = {
    "a negative length": [head("POST", PATH, "content-length: -1"), b"{}"],
    "two lengths": [head("POST", PATH, "content-length: 2", "content-length: 3"), b"{}"],
    "a length and chunks": [
        head("POST", PATH, "content-length: 2", "transfer-encoding: chunked"),
        b"0\r\n\r\n",
    ],
    "a chunk size that is none": [
        head("POST", PATH, *map(": ".join, JSON.items()), "transfer-encoding: chunked"),
        CANARY.encode() + b"\r\n",
    ],
    "a chunk size beyond 64 bits": [
        head("POST", PATH, *map(": ".join, JSON.items()), "transfer-encoding: chunked"),
        b"f" * 17 + b"\r\n",
    ],
    "an unknown coding": [head("POST", PATH, f"transfer-encoding: {CANARY}"), b"{}"],
    "no HTTP": [CANARY.encode() + b"\r\n\r\n"],
    "a bare line feed in a header": [b"GET /livez HTTP/1.1\nhost: x\n\n"],
    "a NUL in a header": [head("GET", "/livez", f"x-y: {CANARY}\0")],
    "a space before the colon": [head("GET", "/livez", f"x-y : {CANARY}")],
    "a path beyond ASCII": [f"GET /{CANARY}\N{SNOWMAN} HTTP/1.1\r\nhost: x\r\n\r\n".encode()],
    "another protocol": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
}


@pytest.mark.parametrize("pieces", LENGTHS.values(), ids=[f"row 22: {name}" for name in LENGTHS])
def test_row_22_what_is_no_http_is_a_bad_request(
    guarded: Relay, directory: Path, pieces: list[bytes]
) -> None:
    answer = exchange(guarded, *pieces)
    assert (answer.status, answer.headers["content-type"]) == (400, PROBLEM)
    assert answer.problem == "bad-request"
    assert answer.headers["connection"] == "close"
    assert CANARY not in answer.text + log_of(directory)
    assert_unharmed(guarded)


def test_row_22_a_body_shorter_than_declared_is_not_waited_for_for_ever(guarded: Relay) -> None:
    lines = ("content-length: 100", "content-type: application/json")
    answer = exchange(guarded, head("POST", PATH, *lines), CANARY.encode())
    assert (answer.status, answer.problem, answer.headers["connection"]) == (408, "body-timeout", "close")
    assert CANARY not in answer.text
    assert_unharmed(guarded)


def test_row_22_what_follows_a_whole_request_ends_the_connection_after_its_answer(guarded: Relay) -> None:
    content = body().encode()
    request = head("POST", PATH, f"content-length: {len(content)}", *map(": ".join, JSON.items()))
    for count in (1, 3):
        with connect(guarded) as connection:
            connection.sendall((request + content) * count + CANARY.encode() + b"\r\n\r\n")
            answer, _ = closed(connection)
        assert answer.startswith(b"HTTP/1.1 204 No Content\r\n")
        assert answer.count(b"HTTP/1.1 204") == answer.count(b"HTTP/1.1") == count
    assert_unharmed(guarded)


HEADS = {
    "a header of 4 MB": (431, "headers-too-large", [head("GET", "/livez", "x: " + CANARY * 140_000)]),
    "a header without end": (431, "headers-too-large", [b"GET / HTTP/1.1\r\nx: ", *[b"x" * 65536] * 64]),
    "20000 headers": (431, "headers-too-large", [head("GET", "/livez", *["a: b"] * 20_000)]),
    "a URL of 1 MB": (431, "headers-too-large", [head("GET", "/" + CANARY * 40_000)]),
    "trailers without end": (
        431,
        "headers-too-large",
        [head("POST", PATH, *map(": ".join, JSON.items()), "transfer-encoding: chunked"), b"0\r\n"]
        + [b"a: b\r\n" * 9000] * 40,
    ),
    "no host": (400, "bad-request", [head("GET", "/livez", host="")]),
    "two hosts": (400, "bad-request", [head("GET", "/livez", f"host: {CANARY}")]),
    "two equal hosts": (400, "bad-request", [head("GET", "/livez", "Host: relay")]),
}


@pytest.mark.parametrize(
    ("status", "problem", "pieces"), HEADS.values(), ids=[f"row 45: {name}" for name in HEADS]
)
def test_row_45_a_head_is_bounded(
    guarded: Relay, directory: Path, status: int, problem: str, pieces: list[bytes]
) -> None:
    answer = exchange(guarded, *pieces)
    assert (answer.status, answer.headers["content-type"], answer.problem) == (status, PROBLEM, problem)
    assert answer.headers["connection"] == "close"
    assert CANARY not in answer.text + log_of(directory)
    assert_unharmed(guarded)


def test_a_head_may_have_so_many_headers_and_no_more(guarded: Relay) -> None:
    for more, status in ((98, 200), (99, 431)):
        answer = exchange(guarded, head("GET", "/livez", *["x: y"] * more))  # beside host and authorization
        assert answer.status == status


@pytest.mark.parametrize("cut", [0, 10_000, 32_000], ids=lambda cut: f"sent in pieces of {cut or 'all'}")
def test_a_head_may_be_so_long_and_no_longer(guarded: Relay, cut: int) -> None:
    for size, status in ((32 * 1024, 200), (32 * 1024 + 1, 431)):
        empty = head("GET", "/livez", "x: ")
        whole = head("GET", "/livez", "x: " + "y" * (size - len(empty)))
        assert len(whole) == size
        pieces = [whole[place : place + cut] for place in range(0, size, cut)] if cut else [whole]
        assert exchange(guarded, *pieces).status == status


def test_an_old_client_needs_no_host(guarded: Relay) -> None:
    assert exchange(guarded, b"GET /livez HTTP/1.0\r\n\r\n").status == 200


SLOW = {
    "says nothing": (b"", b"", b""),
    "sends blank lines": (b"", b"\r\n", b""),
    "begins a head": (b"GET /livez HTTP/1.1\r\n", b"", b"408"),
    "sends a header byte by byte": (b"GET /livez HTTP/1.1\r\nx: ", b"y", b"408"),
    "begins a body": (head("POST", PATH, *map(": ".join, JSON.items()), "content-length: 9"), b"", b"408"),
    "sends a body byte by byte": (
        head("POST", PATH, *map(": ".join, JSON.items()), "content-length: 999"),
        b" ",
        b"408",
    ),
    "sends chunks byte by byte": (
        head("POST", PATH, *map(": ".join, JSON.items()), "transfer-encoding: chunked"),
        b"1\r\n \r\n",
        b"408",
    ),
    "sends on after its answer": (head("GET", "/livez", "content-length: 999"), b" ", b"200"),
}


@pytest.fixture(scope="module")
def slowly(guarded: Relay) -> dict[str, tuple[float, bytes]]:
    """For how many seconds each of these clients was heard, and what it was told. They come all at once."""

    def take_time(begin: bytes, drop: bytes, status: bytes) -> tuple[float, bytes]:
        began = time.monotonic()
        with connect(guarded) as connection:
            connection.sendall(begin)
            answer = trickle(connection, drop)
        return time.monotonic() - began, answer

    with ThreadPoolExecutor(len(SLOW)) as pool:
        return dict(zip(SLOW, pool.map(take_time, *zip(*SLOW.values(), strict=True)), strict=True))


@pytest.mark.parametrize("name", [pytest.param(name, id=f"row 45: {name}") for name in SLOW])
def test_row_45_a_client_that_takes_its_time_is_closed_by_a_deadline(
    guarded: Relay, slowly: dict[str, tuple[float, bytes]], name: str
) -> None:
    """Two seconds here, and one more until somebody looks."""
    took_s, answer = slowly[name]
    assert took_s < 20
    assert answer.partition(b" ")[2][:3] == SLOW[name][-1]
    assert_unharmed(guarded)


def trickle(connection: socket.socket, drop: bytes) -> bytes:
    """Sends drop after drop until the server ends the connection; what came from there."""
    received = b""
    connection.settimeout(0.1)
    with contextlib.suppress(ConnectionError):
        while True:
            connection.sendall(drop)
            with contextlib.suppress(TimeoutError):
                if not (piece := connection.recv(65536)):
                    break
                received += piece
    return received


def test_a_connection_between_two_requests_may_wait_longer(guarded: Relay) -> None:
    request = head("GET", "/livez")
    with connect(guarded) as connection, connect(guarded) as idle:
        for _ in range(2):
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b"}"):  # head and body may come apart
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            assert closed(idle)[0] == b"", "a connection without a request is closed meanwhile"


@pytest.mark.flood
def test_500_slow_senders_do_not_slow_the_others(guarded: Relay) -> None:
    run_id = new_run_id()

    def post() -> None:
        guarded.progress(run_id, progress())

    alone = timed(post, 50, SLOW_S)
    with SlowSenders(lambda: connect(guarded), 500, b"POST / HTTP/1.1\r\nx: ") as slow:
        beside = timed(post, 50, SLOW_S)
        wait_until(lambda: len(slow.answers) >= 500, "each of them to be cut off")
        assert {answer[:12] for answer in slow.answers} == {b"HTTP/1.1 408"}
    print(f"\nalone: {said(alone)}\nbeside 500 slow senders: {said(beside)}; {len(slow.answers)} cut off")  # noqa: T201
    assert_unharmed(guarded)


def test_who_does_not_read_a_long_history_is_cut(relay: Relay) -> None:
    """The history of a run, not its stream: there the viewer's own task sees to it."""
    run_id = new_run_id()
    relay.claim(run_id)
    big = progress(details={"text": "x" * 100_000})
    items = [{"run_id": run_id, "kind": "paper_generation_progress", "event": big}] * 50
    for _ in range(4):
        assert relay.http.post(f"{EVENTS}/batch", json=items).status_code == 204
    relay.archived(run_id, 200)
    path = httpx.URL(f"{relay.run_url(run_id)}/paper-generation-progress").path
    lines = "".join(f"{name}: {value}\r\n" for name, value in viewer().items())
    with connect(relay) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: is_cut(connection), "the connection to be cut")
    assert len(relay.history(run_id).json()["events"]) == 200, "who reads gets all of it"
