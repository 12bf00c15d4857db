"""What a second core brings: two workers on both cores against one on one, stores and load included."""

from collections.abc import Callable, Iterator

from benchmarks import fanout, ingest
from benchmarks.lab import REST, WEB, Lab
from benchmarks.ours import Relay
from benchmarks.sizes import Sizes
from benchmarks.table import Row

BOTH = f"{WEB},{REST}"


def rows(lab: Lab, sizes: Sizes) -> Iterator[Row]:
    yield compared(
        "two workers, ingest",
        "POST/s",
        lab,
        sizes,
        lambda relay, cores: ingest.rate(lab, relay, sizes, cores=cores),
    )
    yield compared(
        "two workers, fan-out",
        "deliveries/s",
        lab,
        sizes,
        lambda relay, cores: fanout.deliveries(lab, relay, sizes, cores=cores),
    )
    yield compared(
        "two workers, fan-out, unhurried",
        "deliveries/s",
        lab,
        sizes,
        lambda relay, cores: fanout.deliveries(lab, relay, sizes, producers=1, cores=cores),
        goal="",
    )


def compared(
    what: str, unit: str, lab: Lab, sizes: Sizes, measure: Callable[[Relay, str], float], goal: str = ">= 1.5"
) -> Row:
    """`measure` with everything on both cores, and with everything on one."""
    figures: dict[str, list[float]] = {BOTH: [], REST: []}
    for _ in range(sizes.rounds):
        for cores, workers in ((BOTH, 2), (REST, 1)):
            lab.clear()
            with lab.stores_on(cores), lab.relay(cores=cores, workers=workers) as (relay, _):
                figures[cores].append(measure(relay, cores))
    return Row(what, unit, figures[BOTH], goal, figures[REST], note="peer: one worker on one core")
