"""Sends many events through a relay whose web process is killed again and again; then reads the archive.

    python benchmarks/restarts.py [--events 100000] [--kills 5]

Exits with 1 unless PostgreSQL holds every event once, and in order.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial

import psutil
import psycopg2
from relays import TOKEN, Running, relay_up

from rp_relay_client import Emitter, PaperGenerationProgressEvent, Stats

RUN = "run-restarts"


def wait_until(predicate: Callable[[], object], what: str, timeout_s: float = 600) -> None:
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s in vain for {what}")
        time.sleep(0.05)


def kill_web(running: Running) -> int:
    """Kills the web process with SIGKILL, as soon as there is one; answers which it was."""
    found: list[psutil.Process] = []

    def look() -> bool:
        found[:] = filter(serves, psutil.Process(running.process.pid).children())
        return bool(found)

    wait_until(look, "a web process")
    found[0].kill()
    return found[0].pid


def serves(process: psutil.Process) -> bool:
    try:
        return "serve" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def send(running: Running, spool: str, events: int, kills: int) -> tuple[Stats, float]:
    """Emits all events, with the kills spread over the time in which they are sent."""
    begin = time.monotonic()
    emitter = Emitter(running.ready["url"], TOKEN, RUN, spool_dir=spool)
    for number in range(events):
        emitter(PaperGenerationProgressEvent("paper_writeup", None, 0.5, 0.4, {"number": number}))
        if emitter.stats().queued > 5000:
            time.sleep(0.01)
    for kill in range(kills):
        mark = events * (kill + 1) // (kills + 1)
        wait_until(partial(has_sent, emitter, mark), f"{mark} events to be sent")
        print(f"{emitter.stats().sent} of {events} sent: killing web process {kill_web(running)}", flush=True)
    emitter.flush(600)
    emitter.close()
    return emitter.stats(), time.monotonic() - begin


def has_sent(emitter: Emitter, mark: int) -> bool:
    return emitter.stats().sent >= mark


def archived(running: Running, events: int) -> list[int]:
    """The numbers of the archived events in the order of their ids, once no more come."""
    connection = psycopg2.connect(running.ready["database_url"])
    connection.autocommit = True
    table = "FROM rp_paper_generation_events WHERE run_id = %s"
    with connection.cursor() as cursor:

        def count() -> int:
            cursor.execute(f"SELECT count(*) {table}", [RUN])
            row = cursor.fetchone()
            return int(row[0]) if row else 0

        wait_until(lambda: count() >= events, "the archive")
        cursor.execute(f"SELECT (details->>'number')::int {table} ORDER BY id", [RUN])
        numbers = [number for (number,) in cursor.fetchall()]
    connection.close()
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as spool, relay_up() as running:
        stats, seconds = send(running, spool, arguments.events, arguments.kills)
        numbers = archived(running, arguments.events)
    missing = arguments.events - len(set(numbers))
    doubled = len(numbers) - len(set(numbers))
    in_order = numbers == sorted(numbers)
    print(f"{stats}, {arguments.events / seconds:.0f} events/s")
    print(f"archived {len(numbers)}: missing {missing}, doubled {doubled}, in order: {in_order}")
    if missing or doubled or not in_order:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
