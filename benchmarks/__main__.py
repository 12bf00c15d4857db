"""`python -m benchmarks`: measures the relay against its peers and limits, prints the table, and keeps the
figures as JSON. Ends with 1, and without a table, where an event was lost, repeated or out of order."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from benchmarks import archive, capacity, fanout, growth, ingest, latency, viewers, workers
from benchmarks.lab import Lab, lab
from benchmarks.load import WentWrong
from benchmarks.nchan import PeerMissing, installed
from benchmarks.sizes import QUICK, WHOLE, Sizes
from benchmarks.table import Row, render

MEASUREMENTS: dict[str, Callable[[Lab, Sizes], Iterator[Row]]] = {
    "ingest": ingest.rows,
    "fan-out": fanout.rows,
    "latency": latency.rows,
    "viewers": viewers.rows,
    "archive": archive.rows,
    "growth": growth.rows,
    "workers": workers.rows,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under three minutes, to see that all works")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the figures go")
    options = parser.parse_args()
    try:
        installed()
        rows, notes = measured(QUICK if options.quick else WHOLE, options.only)
    except (PeerMissing, WentWrong) as error:
        print(f"no result: {error}", file=sys.stderr)
        return 1
    print(render(rows))
    print(*notes, f"Python {platform.python_version()} ({platform.python_compiler()})", sep="\n")
    keep(options.json, rows, notes)
    return 0


def measured(sizes: Sizes, names: list[str]) -> tuple[list[Row], list[str]]:
    """The rows, and what is to be known of the machine that they were measured on."""
    rows: list[Row] = []
    with lab() as stores:
        notes = list(capacity.lines(stores, sizes))
        for name in names:
            begin, before = time.monotonic(), withheld_s()
            for row in MEASUREMENTS[name](stores, sizes):
                print(f"{time.monotonic() - begin:5.0f} s ", *row.cells(), sep="  ", file=sys.stderr)
                rows.append(row)
            share = (withheld_s() - before) / (time.monotonic() - begin)
            notes.append(f"{name}: the host kept {share:.1%} of a processor from this machine")
    return rows, notes


def withheld_s() -> float:
    """For how long processors of this machine had work, and the host let them do none."""
    return float(psutil.cpu_times().steal)


def keep(path: Path, rows: list[Row], notes: list[str]) -> None:
    """The figures of all rounds, and what they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    result = {"machine": machine, "notes": notes, "rows": [row.as_json() for row in rows]}
    path.write_text(json.dumps(result, indent=1))
    print(f"all rounds are in {path}")


if __name__ == "__main__":
    sys.exit(main())
