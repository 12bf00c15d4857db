"""What a second core brings: two workers on both cores against one on one, stores and load included."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks import fanout, ingest
from benchmarks.lab import REST, WEB, Lab
from benchmarks.ours import Relay
from benchmarks.sizes import Sizes
from benchmarks.table import Row

BOTH = f"{WEB},{REST}"


def rows(lab: Lab, sizes: Sizes) -> Iterator[Row]:
    def ingested(relay: Relay, workers: int, cores: str) -> float:
        return ingest.rate(lab, relay, sizes, cores=cores)

    def delivered(relay: Relay, workers: int, cores: str) -> float:
        # So many for each, or what two workers have to write comes in halves, and costs twice the writes.
        return fanout.deliveries(lab, relay, sizes, producers=workers * fanout.PRODUCERS, cores=cores)

    def delivered_singly(relay: Relay, workers: int, cores: str) -> float:
        return fanout.deliveries(lab, relay, sizes, producers=1, cores=cores)

    for what, unit, measure, goal in (
        ("ingest", "POST/s", ingested, ">= 1.5"),
        ("fan-out", "deliveries/s", delivered, ">= 1.5"),
        ("fan-out, unhurried", "deliveries/s", delivered_singly, ""),
    ):
        figures = compared(lab, sizes, measure)
        note = "peer: one worker on one core"
        yield Row(f"two workers, {what}", unit, figures[BOTH], goal, figures[REST], note=note)


def compared(
    lab: Lab, sizes: Sizes, measure: Callable[[Relay, int, str], float]
) -> Mapping[str, Sequence[float]]:
    """`measure` with everything on both cores, and with everything on one."""
    figures: dict[str, list[float]] = {BOTH: [], REST: []}
    for _ in range(sizes.rounds):
        for cores, workers in ((BOTH, 2), (REST, 1)):
            lab.clear()
            with lab.stores_on(cores), lab.relay(cores=cores, workers=workers) as (relay, _):
                figures[cores].append(measure(relay, workers, cores))
    return figures
