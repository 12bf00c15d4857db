"""Whether costs stay what they are as things grow. The ratio is that of the two steps furthest apart."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from statistics import median

from benchmarks import archive, ingest
from benchmarks.fanout import watching
from benchmarks.lab import Lab
from benchmarks.sizes import Sizes
from benchmarks.table import Row

FLAT = "<= 1.2"


def rows(lab: Lab, sizes: Sizes) -> Iterator[Row]:
    yield grown("a delivery", "µs", per_delivery(lab, sizes), "viewers")
    yield grown("a row of the drain", "µs", per_row(lab, sizes), "backlog")
    yield grown("a POST", "µs", per_post(lab, sizes), "runs")


def per_delivery(lab: Lab, sizes: Sizes) -> Mapping[int, list[float]]:
    """The web process's time for each, with each event by itself. All viewers are there all the while, those
    of a step watching a run of their own."""
    lab.clear()
    with lab.relay() as (relay, process), contextlib.ExitStack() as connected:
        loads = {
            viewers: connected.enter_context(watching(lab, relay, viewers, producers=1))
            for viewers in sizes.viewer_steps
        }

        def cost(viewers: int) -> float:
            before = sum(process.cpu_times()[:2])
            answer = loads[viewers].post(sizes.slice_s)
            return 1e6 * (sum(process.cpu_times()[:2]) - before) / answer.deliveries

        return in_turn(sizes.slices, sizes.viewer_steps, cost)


def per_row(lab: Lab, sizes: Sizes) -> Mapping[int, list[float]]:
    """In more rounds than others have: each brings one figure a step, and the host moves that by a third."""
    return in_turn(2 * sizes.rounds - 1, sizes.backlog_steps, lambda size: 1e6 / archive.drain(lab, size))


def per_post(lab: Lab, sizes: Sizes) -> Mapping[int, list[float]]:
    """From empty stores in each round, or the later ones would pay for what the earlier ones left: a longer
    log, and an append-only file that is about to be rewritten."""
    short = replace(sizes, seconds=sizes.slice_s)
    costs: dict[int, list[float]] = {1: [], 1000: []}
    for _ in range(sizes.rounds):
        lab.clear()
        with lab.relay() as (relay, _):
            found = in_turn(
                ingest.SLICES, costs, lambda runs: 1e6 / ingest.rate(lab, relay, short, runs=runs)
            )
        for runs, figures in found.items():
            costs[runs] += figures
    return costs


def in_turn(rounds: int, steps: Iterable[int], cost: Callable[[int], float]) -> Mapping[int, list[float]]:
    """What each step costs, one after the other in each round, and every other time the other way round: a
    machine that is slower a minute later is so for all of them, and so is a longer log."""
    costs: dict[int, list[float]] = {step: [] for step in steps}
    for turn in range(rounds):
        for step in costs if turn % 2 == 0 else reversed(costs):
            costs[step].append(cost(step))
    return costs


def grown(what: str, unit: str, costs: Mapping[int, Sequence[float]], of: str) -> Row:
    """Of all pairs of steps the one whose ratio is the highest."""
    steps = ", ".join(f"{size:,}: {median(figures):.3g}" for size, figures in costs.items())
    pairs = [
        Row(f"growth, {what}", unit, dearer, FLAT, cheaper, note=f"by {of}: {steps}")
        for dearer, cheaper in permutations(costs.values(), 2)
    ]
    return max(pairs, key=lambda row: row.ratio)
