"""What the private listener of a persister has."""

from collections.abc import Mapping, Sequence

from persister import metrics
from persister.metrics import Watched
from relay.exposition import page
from relay.listener import Page, Pages, document


def pages(loops: Sequence[Watched], stuck_s: float) -> Pages:
    """The figures, and how the loops are: alive while none is stuck, ready while none fails."""
    return {
        "/livez": lambda: _live(loops, stuck_s),
        "/readyz": lambda: _ready(loops),
        "/metrics": page(lambda: metrics.collect(loops)),
    }


def _live(loops: Sequence[Watched], stuck_s: float) -> Page:
    return _said({f"shard {n}": "stuck" for n, loop in enumerate(loops) if loop.busy_s > stuck_s}, {})


def _ready(loops: Sequence[Watched]) -> Page:
    troubles = {f"shard {n}": loop.figures.trouble for n, loop in enumerate(loops)}
    return _said({shard: trouble for shard, trouble in troubles.items() if trouble}, troubles)


def _said(wrong: Mapping[str, str], asked: Mapping[str, str | None]) -> Page:
    checks = {**dict.fromkeys(asked, "ok"), **wrong}
    status = {"status": "unavailable" if wrong else "ok", **({"checks": checks} if checks else {})}
    return document(503 if wrong else 200, status)
