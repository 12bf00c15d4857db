"""What a second core brings: two workers on both cores against one on one, stores and load included."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from benchmarks import fanout, ingest
from benchmarks.lab import REST, WEB, Lab
from benchmarks.ours import Relay
from benchmarks.sizes import Sizes
from benchmarks.table import Row

BOTH = f"{WEB},{REST}"
PRODUCERS = 2 * ingest.PRODUCERS
"""For one and for two workers alike: each of two then has the usual."""
VIEWED_PRODUCERS = ingest.PRODUCERS
"""The same for the fan-out: each of two then has more than leave at once (see relay/stream/lane.py), or they
would all wait for the same call."""


def rows(lab: Lab, sizes: Sizes) -> Iterator[Row]:
    short = replace(sizes, seconds=sizes.slice_s)

    def ingested(relay: Relay, cores: str) -> float:
        return ingest.rate(lab, relay, short, producers=PRODUCERS, cores=cores)

    def delivered(relay: Relay, cores: str) -> float:
        return fanout.deliveries(lab, relay, short, producers=VIEWED_PRODUCERS, cores=cores)

    def delivered_singly(relay: Relay, cores: str) -> float:
        return fanout.deliveries(lab, relay, short, producers=1, cores=cores)

    for what, unit, measure, goal in (
        ("ingest", "POST/s", ingested, ">= 1.5"),
        ("fan-out", "deliveries/s", delivered, ">= 1.5"),
        ("fan-out, unhurried", "deliveries/s", delivered_singly, ""),
    ):
        two, one = compared(lab, sizes.slices, measure)
        yield Row(f"two workers, {what}", unit, two, goal, one, note="peer: one worker on one core")


def compared(
    lab: Lab, slices: int, measure: Callable[[Relay, str], float]
) -> tuple[Sequence[float], Sequence[float]]:
    """`measure` with everything on both cores, and with everything on one, in turn."""
    lab.clear()
    figures: dict[str, list[float]] = {BOTH: [], REST: []}
    with lab.relay(cores=BOTH, workers=2) as (two, _), lab.relay(cores=REST) as (one, _):
        for _ in range(slices):
            for cores, relay in ((BOTH, two), (REST, one)):
                with lab.stores_on(cores):
                    figures[cores].append(measure(relay, cores))
    return figures[BOTH], figures[REST]
