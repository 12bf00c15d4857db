"""The limits on what one user or one token may take, each at n and at n + 1."""

import contextlib
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from tests.acceptance.floods import READS
from tests.acceptance.raw import PROBLEM
from tests.acceptance.running import (
    CONVERSATION,
    EVENTS,
    USER,
    Relay,
    Viewer,
    environment_with,
    relay_up,
    viewer,
    web_worker,
)
from tests.factories import new_run_id, progress
from tests.waiting import wait_until

QUOTA = 50
EACH, ALL = 3, 5
REPLAYED = 4
PAGE = 1000
PATH = f"{EVENTS}/paper-generation-progress"


@pytest.fixture(scope="module")
def limited(directory: Path) -> Iterator[Relay]:
    limits = {"LIVE_RUNS": QUOTA, "VIEWERS_PER_USER": EACH, "VIEWERS_PER_WORKER": ALL}
    limits["REPLAY_PAGE"] = REPLAYED
    env = {f"RELAY_{name}": str(value) for name, value in limits.items()}
    with relay_up(directory / "limited", **env) as made:
        yield made


@pytest.fixture
def store(limited: Relay) -> Iterator[redis.Redis]:
    """Its Redis, without runs."""
    client = redis.Redis.from_url(limited.redis_url)
    client.delete("relay:{0}:runs", *client.keys("relay:{0}:run:*"))
    yield client
    client.close()


def new_run(relay: Relay, run_id: str | None = None) -> httpx.Response:
    return relay.post("/paper-generation-progress", {"run_id": run_id or new_run_id(), "event": progress()})


def assert_refused(answer: httpx.Response, problem: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (429, PROBLEM)
    assert answer.json()["type"] == f"urn:rp-relay:problem:{problem}"
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.usefixtures("store")
def test_row_31_new_runs_beyond_the_quota_are_refused_and_older_ones_go_on(limited: Relay) -> None:
    runs = [new_run_id() for _ in range(QUOTA)]
    for run_id in runs:
        assert new_run(limited, run_id).status_code == 204
    assert_refused(new_run(limited), "run-quota")
    for run_id in runs[:5]:
        assert new_run(limited, run_id).status_code == 204


def test_a_run_is_not_counted_once_its_log_has_expired(limited: Relay, store: redis.Redis) -> None:
    runs = [new_run_id() for _ in range(QUOTA)]
    for run_id in runs:
        new_run(limited, run_id)
    expired = f"relay:{{0}}:run:{runs[0]}"
    wait_until(lambda: store.pttl(expired) > 0, "the run to be archived")
    store.pexpire(expired, 1)
    wait_until(lambda: not store.exists(expired), "the run log to expire")
    store.zadd("relay:{0}:runs", {f"relay:{{0}}:run:{run_id}": 0 for run_id in runs})  # a minute later
    assert new_run(limited).status_code == 204
    assert_refused(new_run(limited), "run-quota")


def test_a_batch_with_more_new_runs_than_there_is_room_for_is_not_stored(
    limited: Relay, store: redis.Redis
) -> None:
    def batch(count: int) -> httpx.Response:
        items = [
            {"run_id": new_run_id(), "kind": "paper_generation_progress", "event": progress()}
            for _ in range(count)
        ]
        return limited.http.post(f"{EVENTS}/batch", json=items)

    assert_refused(batch(QUOTA + 1), "run-quota")
    assert store.keys("relay:{0}:run:*") == []
    assert batch(QUOTA).status_code == 204
    assert_refused(batch(1), "run-quota")


def test_a_refused_key_can_be_used_again(limited: Relay, store: redis.Redis) -> None:
    for _ in range(QUOTA):
        new_run(limited)
    run_id, key = new_run_id(), new_run_id()
    event = {"run_id": run_id, "event": progress()}
    assert_refused(limited.post("/paper-generation-progress", event, **{"idempotency-key": key}), "run-quota")
    store.delete("relay:{0}:runs")
    assert limited.post("/paper-generation-progress", event, **{"idempotency-key": key}).status_code == 204
    assert store.exists(f"relay:{{0}}:run:{run_id}")


def test_a_flood_of_junk_runs_stops_at_the_quota_and_memory_with_it(
    limited: Relay, store: redis.Redis
) -> None:
    def memory() -> int:
        info: Any = store.info("memory")
        return int(info["used_memory"])

    before = memory()
    statuses = [new_run(limited, f"junk-{number}").status_code for number in range(1500)]
    assert (statuses.count(204), statuses.count(429)) == (QUOTA, 1500 - QUOTA)
    assert len(store.keys("relay:{0}:run:*")) == QUOTA
    assert memory() - before < QUOTA * 20_000


@pytest.mark.flood
def test_a_flood_of_reads_makes_no_key(limited: Relay, store: redis.Redis) -> None:
    limited.claim(new_run_id())
    keys = store.dbsize()
    (pid,) = limited.pids("relay", "serve")
    memory = psutil.Process(pid).memory_info().rss
    mine, others = viewer(), viewer(USER + 1)
    with closing(HTTPConnection(limited.http.base_url.netloc.decode())) as connection:

        def status(method: str, path: str, headers: dict[str, str]) -> int:
            connection.request(method, path, headers=headers)
            with connection.getresponse() as answer:
                answer.read()
                return answer.status

        for number in range(READS // 5):
            run = f"/conversations/{CONVERSATION}/idea/research-run/junk-{number}"
            assert status("GET", f"{run}/events", mine) == 404
            assert status("HEAD", f"{run}/events", others) == 403
            assert status("GET", f"{run}/paper-generation-progress", mine) == 404
            assert status("GET", f"/conversations/{10**9 + number}/events", mine) == 404
            assert status("GET", f"/junk-{number}", mine) == 404
    grown = psutil.Process(pid).memory_info().rss - memory
    print(f"\n{READS} reads: {keys} keys before, {store.dbsize()} after; {grown / 1e6:.1f} MB more")  # noqa: T201
    assert store.dbsize() == keys
    assert grown < 30_000_000


@pytest.mark.usefixtures("store")
def test_a_page_of_history_has_so_many_events_and_no_more(limited: Relay) -> None:
    run_id = new_run_id()
    limited.claim(run_id)
    item = {"run_id": run_id, "kind": "paper_generation_progress", "event": progress()}
    assert limited.http.post(f"{EVENTS}/batch", json=[item] * PAGE).status_code == 204
    limited.progress(run_id, progress())
    whole = limited.archived(run_id, PAGE + 1)
    page = limited.history(run_id, limit=PAGE)
    assert (page.status_code, page.json()["events"]) == (200, whole[:PAGE])
    assert limited.history(run_id, limit=PAGE + 1).status_code == 422


def nobody_watches(relay: Relay) -> bool:
    return "\nrelay_viewers 0.0\n" in relay.ops("/metrics").text


def test_row_40_a_user_may_have_so_many_streams_and_no_more(limited: Relay) -> None:
    run_id = new_run_id()
    limited.claim(run_id)
    url = f"{limited.run_url(run_id)}/events"
    wait_until(lambda: nobody_watches(limited), "the viewers of other tests to be gone")
    open_ = [Viewer(limited, run_id).connected() for _ in range(EACH)]
    assert [watching.status for watching in open_] == [200] * EACH
    with httpx.Client() as client:
        assert_refused(client.get(url, headers=viewer()), "too-many-viewers")
        whole = f"{limited.url}/conversations/{CONVERSATION}/events"
        assert_refused(client.get(whole, headers=viewer()), "too-many-viewers")
        assert client.head(url, headers=viewer()).status_code == 200, "it takes no place"
    limited.post("/run-started", {"run_id": run_id})
    for watching in open_:
        assert watching.wait(3)[-1]["type"] == "run_event", "those who were there stay"
    open_.pop().cut()
    wait_until(lambda: Viewer(limited, run_id).connected().cut() is not None, "a place to be free again")
    for watching in open_:
        watching.cut()


def test_row_40_a_worker_may_have_so_many_streams_and_no_more(limited: Relay) -> None:
    base = 10**6
    with contextlib.ExitStack() as stack, httpx.Client() as client:

        def connect(user: int) -> httpx.Response:
            run_id = new_run_id()
            limited.claim(run_id, conversation=base + user, user=base + user)
            url = f"{limited.url}/conversations/{base + user}/idea/research-run/{run_id}/events"
            return stack.enter_context(client.stream("GET", url, headers=viewer(base + user)))

        wait_until(lambda: nobody_watches(limited), "the viewers of other tests to be gone")
        open_ = [connect(user) for user in range(ALL)]
        assert [answer.status_code for answer in open_] == [200] * ALL
        refused = connect(ALL)
        refused.read()
        assert_refused(refused, "too-many-viewers")
        open_[0].close()
        wait_until(lambda: connect(ALL).status_code == 200, "a place to be free again")


def test_row_31_a_token_may_make_so_many_requests_in_a_second_and_no_more(
    limited: Relay, place: Path
) -> None:
    stores = {"REDIS_URL": limited.redis_url, "DATABASE_URL": limited.database_url}
    env = environment_with(**stores, RELAY_REQUESTS_PER_S="0.01")
    with web_worker(place / "web.log", **env) as (url, process):
        relay, run_id = Relay(process, {**limited.ready, "url": url}), new_run_id()
        assert new_run(relay, run_id).status_code == 204
        assert_refused(new_run(relay, run_id), "rate-limited")
        claim = relay.http.put(f"/research-pipeline/runs/{run_id}", json={"conversation_id": 1, "user_id": 1})
        assert_refused(claim, "rate-limited")
        wrong = relay.http.post(PATH, json={}, headers={"authorization": "Bearer x"})
        assert wrong.status_code == 401, "who has no token uses up nothing"
        assert relay.http.get("/livez").status_code == 200
        relay.http.close()


@pytest.mark.parametrize(("missed", "reads"), [(REPLAYED - 1, 1), (REPLAYED, 2), (REPLAYED + 1, 2)])
def test_a_viewer_who_comes_back_is_sent_so_many_events_at_a_time(
    limited: Relay, store: redis.Redis, missed: int, reads: int
) -> None:
    """A full page may have something behind it, and only then it is asked for more."""

    def asked() -> int:
        info: Any = store.info("commandstats")
        return int(info.get("cmdstat_xrange", {"calls": 0})["calls"])

    run_id = new_run_id()
    limited.claim(run_id)
    for _ in range(1 + missed):
        limited.progress(run_id, progress())
    first, *others = limited.archived(run_id, 1 + missed)
    there = Viewer(limited, run_id).connected()  # whoever comes first reads twice
    before = asked()
    watching = Viewer(limited, run_id, position=first["id"])
    assert [message["data"]["id"] for message in watching.wait(missed)] == [event["id"] for event in others]
    wait_until(lambda: asked() == before + reads, f"{reads} reads of the run log")
    for viewing in (there, watching):
        viewing.cut()
