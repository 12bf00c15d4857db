"""What a soak measured: figures over time, as text, JSON and a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from tests.faults.oracle import Call, Gauge, Outcome

SHARE = 10
"""First and last figures are medians over a tenth of the time each."""


@dataclass(frozen=True)
class Sample:
    """One look at the web worker. `at_s` counts from the first one, with all viewers there; `late_ms` is how
    late the latest of its timers was of those since the one before, or nearly."""

    at_s: float
    rss_mb: float
    files: int
    tasks: int
    threads: int
    late_ms: float
    acknowledged: int


@dataclass(frozen=True)
class Measure:
    """One figure of a sample, and how much it may grow."""

    name: str
    title: str
    share: float
    units: float

    def first(self, samples: Sequence[Sample]) -> float:
        return self._median(samples[: max(1, len(samples) // SHARE)])

    def last(self, samples: Sequence[Sample]) -> float:
        return self._median(samples[-max(1, len(samples) // SHARE) :])

    def most(self, samples: Sequence[Sample]) -> float:
        return float(max(getattr(sample, self.name) for sample in samples))

    def _median(self, samples: Sequence[Sample]) -> float:
        return float(median(getattr(sample, self.name) for sample in samples))

    def gauge(self, samples: Sequence[Sample]) -> Gauge:
        first = self.first(samples)
        return Gauge(self.title, first, self.last(samples), slack=first * self.share + self.units)


MEASURES = (
    Measure("rss_mb", "memory of the worker, MB", share=0.05, units=10),
    Measure("files", "open files of the worker", share=0.05, units=20),
    Measure("tasks", "tasks of the worker", share=0.05, units=20),
    Measure("threads", "threads of the worker", share=0, units=4),
    Measure("late_ms", "latest timer of the worker in 2 s, ms", share=0.5, units=50),
)
"""Units on top of five per cent: the database's threads start as they are needed, churn is always under way,
an allocator that is not asked for the same sizes again keeps some pages, and a machine has other things to do
than to run a timer that is due."""


def latencies(calls: Sequence[Call]) -> dict[str, float]:
    """Of the acknowledged calls, in ms, in the first and in the last third of them."""
    took = [call.took_s * 1000 for call in calls if call.outcome is Outcome.ACKNOWLEDGED]
    third = len(took) // 3
    found: dict[str, float] = {}
    for name, some in (("first", took[:third]), ("last", took[-third:])):
        if len(some) > 1:
            cuts = quantiles(some, n=100)
            found |= {
                f"p50 ms, {name} third": round(cuts[49], 2),
                f"p99 ms, {name} third": round(cuts[98], 2),
            }
    return found


def figures(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Every measure at first, at last, and at most."""
    return {
        measure.title: {
            "first": round(measure.first(samples), 1),
            "last": round(measure.last(samples), 1),
            "most": round(measure.most(samples), 1),
        }
        for measure in MEASURES
    }


def lines(samples: Sequence[Sample]) -> list[str]:
    return [
        f"{title}: {found['first']} at first, {found['last']} at last, {found['most']} at most"
        for title, found in figures(samples).items()
    ]


def write(output: Path, samples: Sequence[Sample], faults: Sequence[Any], summary: dict[str, Any]) -> None:
    """`soak.json` and `soak.svg`. Faults are (name, from, to) in seconds of the samples."""
    output.mkdir(parents=True, exist_ok=True)
    document = {
        **summary,
        "measures": figures(samples),
        "faults": faults,
        "samples": [asdict(sample) for sample in samples],
    }
    (output / "soak.json").write_text(json.dumps(document, indent=1))
    (output / "soak.svg").write_text(picture(samples, faults))


WIDTH, HEIGHT, LEFT, TOP = 900, 110, 70, 30
COLOURS = {"8": "#f3c6c6", "16": "#c6d9f3", "19": "#f3e6b8", "21": "#cbe8cb"}


def picture(samples: Sequence[Sample], faults: Sequence[tuple[str, float, float]]) -> str:
    """The measures one below the other, with the faults behind them."""
    end = max(samples[-1].at_s, 1.0)
    panels = [_panel(measure, place, samples, end) for place, measure in enumerate(MEASURES)]
    height = TOP + len(MEASURES) * (HEIGHT + TOP)
    bands = [_band(*fault, end, height) for fault in faults]
    legend = ", ".join(f"{row}: {colour}" for row, colour in COLOURS.items())
    size = f'width="{LEFT + WIDTH + 20}" height="{height + 20}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
            f"<desc>Bands are fault rows ({legend})</desc>",
            '<rect width="100%" height="100%" fill="white"/>',
            *bands,
            *panels,
            f'<text x="{LEFT}" y="{height + 10}">0 s</text>',
            f'<text x="{LEFT + WIDTH}" y="{height + 10}" text-anchor="end">{end:.0f} s</text>',
            "</svg>",
        ]
    )


def _band(row: str, began: float, ended: float, end: float, height: int) -> str:
    x = LEFT + WIDTH * began / end
    width = max(1.5, WIDTH * (ended - began) / end)
    colour = COLOURS.get(row, "#dddddd")
    bar = f'<rect x="{x:.1f}" y="18" width="{width:.1f}" height="{height - 18}" fill="{colour}"/>'
    return f'{bar}<text x="{x:.1f}" y="14" font-size="9">{row}</text>'


def _panel(measure: Measure, place: int, samples: Sequence[Sample], end: float) -> str:
    values = [float(getattr(sample, measure.name)) for sample in samples]
    top = max(values) * 1.1 or 1.0
    base = TOP + place * (HEIGHT + TOP) + HEIGHT
    points = " ".join(
        f"{LEFT + WIDTH * sample.at_s / end:.1f},{base - HEIGHT * value / top:.1f}"
        for sample, value in zip(samples, values, strict=True)
    )
    return "\n".join(
        [
            f'<line x1="{LEFT}" y1="{base}" x2="{LEFT + WIDTH}" y2="{base}" stroke="#999999"/>',
            f'<text x="{LEFT}" y="{base - HEIGHT - 4}">{measure.title}</text>',
            f'<text x="{LEFT - 6}" y="{base}" text-anchor="end">0</text>',
            f'<text x="{LEFT - 6}" y="{base - HEIGHT + 8}" text-anchor="end">{top:.0f}</text>',
            f'<polyline points="{points}" fill="none" stroke="#1f4e8c" stroke-width="1.5"/>',
        ]
    )
