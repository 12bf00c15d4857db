"""What an operator sees of the running product: health, figures, logs, and what is not shown to users."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from relay import metrics
from tests.acceptance.floods import RUNS
from tests.acceptance.running import (
    CLIENT,
    CONVERSATION,
    Relay,
    Viewer,
    environment_with,
    viewer,
    web_worker,
)
from tests.acceptance.test_processes import private_listeners, stores
from tests.canaries import IN_NO_LOG
from tests.factories import new_run_id, progress
from tests.waiting import wait_until

Samples = Mapping[tuple[str, ...], float]


def samples(relay: Relay, of: str = "ops_url") -> Samples:
    """What is scraped there, by name and labels."""
    return parsed(relay.ops("/metrics", of))


def parsed(answer: httpx.Response) -> Samples:
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


PERSISTER = "persister_ops_url"


def growth(before: Samples, after: Samples) -> dict[tuple[str, ...], float]:
    return {
        key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key, 0.0)
    }


def test_row_46_the_private_listener_has_what_users_do_not_see(relay: Relay, plain: Relay) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs"):
        assert relay.ops(path).status_code == 200, path
    assert relay.ops("/openapi.json").json() == relay.http.get("/openapi.json").json()
    assert relay.http.get("/metrics").status_code == 404
    assert CLIENT.post(f"{relay.ready['ops_url']}/research-pipeline/events/heartbeat").status_code == 501


def test_readiness_tells_of_each_store_and_of_what_a_204_is_worth(relay: Relay) -> None:
    expected = {
        "status": "ok",
        "checks": dict.fromkeys(("redis", "tailers", "append", "postgres"), "ok"),
        "durability": {"appendonly": "yes", "appendfsync": "always", "waitaof": None},
    }
    wait_until(lambda: relay.ops("/readyz").json() == expected, "the worker to be ready")
    wait_until(lambda: relay.http.get("/readyz").json() == expected, "the same for everybody")
    at_work = {"status": "ok", "checks": {"shard 0": "ok"}}
    wait_until(
        lambda: relay.ops("/readyz", PERSISTER).json() == at_work,
        "the persister, which may have just started",
    )
    assert relay.ops("/livez", PERSISTER).json() == {"status": "ok"}


def test_what_happens_is_counted(relay: Relay) -> None:
    run_id, kind = new_run_id(), "paper_generation_progress"
    relay.claim(run_id)
    before, stored = samples(relay), samples(relay, PERSISTER)
    event = {"run_id": run_id, "event": progress()}
    for _ in range(3):
        assert (
            relay.post("/paper-generation-progress", event, **{"idempotency-key": run_id}).status_code == 204
        )
    batch = [{"run_id": run_id, "kind": kind, "event": progress(), "unheard_of": 1} for _ in range(5)]
    assert relay.http.post("/research-pipeline/events/batch", json=batch).status_code == 204
    assert relay.post("/paper-generation-progress", {}).status_code == 422
    watching = Viewer(relay, run_id).connected()
    relay.progress(run_id, progress())
    relay.finish(run_id)
    watching.ended()
    relay.archived(run_id, 7)
    wait_until(
        lambda: growth(stored, samples(relay, PERSISTER)).get(("persister_rows_total", "0")) == 8, "rows"
    )
    grown = growth(before, samples(relay))
    assert {
        key: grown[key]
        for key in grown
        if key[0].endswith(("_total", "_count"))
        and not key[0].startswith(("process_", "relay_viewer_closes", "relay_redis"))
    } == {
        ("relay_events_total", kind): 7,
        ("relay_events_total", "run_finished"): 1,
        ("relay_repeats_total",): 2,
        ("relay_unknown_fields_total", kind): 5,
        ("relay_refusals_total", "invalid-event"): 1,
        ("relay_append_seconds_count",): 6,
        ("relay_call_events_count",): 6,
        ("relay_viewer_connects_total",): 1,
        ("relay_frames_total",): 2,
        ("relay_deliveries_total",): 2,
    }
    assert grown["relay_viewer_closes_total", "ended"] == 1
    assert grown["relay_call_events_sum",] == 10


def test_where_the_logs_and_viewers_stand_is_found_at_each_scrape(relay: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    wait_until(lambda: samples(relay)["relay_viewers",] == 0, "the viewers of other tests to be gone")
    watching = Viewer(relay, run_id).connected()
    relay.progress(run_id, progress())
    watching.wait(2)
    relay.archived(run_id, 1)
    up = [("relay_dependency_up", store) for store in ("redis", "postgres")]
    seen = wait_until(
        lambda: found if all((found := samples(relay))[key] == 1 for key in up) else None, "both stores"
    )
    assert seen is not None
    assert seen["relay_viewers",] == 1
    assert seen["relay_tailer_lag_seconds", "0"] == 0
    assert 0 <= seen["relay_log_newest_age_seconds", "0"] < 60
    assert seen["relay_loop_lag_seconds",] < 5
    client = redis.Redis.from_url(relay.redis_url)
    assert seen["relay_log_entries", "0"] == client.xlen("relay:{0}:log")
    assert seen["relay_dead_letters", "0"] == client.xlen("relay:{0}:dead")
    client.close()
    watching.cut()
    wait_until(lambda: samples(relay)["relay_viewers",] == 0, "the viewer to be gone")


@pytest.mark.flood
def test_row_19_the_number_of_series_does_not_grow_with_runs_and_mistakes(relay: Relay) -> None:
    before = samples(relay).keys() | samples(relay, PERSISTER).keys()
    for _ in range(RUNS // 1000):
        runs = [new_run_id() for _ in range(1000)]
        batch = [
            {"run_id": run_id, "kind": "paper_generation_progress", "event": progress()} for run_id in runs
        ]
        assert relay.http.post("/research-pipeline/events/batch", json=batch).status_code == 204
    for run_id in runs[:20]:
        relay.claim(run_id)
        Viewer(relay, run_id).connected().cut()
        assert relay.post(f"/{run_id}", {}).status_code == 404
        assert relay.http.delete(f"/livez?{run_id}").status_code == 405
    after = samples(relay).keys() | samples(relay, PERSISTER).keys()
    print(f"\n{len(before)} series before, {len(after)} after {RUNS} runs")  # noqa: T201
    assert after == before
    assert not [key for key in after if any(label in runs for label in key)]
    assert all(not math.isnan(value) for value in samples(relay).values())
    shown = relay.ops("/metrics").text
    assert not [string for strings in IN_NO_LOG.values() for string in strings if string in shown]


def test_row_15_logs_are_objects_and_hold_no_query_string_and_no_token(relay: Relay, place: Path) -> None:
    canary, log = "canary-in-a-query", place / "serve.log"
    env = environment_with(REDIS_URL=relay.redis_url, DATABASE_URL=relay.database_url)
    with web_worker(log, **env) as (url, _):
        path = f"/conversations/1/idea/research-run/{canary}/events?token={canary}"
        assert CLIENT.get(url + path, headers=viewer()).status_code in (403, 404)
        assert CLIENT.get(f"{url}/livez?{canary}").status_code == 200
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any("startup complete" in line["message"] for line in lines)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert canary not in log.read_text()
    assert viewer()["authorization"].partition(" ")[2] not in log.read_text()


def test_work_in_the_background_goes_on_after_mistakes_which_viewers_do_not_notice(
    relay: Relay, place: Path, settings: dict[str, str]
) -> None:
    run_id, log = new_run_id(), place / "serve.log"
    relay.claim(run_id)
    often = {"RELAY_KEEP_ALIVE_S": "0.1", "RELAY_ACCESS_RECHECK_S": "0.1", "RELAY_OPS_LISTEN": "127.0.0.1:0"}
    env = environment_with(**stores(relay), **settings | often)
    with web_worker(log, "tests.faults.points", "stumble:2", "relay", **env) as (url, _):
        [(_, private)] = private_listeners(log, 1)
        path = f"/conversations/{CONVERSATION}/idea/research-run/{run_id}/events"
        watching = Viewer(relay, run_id, url=url + path).connected()
        for number in range(1, 4):
            relay.progress(run_id, progress(number))
            watching.wait(1 + number)
        failures = {("relay_background_failures_total", work): 2.0 for work in metrics.BACKGROUND_FAILURES}
        wait_until(
            lambda: failures.items() <= parsed(CLIENT.get(f"{private}/metrics")).items(), "all to fail twice"
        )
        wait_until(lambda: watching.raw.count(": keep-alive") > 2, "keep-alives")
        assert [event["details"]["number"] for event in watching.events()] == [1, 2, 3]
        watching.cut()
    errors = [line for line in map(json.loads, log.read_text().splitlines()) if line["level"] == "ERROR"]
    assert len(errors) == 2 * len(failures)
    assert all("starts again in 0." in line["message"] and line["errors"] for line in errors)
