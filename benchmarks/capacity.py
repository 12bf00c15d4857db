"""What the load generator could do by itself, so that it is not what is measured."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import fanout
from benchmarks.lab import REST, Lab
from benchmarks.load import Load, Service
from benchmarks.nchan import PeerMissing
from benchmarks.ours import request
from benchmarks.sizes import Sizes

PRODUCERS = 64


@dataclass(frozen=True)
class Nothing(Service):
    """nginx that answers 204 to everything."""

    def post(self, run: str, events: int) -> bytes:
        return request(f"/nothing?{run}", b"{}")

    def view(self, run: str) -> bytes:
        return f"GET /nothing?{run} HTTP/1.1\r\nHost: relay\r\n".encode()


def lines(lab: Lab, sizes: Sizes) -> Iterator[str]:
    with lab.nchan(redis=False) as (nginx, _):
        with Load(Nothing("nothing", nginx.port, b"", to_blank=False), ["run"], producers=PRODUCERS) as load:
            answer = load.post(sizes.seconds)
        yield (
            f"load generator: {answer.posts / answer.seconds:,.0f} POST/s against an nginx that answers 204, "
            f"{answer.posts / answer.cpu_s:,.0f} for each second of its own processor time; "
            f"wrk: {wrk(nginx.port, sizes):,.0f} GET/s against the same"
        )
    answer = fanout.by_write(sizes)
    yield (
        f"load generator: {answer.deliveries_per_s:,.0f} deliveries/s from limit.c, "
        f"{answer.deliveries / answer.cpu_s:,.0f} for each second of its own processor time"
    )


def wrk(port: int, sizes: Sizes) -> float:
    """Requests a second of the load generator that everybody knows."""
    program = shutil.which("wrk")
    if program is None:
        raise PeerMissing("wrk is missing: apt-get install wrk")
    argv = ["taskset", "-c", REST, program, "-t1", f"-c{PRODUCERS}", f"-d{max(1, int(sizes.seconds))}s"]
    done = subprocess.run(
        [*argv, f"http://127.0.0.1:{port}/nothing"], capture_output=True, text=True, check=True
    )
    found = re.search(r"Requests/sec:\s+([0-9.]+)", done.stdout)
    if found is None:
        raise RuntimeError("wrk printed no rate")
    return float(found[1])
