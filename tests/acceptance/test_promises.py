"""What the relay promises, held by real processes: nothing lost, nothing doubled, parts fail alone."""

import itertools
import json
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
import redis

from relay import embedded
from relay.processes import Part, running, start, stop, wait_ready
from tests.acceptance.running import EVENTS, Relay, Viewer, relay_up
from tests.canaries import TOKEN
from tests.factories import new_run_id, progress
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def sturdy(directory: Path) -> Iterator[Relay]:
    """A product with two persisters, whose parts are killed in these tests."""
    with relay_up(directory / "sturdy", "--persisters", "2") as relay:
        yield relay


def pairs(events: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Events as (id, payload)."""
    return [(event["id"], json.dumps(event, sort_keys=True)) for event in events]


def send_batches(relay: Relay, runs: list[str], total: int) -> None:
    """Sends events to all runs in turn, ten at a time."""
    turns = itertools.cycle(runs)
    for _ in range(total // 10):
        items = [
            {"run_id": next(turns), "kind": "paper_generation_progress", "event": progress()}
            for _ in range(10)
        ]
        assert relay.http.post(f"{EVENTS}/batch", json=items).status_code == 204


def follow_with_cuts(relay: Relay, run_id: str, cuts: int, upto: Callable[[int], bool]) -> list[Viewer]:
    """A viewer that is cut that many times, each time after a few more events, and resumes by id."""
    connections = [Viewer(relay, run_id)]
    for cut in range(cuts):
        wait_until(lambda cut=cut: upto(25 * (cut + 1)), "more events")  # type: ignore[misc]
        position = connections[-1].cut()
        connections.append(Viewer(relay, run_id, position=position))
    return connections


def test_three_viewers_and_the_history_hold_the_same_events_in_order(sturdy: Relay) -> None:
    runs = [new_run_id() for _ in range(20)]
    for run_id in runs:
        sturdy.claim(run_id)
    watched = runs[0]
    steady = Viewer(sturdy, watched).connected()
    sender = threading.Thread(target=send_batches, args=(sturdy, runs, 2000))
    sender.start()
    cut = follow_with_cuts(sturdy, watched, 3, lambda count: len(steady.events()) >= count)
    late = Viewer(sturdy, watched, resume=False)
    sender.join()
    for run_id in runs:
        sturdy.finish(run_id)
    steady.ended()
    late.ended()
    cut[-1].ended()

    history = sturdy.archived(watched, 100)
    assert len(history) == 100
    assert pairs(steady.events()) == pairs(late.events()) == pairs(history)
    pieces = [connection.events() for connection in cut]
    assert pairs([event for piece in pieces for event in piece]) == pairs(history)
    assert [event["id"] for event in history] == sorted({event["id"] for event in history})
    for run_id in runs[1:]:
        assert len(sturdy.archived(run_id, 100)) == 100


class Load:
    """Pipelines that send events one by one, and again with the same key where they got no 204."""

    def __init__(self, relay: Relay, runs: list[str]) -> None:
        self.acknowledged: dict[str, list[int]] = {run_id: [] for run_id in runs}
        self.troubles = 0
        self._relay = relay
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=[run_id]) for run_id in runs]

    def _send(self, run_id: str) -> None:
        with httpx.Client(base_url=self._relay.url, headers={"authorization": f"Bearer {TOKEN}"}) as client:
            for number in itertools.count():
                if self._stopped.is_set():
                    return
                self._send_until_kept(client, run_id, number)
                self.acknowledged[run_id].append(number)

    def _send_until_kept(self, client: httpx.Client, run_id: str, number: int) -> None:
        body = {"run_id": run_id, "event": progress(number)}
        headers = {"idempotency-key": uuid.uuid4().hex}
        while True:
            try:
                path = f"{EVENTS}/paper-generation-progress"
                status = client.post(path, json=body, headers=headers, timeout=10).status_code
            except httpx.TransportError:
                status = 0
            if status == 204:
                return
            assert status in (0, 503), status
            self.troubles += 1

    @property
    def count(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    def more(self, events: int = 300) -> None:
        """Waits until that many more are acknowledged."""
        goal = self.count + events
        wait_until(lambda: self.count >= goal, "acknowledged events", 60)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def test_killing_every_part_under_load_loses_and_doubles_nothing(sturdy: Relay) -> None:
    runs = [new_run_id() for _ in range(4)]
    for run_id in runs:
        sturdy.claim(run_id)
    with Load(sturdy, runs) as load:
        load.more()
        for words in (["relay", "serve"], ["persister", "run"], ["valkey-server"]):
            sturdy.kill(*words)
            load.more()
        load.more()
    assert load.troubles > 0, "the kills went by unnoticed"
    for run_id in runs:
        history = sturdy.archived(run_id, len(load.acknowledged[run_id]))
        assert [event["details"]["number"] for event in history] == load.acknowledged[run_id]
        assert [event["id"] for event in history] == sorted({event["id"] for event in history})


def test_a_viewer_stays_and_goes_on_while_valkey_is_killed(sturdy: Relay) -> None:
    run_id = new_run_id()
    sturdy.claim(run_id)
    watching = Viewer(sturdy, run_id)
    watching.wait(1)
    sturdy.kill("valkey-server")
    with Load(sturdy, [run_id]) as load:
        load.more(50)
    wait_until(lambda: len(watching.events()) >= load.count, "all events", 30)
    assert [event["details"]["number"] for event in watching.events()] == load.acknowledged[run_id]
    watching.cut()


def test_the_connections_to_redis_do_not_grow_with_the_viewers(sturdy: Relay) -> None:
    run_id = new_run_id()
    sturdy.claim(run_id)
    client = redis.Redis.from_url(sturdy.redis_url)

    def connections() -> int:
        return len(client.client_list())

    viewers = [Viewer(sturdy, run_id).connected()]
    sturdy.progress(run_id, progress())
    # This test's own, two persisters', and of the worker one or two to append, one to tail, one to ask.
    wait_until(lambda: connections() in (6, 7), "one connection for each purpose")
    viewers += [Viewer(sturdy, run_id) for _ in range(499)]
    for watching in viewers:
        watching.connected()
    sturdy.progress(run_id, progress())
    for watching in viewers:
        wait_until(lambda watching=watching: len(watching.events()) == 2, "both events")  # type: ignore[misc]
    assert connections() <= 7
    for watching in viewers:
        watching.cut()
    client.close()


class Stores(NamedTuple):
    """A product on a PostgreSQL that the test can stop."""

    relay: Relay
    postgres: Part
    process: Any


@pytest.fixture
def stores(place: Path) -> Iterator[Stores]:
    part, url = embedded.postgres(place / "postgres")
    process = start(part)
    wait_ready(part, process)
    with relay_up(place / "data", DATABASE_URL=url) as relay:
        made = Stores(relay, part, process)
        yield made
    stop(part, process)


def test_without_postgresql_only_history_is_away(stores: Stores) -> None:
    relay, run_id = stores.relay, new_run_id()
    relay.claim(run_id)
    connected = Viewer(relay, run_id).connected()
    relay.progress(run_id, progress(0))
    connected.wait(2)
    leaving = Viewer(relay, run_id)
    leaving.wait(1)
    position = leaving.cut()

    stop(stores.postgres, stores.process)
    for number in range(1, 11):
        relay.progress(run_id, progress(number))
    assert connected.wait(12)[-1]["data"]["details"] == {"number": 10}
    resumed = Viewer(relay, run_id, position=position)
    assert [message["data"]["details"]["number"] for message in resumed.wait(10)] == list(range(1, 11))
    history = relay.history(run_id)
    assert (history.status_code, history.json()["type"]) == (503, "urn:rp-relay:problem:archive-unavailable")
    assert "retry-after" in history.headers
    wait_until(lambda: relay.http.get("/readyz").json()["checks"]["postgres"] != "ok", "word of it")

    with running(stores.postgres):
        archived = relay.archived(run_id, 11)
        assert [event["details"]["number"] for event in archived] == list(range(11))
        resumed.cut()
        connected.cut()


def test_a_frozen_postgresql_holds_nobody_up(stores: Stores) -> None:
    relay, run_id = stores.relay, new_run_id()
    relay.claim(run_id)
    family = [stores.process.pid] + [child.pid for child in psutil.Process(stores.process.pid).children()]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        history = relay.history(run_id)
        assert history.status_code == 503
        assert history.elapsed.total_seconds() < 6
        relay.progress(run_id, progress(1))
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)
    assert len(relay.archived(run_id, 1)) == 1
