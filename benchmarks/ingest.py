"""How many POSTs are acknowledged: each with its token checked, its payload validated, both logs written and
synced to disk. nchan checks and validates nothing, and publishes through the same Valkey."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.lab import Lab
from benchmarks.load import Load, Service
from benchmarks.sizes import Sizes
from benchmarks.table import Row

PRODUCERS = 64
BATCH = 100
SLICES = 2
"""Of each, between the times that the stores are emptied."""


def rows(lab: Lab, sizes: Sizes) -> Iterator[Row]:
    single: list[float] = []
    batched: list[float] = []
    peer: list[float] = []
    short = replace(sizes, seconds=sizes.slice_s)
    for _ in range(sizes.rounds):
        lab.clear()
        with lab.relay() as (relay, _), lab.nchan(redis=True) as (nchan, _):
            for _ in range(SLICES):
                single.append(rate(lab, relay, short))
                peer.append(rate(lab, nchan, short))
                batched.append(rate(lab, relay, short, batch=BATCH))
    yield Row("ingest, single", "POST/s", single, ">= 1.2", peer=peer)
    yield Row(
        f"ingest, batch of {BATCH}", "events/s", batched, ">= 5", peer=peer, note="to nchan's single rate"
    )


def rate(
    lab: Lab,
    service: Service,
    sizes: Sizes,
    *,
    producers: int = PRODUCERS,
    batch: int = 1,
    runs: int = 1,
    cores: str = "1",
) -> float:
    """Acknowledged events a second, all of them found in the log afterwards where it is ours."""
    before = lab.top()
    with Load(service, lab.runs(runs), producers=producers, batch=batch, cores=cores) as load:
        warm = load.post(sizes.seconds / 10, watched=False)
        answer = load.post(sizes.seconds, watched=False)
    if service.name == "ours":
        lab.check_log(batch * (warm.posts + answer.posts), after=before)
    return batch * answer.posts / answer.posting_s
