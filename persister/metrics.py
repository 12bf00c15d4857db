"""The figures of a persister: each loop counts for itself, and a scrape reads all of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from prometheus_client.core import Metric

from relay.exposition import counter, gauge, histogram
from relay.metrics import SECONDS, SIZES, Histogram

CAUSES = ("redis", "postgres", "waitaof")
"""Why a step is tried again."""


class Figures:
    """What one loop has done. Plain numbers, each written by one thread."""

    def __init__(self) -> None:
        self.rows = 0
        self.batch_rows = Histogram(
            "persister_batch_rows", "Rows stored in one transaction, of those that had any", SIZES
        )
        self.insert_seconds = Histogram(
            "persister_insert_seconds", "How long PostgreSQL took over a batch", SECONDS
        )
        self.retries = dict.fromkeys(CAUSES, 0)
        self.dead_letters = 0
        self.progress_at = time.monotonic()
        self.trouble: str | None = None
        """Why the last step failed; None where it did not."""

    def stored(self, rows: int, seconds: float) -> None:
        """A batch is committed, as far as it could be."""
        self.rows += rows
        self.batch_rows.observe(rows)
        self.insert_seconds.observe(seconds)

    def failed(self, cause: str, reason: str) -> None:
        """A step failed, and is tried again."""
        self.retries[cause] += 1
        self.trouble = reason

    def went_on(self) -> None:
        """A step is done, be it that there was nothing to do."""
        self.progress_at = time.monotonic()
        self.trouble = None


class Watched(Protocol):
    """What is watched of a loop."""

    @property
    def figures(self) -> Figures: ...

    @property
    def busy_s(self) -> float:
        """How long the step at hand has taken."""
        ...

    @property
    def lost(self) -> int:
        """Entries that were gone from the log before they were archived."""
        ...


def collect(loops: Sequence[Watched]) -> Iterator[Metric]:
    """All figures, by shard."""
    by_shard = {str(shard): loop for shard, loop in enumerate(loops)}
    for make, name, text, read in _BY_SHARD:
        yield make(name, text, "shard", {shard: read(loop) for shard, loop in by_shard.items()})
    for pick in _HISTOGRAMS:
        each = {shard: pick(loop.figures) for shard, loop in by_shard.items()}
        yield histogram(each["0"].name, each["0"].text, each, "shard")
    yield counter(
        "persister_retries",
        "Steps that failed and were tried again, by what was at fault",
        "cause",
        {cause: sum(loop.figures.retries[cause] for loop in loops) for cause in CAUSES},
    )


_BY_SHARD: Sequence[tuple[Callable[..., Metric], str, str, Callable[[Watched], float]]] = (
    (counter, "persister_rows", "Events stored", lambda its: its.figures.rows),
    (
        counter,
        "persister_dead_letters",
        "Events that could not be archived",
        lambda its: its.figures.dead_letters,
    ),
    (
        counter,
        "persister_lost_entries",
        "Entries that were gone from the log before they were archived",
        lambda its: its.lost,
    ),
    (
        gauge,
        "persister_busy_seconds",
        "How long the step at hand has taken; a second of it may be waiting for news",
        lambda its: its.busy_s,
    ),
    (
        gauge,
        "persister_progress_age_seconds",
        "Since the last step that did not fail, be it that there was nothing to do",
        lambda its: time.monotonic() - its.figures.progress_at,
    ),
)

_HISTOGRAMS: Sequence[Callable[[Figures], Histogram]] = (
    lambda figures: figures.batch_rows,
    lambda figures: figures.insert_seconds,
)
