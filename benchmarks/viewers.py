"""What viewers cost: memory while nothing happens, processor time where nobody looks, and the time until all
have caught up that were cut off together."""

from collections.abc import Iterator, Sequence

import psutil

from benchmarks.lab import REST, Lab
from benchmarks.load import Load, Service
from benchmarks.sizes import Sizes
from benchmarks.table import Row

MISSED = 50


def rows(lab: Lab, sizes: Sizes) -> Iterator[Row]:
    yield idle(lab, sizes)
    yield watched(lab, sizes)
    yield storm(lab, sizes)


def idle(lab: Lab, sizes: Sizes) -> Row:
    """Resident memory of the web process, with and without viewers."""
    ours: list[float] = []
    peer: list[float] = []
    for _ in range(min(sizes.rounds, 2)):
        lab.clear()
        with lab.relay() as (relay, process):
            ours.append(memory_each(lab, relay, process, sizes))
        with lab.nchan(redis=False) as (nchan, process):
            peer.append(memory_each(lab, nchan, process, sizes))
    return Row(f"idle viewer, of {sizes.idle_viewers:,}", "bytes", ours, "<= 1.0", peer)


def memory_each(lab: Lab, service: Service, process: psutil.Process, sizes: Sizes) -> float:
    runs = lab.runs(100)
    service.claim(runs)
    with Load(service, runs, viewers=100) as load:  # what the first viewers bring with them
        load.connect()
    before = process.memory_info().rss
    with Load(service, runs, viewers=sizes.idle_viewers) as load:
        load.connect()
        return (process.memory_info().rss - before) / sizes.idle_viewers


def watched(lab: Lab, sizes: Sizes) -> Row:
    """Processor time of a web worker while another one takes the events in."""
    unwatched: list[float] = []
    watching: list[float] = []
    runs = 500
    for _ in range(sizes.rounds):
        lab.clear()
        with lab.relay() as (viewed, process), lab.relay(cores=REST) as (taking, _):
            names = lab.runs(runs)
            taking.claim(names)
            with Load(taking, names, producers=10, batch=25) as producers:
                unwatched.append(busy(process, producers, sizes))
                with Load(viewed, names, viewers=runs) as viewers:
                    viewers.connect()
                    watching.append(busy(process, producers, sizes))
    return Row(
        "5,000 events/s that nobody watches",
        "CPU",
        unwatched,
        "<= 0.25",
        watching,
        note="peer: one viewer a run",
    )


def busy(process: psutil.Process, producers: Load, sizes: Sizes) -> float:
    """The share of a core that a process uses."""
    before = sum(process.cpu_times()[:2])
    answer = producers.post(sizes.seconds, rate=200, watched=False)
    return (sum(process.cpu_times()[:2]) - before) / answer.seconds


def storm(lab: Lab, sizes: Sizes) -> Row:
    """All viewers of a run come back at once, and have missed the same."""
    ours: list[float] = []
    peer: list[float] = []
    for _ in range(sizes.rounds):
        lab.clear()
        with lab.relay() as (relay, _):
            ours.append(caught_up(lab, relay, sizes))
        with lab.nchan(redis=False) as (nchan, _):
            peer.append(caught_up(lab, nchan, sizes))
    what = f"storm: {sizes.storm_viewers:,} resume, {MISSED} missed each"
    return Row(what, "s", ours, "<= 1.0", peer)


def caught_up(lab: Lab, service: Service, sizes: Sizes) -> float:
    run: Sequence[str] = lab.runs(1)
    service.claim(run)
    with Load(service, run, viewers=sizes.storm_viewers, ids=True) as load:
        load.connect()
        load.post(count=1)
        load.drop()
        load.post(count=MISSED, watched=False)
        return load.resume().seconds
