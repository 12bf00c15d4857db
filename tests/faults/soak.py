"""A soak: many viewers who come and go, faults in rotation, for long; then the oracle, and figures over time.

    python -m tests.faults.soak --minutes 30 --viewers 1000 --output soak-results

Rows 8, 16, 19 and 21 of the fault matrix take turns. Each second five in a hundred viewers are cut and come
back by id, and one in a hundred of those leaves for good, with a newcomer in its place. The end of it all is
a verdict as of any row, in which the worker's memory, files, tasks, threads and the lateness of its timers
have to be what they were at the beginning, and its tasks, once all viewers are gone, what they were before
any came. Exit code 0 only if nothing is wrong.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from tests.faults.clients import Address, Watcher
from tests.faults.oracle import Expected, Facts, Gauge, Seen, Verdict
from tests.faults.proxy import Proxy
from tests.faults.soaking import MEASURES, Sample, latencies, lines, write
from tests.faults.world import World
from tests.waiting import until

RUNS = 20
CHURN = 0.05
"""Of the viewers, in a second."""
LEAVE = 0.01
"""Of those cut, for good. A newcomer costs as much as its run is long, so that more would only test that."""
EVERY_S = 2.0
PAUSE_S = 2.0
"""The longest rest of a producer: some 20 events a second from all, so 1,000 deliveries to 1,000 viewers."""
TASKS_SLACK = 5
"""Calls that are under way."""


class SoakWatcher(Watcher):
    """Keeps each event that many have seen only once, and is cut from outside."""

    known: dict[Seen, Seen]
    times = False

    def _message(self, message: Any) -> None:
        super()._message(message)
        part = self.parts[-1]
        news = len(part) if message["type"] == "initial" else 1
        part[len(part) - news :] = [self.known.setdefault(seen, seen) for seen in part[len(part) - news :]]
        if not self.times:
            self.arrivals.clear()

    def drop(self) -> None:
        self._close()


class Soak(World):
    """The world of a soak: one web worker behind a proxy, since its figures are what is looked at."""

    def __init__(self, place: Path, seed: int) -> None:
        super().__init__(place, "", seed)
        self.samples: list[Sample] = []
        self.spans: list[tuple[str, float, float]] = []
        self.left: list[Watcher] = []
        self.began = 0.0
        self._known: dict[Seen, Seen] = {}
        self._names = itertools.count(1)
        self._vitals = place / "vitals"
        self.proxy: Proxy

    async def set_up(self, viewers: int) -> None:
        await self.add_postgres()
        valkey = await self.add_valkey()
        self.proxy = await self.add_proxy(valkey.port)
        url = valkey.url_by(self.proxy.port)
        noting = {"VITALS_FILE": str(self._vitals), "RELAY_KEEP_ALIVE_S": "10"}
        await self.add_web("points", "vitals", redis_url=url, **noting)
        await self.add_persister()
        await until(self._vitals.exists, "a count of tasks")
        tasks = self.tasks()
        self.gauges.append(
            lambda: Gauge("tasks of the worker without viewers", tasks, self.tasks(), TASKS_SLACK)
        )
        await self.load(runs=min(RUNS, viewers), viewers=max(1, viewers // RUNS), patience_s=10)
        for producer in self.producers:
            producer.pause_s = PAUSE_S
        self.began = time.monotonic()

    def watch(self, run_id: str, name: str, address: Address | None = None) -> Watcher:
        made = SoakWatcher(run_id, name, address or self.anywhere, self.seed)
        made.known = self._known
        made.times = next(self._names) % 50 == 1
        self.watchers.append(made)
        self._tasks.append(asyncio.create_task(made.run()))
        return made

    def facts(self) -> Facts:
        found = super().facts()
        left = [replace_stayed(watcher) for watcher in self.left]
        gauges = [*found.gauges, *(measure.gauge(self.samples) for measure in MEASURES)]
        return replace(found, viewers=[*found.viewers, *left], gauges=gauges)

    async def last(self, seconds: float) -> None:
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, over.set)
        await over.wait()

    # What goes on all the time

    async def churn(self) -> None:
        while True:
            await self.last(1.0)
            for watcher in self.random.sample(self.watchers, max(1, int(len(self.watchers) * CHURN))):
                assert isinstance(watcher, SoakWatcher)
                if self.random.random() < LEAVE:
                    self.watchers.remove(watcher)
                    self.left.append(watcher)
                    watcher.leave()
                    self.watch(watcher.run_id, f"newcomer {next(self._names)} of {watcher.run_id}")
                else:
                    watcher.drop()

    async def look(self) -> None:
        while True:
            self.samples.append(self.sample())
            await self.last(EVERY_S)

    def sample(self) -> Sample:
        web = psutil.Process(self.webs[0].pid)
        tasks, late_ms = self._vitals.read_text().split()
        with web.oneshot():
            return Sample(
                at_s=round(time.monotonic() - self.began, 1),
                rss_mb=round(web.memory_info().rss / 1e6, 2),
                files=web.num_fds(),
                tasks=int(tasks),
                threads=web.num_threads(),
                late_ms=float(late_ms),
                acknowledged=self.ledger.count,
            )

    def tasks(self) -> int:
        """How many the worker has."""
        return int(self._vitals.read_text().split()[0])

    # What goes wrong

    async def in_rotation(self, until_s: float) -> None:
        """One fault after the other, each healed and felt to be before the next one."""
        rows: dict[str, Callable[[], Awaitable[None]]] = {
            "8": self._valkey_is_killed,
            "16": self._answers_are_lost,
            "19": self._connections_are_killed,
            "21": self._persister_is_killed,
        }
        gap_s = max(2.0, min(20.0, (until_s - time.monotonic()) / 12))
        for row in itertools.cycle(rows):
            await self.last(gap_s)
            if time.monotonic() > until_s:
                return
            began = time.monotonic() - self.began
            async with self.fault():
                await rows[row]()
            self.spans.append((row, round(began, 1), round(self.faults[-1][1] - self.began, 1)))
            print(f"{began:.0f} s: row {row}, {self.ledger.count} acknowledged", flush=True)  # noqa: T201

    async def _valkey_is_killed(self) -> None:
        await self.valkey.kill()
        await self.trouble(3)
        await self.valkey.start()

    async def _answers_are_lost(self) -> None:
        for swallowed in (True, False, False):
            for connection in self.proxy.using(b"FCALL"):
                connection.replies_to_swallow = int(swallowed)
                connection.replies_to_cut = int(not swallowed)
            await self.trouble()
            await self.more(self.random.randint(5, 30))

    async def _connections_are_killed(self) -> None:
        for _ in range(30):
            await asyncio.to_thread(self.ask, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await self.last(0.2)

    async def _persister_is_killed(self) -> None:
        await self.persisters[0].kill()
        await self.more(self.random.randint(5, 50))
        await self.persisters[0].start()


def replace_stayed(watcher: Watcher) -> Any:
    return watcher.viewed._replace(stayed=False)


async def soak(place: Path, minutes: float, viewers: int, seed: int, output: Path) -> Verdict:
    """All of it; what came out is printed, and written to `output`."""
    world = Soak(place, seed)
    try:
        await world.set_up(viewers)
        always = [asyncio.create_task(work) for work in (world.churn(), world.look())]
        try:
            await world.in_rotation(world.began + minutes * 60)
        finally:
            for task in always:
                task.cancel()
            ends = await asyncio.gather(*always, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
        expected = Expected(acknowledged=min(1000, int(600 * minutes)), unknown=True)
        verdict = await world.over(expected, settle_s=120)
        report(world, verdict, viewers, output)
    finally:
        await world.close()
    return verdict


def report(world: Soak, verdict: Verdict, viewers: int, output: Path) -> None:
    afterwards = world.sample()
    summary = {
        "seed": world.seed,
        "viewers": viewers,
        "connections": sum(len(watcher.connects) for watcher in (*world.watchers, *world.left)),
        **verdict.counts,
        **latencies(world.ledger.calls),
        "answers": dict(world.ledger.statuses),
        "memory without viewers, MB": afterwards.rss_mb,
        "tasks without viewers": afterwards.tasks,
    }
    write(output, world.samples, world.spans, {**summary, "verdict": verdict.text})
    print("; ".join(f"{name} {value}" for name, value in summary.items()))  # noqa: T201
    print("\n".join([*lines(world.samples), verdict.text]))  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description="Many viewers and faults in rotation, for long.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--viewers", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1_000_000))
    parser.add_argument("--output", type=Path, default=Path("soak-results"))
    chosen = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))
    print(f"seed {chosen.seed}, process {os.getpid()}", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory(prefix="relay-soak-") as place:
        verdict = asyncio.run(soak(Path(place), chosen.minutes, chosen.viewers, chosen.seed, chosen.output))
    sys.exit(0 if verdict else 1)


if __name__ == "__main__":
    main()
