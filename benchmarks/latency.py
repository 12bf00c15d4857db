"""How long an event takes from its POST to a viewer: for one run, and with many runs at once."""

from collections.abc import Iterator, Sequence

from benchmarks.lab import Lab
from benchmarks.load import Answer, Load, Service
from benchmarks.sizes import Sizes
from benchmarks.table import Row

PRODUCERS = 16


def rows(lab: Lab, sizes: Sizes) -> Iterator[Row]:
    for viewers in (1, 200):
        what = f"latency, 200/s, {viewers} viewer{'s' if viewers > 1 else ''}"
        ours, peer = compared(lab, sizes, runs=1, viewers=viewers, rate=200)
        for name in ("p50_ms", "p99_ms"):
            yield row(f"{what}, {name[:3]}", name, ours, peer)
    runs, viewers = sizes.many_runs, sizes.many_viewers
    what = f"{viewers:,} viewers, {runs} runs, 2,000/s"
    ours, peer = compared(lab, sizes, runs=runs, viewers=viewers, rate=2000)
    yield row(f"{what}, p50", "p50_ms", ours, peer, goal="")
    yield row(f"{what}, p99", "p99_ms", ours, peer)


def row(what: str, name: str, ours: Sequence[Answer], peer: Sequence[Answer], goal: str = "<= 0.9") -> Row:
    return Row(what, "ms", [getattr(one, name) for one in ours], goal, [getattr(one, name) for one in peer])


def compared(
    lab: Lab, sizes: Sizes, *, runs: int, viewers: int, rate: int
) -> tuple[list[Answer], list[Answer]]:
    """The same load on ours and on nchan through Redis, in turn."""
    ours: list[Answer] = []
    peer: list[Answer] = []
    for _ in range(sizes.rounds):
        lab.clear()
        with lab.relay() as (relay, _):
            ours.append(measured(lab, relay, sizes, runs, viewers, rate))
        lab.clear()
        with lab.nchan(redis=True) as (nchan, _):
            peer.append(measured(lab, nchan, sizes, runs, viewers, rate))
    return ours, peer


def measured(lab: Lab, service: Service, sizes: Sizes, runs: int, viewers: int, rate: int) -> Answer:
    names = lab.runs(runs)
    service.claim(names)
    with Load(service, names, producers=PRODUCERS, viewers=viewers) as load:
        load.connect()
        load.post(sizes.seconds / 3, rate=rate)
        return load.post(2 * sizes.seconds, rate=rate)
