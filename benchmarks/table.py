"""The rows of the result, as a table for people and as JSON for programs."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

_MEETS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Row:
    """One comparison. Each list has a figure for each round, and the medians are shown. The ratio is ours to
    the peer's, or to the limit's where `to_limit` says so: the median of what each round says alone, since
    within a round the machine is the most alike."""

    what: str
    unit: str
    ours: Sequence[float]
    goal: str
    peer: Sequence[float] = ()
    limit: Sequence[float] = ()
    to_limit: bool = False
    note: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        others = self.limit if self.to_limit else self.peer
        return median(our / other for our, other in zip(self.ours, others, strict=True))

    @property
    def met(self) -> bool | None:
        """None where there is no goal."""
        sign, _, bound = self.goal.partition(" ")
        return bool(_MEETS[sign](self.ratio, float(bound))) if sign else None

    def cells(self) -> list[str]:
        ratio = f"{self.ratio:.2f}"
        met = {True: "yes", False: "NO", None: "-"}[self.met]
        figures = (_figure(values) for values in (self.ours, self.peer, self.limit))
        return [self.what, self.unit, *figures, ratio, self.goal or "-", met, self.note]

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "ratio": self.ratio, "met": self.met}


HEAD = ["what", "unit", "ours", "peer", "limit", "ratio", "goal", "met", ""]


def render(rows: Iterable[Row]) -> str:
    """The table, in columns that line up."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _figure(values: Sequence[float]) -> str:
    if not values:
        return "-"
    value = median(values)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
