"""Seeds, the world of a row, and the table of results.

Three variables of the environment say how much is run: FAULT_SEEDS, how many seeds each row gets (without it
the rows run once, shortened, and without the longest), FAULT_SEED, the first of them, to repeat a run, and
FAULT_LONG, with which rows 17 and 24 last the ten minutes that the matrix gives them.
What came out is written to the file FAULT_RESULTS as JSON.
"""

import json
import os
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Servers
from tests.faults.oracle import Fault, Verdict
from tests.faults.world import World

SEEDS = int(os.environ.get("FAULT_SEEDS", "0"))
FIRST_SEED = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
LONG = bool(os.environ.get("FAULT_LONG"))
SHORT = 0.4
"""In the ordinary suite, what faults last of what they should."""

results: list[dict[str, Any]] = []
left_out: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: a row that only `make faults` runs")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", [FIRST_SEED + number for number in range(max(1, SEEDS))])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not SEEDS:
        long = [item for item in items if item.get_closest_marker("long")]
        left_out.extend(item.name for item in long)
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if results:
        terminalreporter.section("fault matrix")
        for line in table(results):
            terminalreporter.write_line(line)
    if left_out:
        terminalreporter.write_line(f"left to `make faults`: {', '.join(sorted(left_out))}")
    if results and (path := os.environ.get("FAULT_RESULTS")):
        Path(path).write_text(json.dumps(results, indent=1))


COLUMNS = (
    "row",
    "seed",
    "acknowledged",
    "unknown",
    "lost",
    "doubled",
    "reordered",
    "longest stall ms",
    "verdict",
)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The results as lines, the columns as wide as they have to be."""
    cells = [COLUMNS, *(tuple(str(row[column]) for column in COLUMNS) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


class Row:
    """Where a row puts its verdict: it is printed, kept for the table, and has to be good."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.seed = seed

    def __call__(self, verdict: Verdict) -> None:
        self.note(verdict)
        verdict.check()

    def red(self, verdict: Verdict, *faults: Fault) -> None:
        """The same for a mutant, whose verdict has to name these faults."""
        self.note(verdict)
        assert set(faults) <= verdict.faults, f"the mistake was not noticed:\n{verdict.text}"

    def note(self, verdict: Verdict) -> None:
        """Only keeps it."""
        result: dict[str, Any] = {"row": self.name, "seed": self.seed, **verdict.counts}
        result["answers"] = dict(verdict.answers)
        result["verdict"] = "well" if verdict else ", ".join(sorted(f.value for f in verdict.faults))
        results.append(result)
        print("; ".join(f"{column} {result[column]}" for column in COLUMNS))  # noqa: T201


@pytest.fixture
def row(request: pytest.FixtureRequest, seed: int) -> Row:
    found = re.match(r"test_row_(\d+[a-z]?)_", request.node.name)
    mutant = re.search(r"row_(\d+[a-z]?)_is_red", request.node.name)
    name = f"{mutant[1]} mutant" if mutant else request.node.name.partition("[")[0]
    return Row(found[1] if found else name, seed)


@pytest.fixture
async def world(place: Path, servers: Servers, seed: int) -> AsyncIterator[World]:
    made = World(place, servers.database_url, seed, scale=1.0 if SEEDS else SHORT, long=LONG)
    yield made
    await made.close()
