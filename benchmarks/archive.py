"""The archive: how fast it is filled, and how fast it is read."""

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.lab import LOG, WEB, Lab
from benchmarks.load import Load, WentWrong
from benchmarks.ours import Relay
from benchmarks.sizes import Sizes
from benchmarks.table import Row
from relay.processes import Part, running
from relay.stream.group import claims
from relay.stream.keys import ShardKeys

TABLE = "rp_paper_generation_events"
BATCH = 100
EVENTS = 1000
"""Of the run whose history is read."""

_JSON = f"""
    SELECT json_build_object('run_id', %(run)s, 'events', json_agg(row_to_json(event) ORDER BY id))::text
    FROM (SELECT id, run_id, step, substep, progress, step_progress, details,
                 to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"') AS created_at
          FROM {TABLE} WHERE run_id = %(run)s) AS event
"""  # noqa: S608


def rows(lab: Lab, sizes: Sizes) -> Iterator[Row]:
    ours: list[float] = []
    copied: list[float] = []
    for _ in range(min(sizes.rounds, 3)):
        ours.append(drain(lab, sizes.backlog))
        copied.append(copy(lab))
    yield Row(
        f"drain of {sizes.backlog:,}",
        "rows/s",
        ours,
        ">= 0.40",
        limit=copied,
        to_limit=True,
        note="limit: COPY",
    )
    yield from reading(lab, sizes)


def drain(lab: Lab, backlog: int) -> float:
    """Rows a second from a backlog into the table, as one persister does it that was stopped meanwhile: its
    start, which is the same for any backlog, is over."""
    lab.clear()
    with lab.redis() as client, persisting(lab) as persister:
        with lab.relay() as (relay, _):
            produce(lab, relay, BATCH, runs=1)
            wait_until_drained(client, BATCH, persister)
            persister.suspend()
            produce(lab, relay, backlog, runs=200)
        begin = time.perf_counter()
        persister.resume()
        wait_until_drained(client, BATCH + backlog, persister)
        seconds = time.perf_counter() - begin
    check_table(lab, BATCH + backlog)
    return backlog / seconds


def produce(lab: Lab, relay: Relay, events: int, runs: int) -> None:
    """Puts events into the log."""
    with Load(relay, lab.runs(runs), producers=16, batch=BATCH) as load:
        load.post(count=events // BATCH, watched=False)


@contextlib.contextmanager
def persisting(lab: Lab) -> Iterator[psutil.Process]:
    argv = [sys.executable, "-m", "persister", "run"]
    part = lab.pinned(Part("persister", argv, lambda: True, env=lab.environment()), WEB)
    with running(part) as process:
        yield psutil.Process(process.pid)


def wait_until_drained(client: Any, entries: int, persister: psutil.Process) -> None:
    while settled(client) != entries:
        if persister.status() == psutil.STATUS_ZOMBIE:
            raise WentWrong("the persister ended before all was archived")
        time.sleep(0.005)


def settled(client: Any) -> int:
    """How many entries are archived, and settled."""
    (group,) = client.xinfo_groups(LOG)  # first: what is claimed afterwards is then not taken for settled
    return int(group["entries-read"] or 0) - sum(claim.entries for claim in claims(client, ShardKeys(0)))


def check_table(lab: Lab, backlog: int) -> None:
    """Raises WentWrong unless the table has every event, in the order of the log."""
    with lab.database() as connection, connection.cursor() as cursor:
        cursor.execute(
            f"SELECT run_id, details->>'mark' FROM {TABLE} ORDER BY id"  # noqa: S608
        )
        stored = [(run.encode(), mark.encode()) for run, mark in cursor]
    if stored != list(lab.marks(b"0-0")) or len(stored) != backlog:
        raise WentWrong("the table does not hold what the log holds")


def copy(lab: Lab) -> float:
    """Rows a second of a bare COPY of the same rows, from a ready file into the same table, empty."""
    with lab.database() as connection, connection.cursor() as cursor:
        ready = BytesIO()
        cursor.copy_expert(f"COPY {TABLE} TO STDOUT", ready)
        cursor.execute(f"TRUNCATE {TABLE}")
        cursor.execute("CHECKPOINT")
        path = lab.directory / "rows"
        path.write_bytes(ready.getvalue())
        with lab.on(WEB), Path(path).open("rb") as file:
            begin = time.perf_counter()
            cursor.copy_expert(f"COPY {TABLE} FROM STDIN", file)
            return int(cursor.rowcount) / (time.perf_counter() - begin)


def reading(lab: Lab, sizes: Sizes) -> Iterator[Row]:
    """History, the bare query, and the first frame, of a run that is all in the archive: each in turn, since
    PostgreSQL, which is most of all three, may be half as fast a moment later."""
    history: list[float] = []
    query: list[float] = []
    frame: list[float] = []
    lab.clear()
    with lab.relay() as (relay, _), lab.redis() as client:
        (run,) = lab.runs(1)
        relay.claim([run])
        with Load(relay, [run], batch=BATCH) as load:
            load.post(count=EVENTS // BATCH, watched=False)
        with persisting(lab) as persister:
            wait_until_drained(client, EVENTS, persister)
        with (
            lab.database() as connection,
            connection.cursor() as cursor,
            socket.create_connection(("127.0.0.1", relay.port)) as reader,
        ):
            for _ in range(sizes.rounds):
                seconds = [
                    (
                        seconds_of_history(reader, relay, run),
                        seconds_of_query(lab, cursor, run),
                        seconds_of_initial(relay, run),
                    )
                    for _ in range(sizes.requests)
                ]
                for figures, each in zip((history, query, frame), zip(*seconds, strict=True), strict=True):
                    figures.append(median(each) * 1000)
    yield Row(
        f"history of {EVENTS:,} events",
        "ms",
        history,
        "<= 1.3",
        limit=query,
        to_limit=True,
        note="limit: the query",
    )
    yield Row(
        f"first frame of {EVENTS:,} events", "ms", frame, "<= 1.5", peer=history, note="peer: the history"
    )


def seconds_of_history(reader: socket.socket, relay: Relay, run: str) -> float:
    """On a connection that there is."""
    ask = relay.view(run).replace(b"/events?resume=true", b"/paper-generation-progress") + b"\r\n"
    return seconds_until(reader, ask, b"0\r\n\r\n")


def seconds_of_initial(relay: Relay, run: str) -> float:
    """On a connection of its own, from before it is made."""
    begin = time.perf_counter()
    with socket.create_connection(("127.0.0.1", relay.port)) as client:
        seconds_until(client, relay.view(run) + b"\r\n", b"}}\n\n\r\n")
        return time.perf_counter() - begin


def seconds_of_query(lab: Lab, cursor: Any, run: str) -> float:
    """The same JSON, built in SQL and fetched by psycopg2."""
    with lab.on(WEB):
        begin = time.perf_counter()
        cursor.execute(_JSON, {"run": run})
        cursor.fetchall()
        return time.perf_counter() - begin


def seconds_until(client: socket.socket, ask: bytes, end: bytes) -> float:
    """Until the answer, which must have all events in it, ends so."""
    begin = time.perf_counter()
    client.sendall(ask)
    answer = bytearray()
    while not answer.endswith(end):
        piece = client.recv(1 << 20)
        if not piece:
            raise WentWrong(f"an answer ended early: {bytes(answer[:200])!r}")
        answer += piece
    seconds = time.perf_counter() - begin
    if answer.count(b'"mark"') != EVENTS:
        raise WentWrong(f"an answer has {answer.count(b'mark')} events")
    return seconds
