"""How many events a second reach the viewers of one run."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.lab import WEB, Lab
from benchmarks.load import Answer, Load, Service, compiled
from benchmarks.nchan import MESSAGE
from benchmarks.ours import EVENT
from benchmarks.sizes import Sizes
from benchmarks.table import Row

PRODUCERS = 16
"""Enough to keep the fan-out busy. What arrives while it is, goes out in one write for each viewer."""


@dataclass(frozen=True)
class Limit(Service):
    """limit.c: it makes its own events, and writes each to each viewer."""

    def post(self, run: str, events: int) -> bytes:
        return b""

    def view(self, run: str) -> bytes:
        return f"GET /{run} HTTP/1.1\r\n".encode()


def rows(lab: Lab, sizes: Sizes) -> Iterator[Row]:
    ours: list[float] = []
    alone: list[float] = []
    peer: list[float] = []
    limit: list[float] = []
    for _ in range(sizes.rounds):
        limit.append(by_write(sizes).deliveries_per_s)
        lab.clear()
        with lab.relay() as (relay, _):
            ours.append(deliveries(lab, relay, sizes))
            alone.append(deliveries(lab, relay, sizes, producers=1))
        with lab.nchan(redis=False) as (nchan, _):
            peer.append(deliveries(lab, nchan, sizes))
    what = f"fan-out to {sizes.viewers:,} viewers"
    yield Row(what, "deliveries/s", ours, ">= 1.3", peer=peer, limit=limit)
    yield Row(what, "deliveries/s", ours, ">= 0.9", peer=peer, limit=limit, to_limit=True)
    note = "one event at a time, POST to last viewer"
    yield Row(f"{what}, unhurried", "deliveries/s", alone, "", peer, limit, to_limit=True, note=note)


def deliveries(
    lab: Lab, service: Service, sizes: Sizes, producers: int = PRODUCERS, cores: str = "1"
) -> float:
    """Deliveries a second, until the last viewer has the last event."""
    with watching(lab, service, sizes.viewers, producers, cores) as load:
        load.post(sizes.seconds / 10)
        return load.post(sizes.seconds).deliveries_per_s


@contextlib.contextmanager
def watching(lab: Lab, service: Service, viewers: int, producers: int, cores: str = "1") -> Iterator[Load]:
    """All viewers of one run, connected."""
    run = lab.runs(1)
    service.claim(run)
    with Load(service, run, producers=producers, viewers=viewers, cores=cores) as load:
        load.connect()
        yield load


def by_write(sizes: Sizes) -> Answer:
    """What a C program reaches that only calls write(2)."""
    count = int(100 * sizes.seconds)
    line = MESSAGE % (b"run-1-0", EVENT[1:-1])
    block = b"id: 123456789012345\ndata: %b\n\n" % line
    with tempfile.NamedTemporaryFile(prefix="chunk-") as chunk:
        chunk.write(b"%x\r\n%b\r\n" % (len(block), block))
        chunk.flush()
        argv = ["taskset", "-c", WEB, str(compiled("limit")), str(sizes.viewers), str(count), chunk.name]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            stdin, stdout = process.stdin, process.stdout
            if stdin is None or stdout is None:
                raise AssertionError("the pipes were asked for")
            service = Limit("write(2)", int(stdout.readline()), b"\r\n\r\n", to_blank=False)
            with Load(service, ["run"], producers=0, viewers=sizes.viewers) as load:
                load.connect()
                stdin.write("go\n")
                stdin.flush()
                answer = load.expect(count)
            stdin.write("end\n")
            stdin.flush()
    return answer
