"""How long an event takes from its POST to a viewer: for one run, and with many runs at once."""

import contextlib
from collections.abc import Iterator, Sequence

from benchmarks.lab import Lab
from benchmarks.load import Answer, Load, Service
from benchmarks.sizes import Sizes
from benchmarks.table import Row

PRODUCERS = 16


def rows(lab: Lab, sizes: Sizes) -> Iterator[Row]:
    for viewers in (1, 200):
        what = f"latency, 200/s, {viewers} viewer{'s' if viewers > 1 else ''}"
        ours, peer = compared(lab, sizes, sizes.slices, sizes.slice_s, runs=1, viewers=viewers, rate=200)
        for name in ("p50_ms", "p99_ms"):
            yield row(f"{what}, {name[:3]}", name, ours, peer)
    runs, viewers = sizes.many_runs, sizes.many_viewers
    what = f"{viewers:,} viewers, {runs} runs, 2,000/s"
    ours, peer = compared(lab, sizes, sizes.rounds, 2 * sizes.seconds, runs=runs, viewers=viewers, rate=2000)
    yield row(f"{what}, p50", "p50_ms", ours, peer, goal="")
    yield row(f"{what}, p99", "p99_ms", ours, peer)


def row(what: str, name: str, ours: Sequence[Answer], peer: Sequence[Answer], goal: str = "<= 0.9") -> Row:
    return Row(what, "ms", [getattr(one, name) for one in ours], goal, [getattr(one, name) for one in peer])


def compared(
    lab: Lab, sizes: Sizes, turns: int, seconds: float, *, runs: int, viewers: int, rate: int
) -> tuple[list[Answer], list[Answer]]:
    """The same load on ours and on nchan through Redis, in turn, for so many seconds each."""
    lab.clear()
    with (
        lab.relay() as (relay, _),
        lab.nchan(redis=True) as (nchan, _),
        watched(lab, relay, runs, viewers) as ours,
        watched(lab, nchan, runs, viewers) as peer,
    ):
        for load in (ours, peer):
            load.post(sizes.seconds / 3, rate=rate)
        answers = [(ours.post(seconds, rate=rate), peer.post(seconds, rate=rate)) for _ in range(turns)]
    return [our for our, _ in answers], [its for _, its in answers]


@contextlib.contextmanager
def watched(lab: Lab, service: Service, runs: int, viewers: int) -> Iterator[Load]:
    """Runs with their viewers, connected."""
    names = lab.runs(runs)
    service.claim(names)
    with Load(service, names, producers=PRODUCERS, viewers=viewers) as load:
        load.connect()
        yield load
