"""What an event costs, in bytes and in processor time: the figures that docs/scaling.md reckons with.

`python -m benchmarks.footprint` prints them as JSON, for each event of the recorded run, many times over.
They are sizes, and processor time instead of time, so that they depend little on what else runs.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import psutil

from benchmarks.archive import persisting, wait_until_drained
from benchmarks.lab import LOG, REST, Lab, lab
from benchmarks.ours import SECRET, TOKEN
from relay.auth import mint_viewer_token
from relay.demo import load_trace
from relay.events.registry import TABLES
from relay.sse import Framing
from relay.stream.entry import decode, frame

RUNS = 500
EVENTS = "/research-pipeline/events"
BATCH = [{"kind": event.kind, "event": event.data} for event in load_trace("full_run.ndjson")]
"""The events of a whole run."""


class Footprint:
    """Figures for each event, by what they say."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.events = 0
        self.found: dict[str, float] = {}

    def bytes(self, what: str, total: float) -> None:
        self.found[f"{what}, bytes"] = round(total / self.events, 1)

    @contextmanager
    def processor(self, events: int, **processes: psutil.Process) -> Iterator[None]:
        """Counts what these take while the context lasts, for so many events."""
        before = {what: seconds(process) for what, process in processes.items()}
        yield
        for what, process in processes.items():
            name = f"{what.replace('_', ' ')}, µs"
            self.found[name] = round((seconds(process) - before[what]) / events * 1e6, 1)

    def post(self, client: httpx.Client, first: int) -> int:
        """Posts runs, one a batch; answers how long all bodies were."""
        length = 0
        for number in range(first, first + RUNS):
            response = client.post(
                f"{EVENTS}/batch", json=[{"run_id": f"r-{number:06d}", **e} for e in BATCH]
            )
            response.raise_for_status()
            length += int(response.request.headers["content-length"])
        self.events += RUNS * len(BATCH)
        return length


def seconds(process: psutil.Process) -> float:
    """The processor time of a process and those below it."""
    family = [process, *process.children(recursive=True)]
    return sum(each.cpu_times().user + each.cpu_times().system for each in family)


def measure(lab: Lab) -> dict[str, float]:
    """All of it: appended, appended while another worker tails, drained."""
    made = Footprint(lab)
    with lab.redis() as redis:
        redis.config_set("auto-aof-rewrite-percentage", 0)  # so that the file only grows
    before = written(lab)
    with lab.relay() as (web, process), lab.relay(cores=REST) as (other, tailing):
        headers = {"authorization": f"Bearer {TOKEN}"}
        url = f"http://127.0.0.1:{web.port}"
        with ExitStack() as stack:
            client = stack.enter_context(httpx.Client(base_url=url, headers=headers))
            with made.processor(RUNS * len(BATCH), append_in_Redis=lab.stores[0], append_in_a_worker=process):
                length = made.post(client, 0)
            made.bytes("POST", length)
            next_frame = stack.enter_context(watching(client, other.port))
            both = {"append_and_tail_in_Redis": lab.stores[0], "tail_in_a_worker": tailing}
            with made.processor(RUNS * len(BATCH), **both):
                made.post(client, RUNS)
                ending = {"run_id": "watched", "event": {"message": "the last one", "level": "info"}}
                client.post(f"{EVENTS}/run-log", json=ending).raise_for_status()
                next(next_frame)
    in_redis(made)
    drained(made, before)
    return made.found


@contextmanager
def watching(client: httpx.Client, port: int) -> Iterator[Iterator[str]]:
    """The frames that come to a viewer of another run: its worker reads all that is in the log."""
    owner = {"conversation_id": 1, "user_id": 1}
    client.put("/research-pipeline/runs/watched", json=owner).raise_for_status()
    url = f"http://127.0.0.1:{port}/conversations/1/idea/research-run/watched/events"
    headers = {"authorization": f"Bearer {mint_viewer_token(SECRET, 1, 3600)}"}
    with httpx.stream("GET", url, headers=headers, timeout=60) as response:
        frames = (line for line in response.iter_lines() if line.startswith("data"))
        next(frames)
        yield frames


def in_redis(made: Footprint) -> None:
    """What is in memory, and what a viewer who resumes is sent of it."""
    with made.lab.redis() as client:
        logs = [f"relay:{{0}}:run:r-{number:06d}" for number in range(2 * RUNS)]
        made.bytes("shard log in Redis' memory", client.memory_usage(LOG, samples=0))
        made.bytes("run log in Redis' memory", sum(client.memory_usage(log, samples=0) for log in logs))
        entries = client.execute_command("XRANGE", logs[0], "-", "+")
    frames = [frame(decode(id, fields, 0).record) for id, fields in entries]
    shown = sum(len(each.block(Framing.RESUMABLE)) for each in frames if each)
    made.found["frame of a viewer, bytes"] = round(shown / len(entries), 1)


def drained(made: Footprint, before: dict[str, int]) -> None:
    """What it takes to archive all of it, and what the stores have written by then."""
    valkey, postgres = made.lab.stores
    with (
        made.lab.redis() as client,
        persisting(made.lab) as persister,
        made.processor(made.events, drain_in_Redis=valkey, drain_in_PostgreSQL=postgres),
    ):
        wait_until_drained(client, made.events + 1, persister)
    for what, total in written(made.lab).items():
        made.bytes(what, total - before[what])


def written(lab: Lab) -> dict[str, int]:
    """What the stores have on disk."""
    sizes = "+".join(f"pg_total_relation_size('{table}')" for table in TABLES)
    with lab.database() as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT {sizes}, pg_current_wal_lsn() - '0/0'")
        ((tables, log),) = cursor.fetchall()
    with lab.redis() as client:
        info: Any = client.info("persistence")
    return {
        "Redis' file": int(info["aof_current_size"]),
        "rows and indexes of PostgreSQL": int(tables),
        "write-ahead log of PostgreSQL": int(log),
    }


if __name__ == "__main__":
    with lab() as made:
        sys.stdout.write(json.dumps(measure(made), indent=1, ensure_ascii=False) + "\n")
