"""Every kind of event, from its webhook to its history, and what it does to its run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay import embedded
from relay.events.registry import REGISTRY
from relay.http.shown import EVENTS as DECLARED
from relay.http.shown import RunAsAWhole
from relay.processes import running
from relay.stream.keys import created_at
from tests.acceptance import toy
from tests.acceptance.running import (
    CLIENT,
    EVENTS,
    Relay,
    Viewer,
    a_persister,
    environment_with,
    viewer,
    web_worker,
)
from tests.factories import EXAMPLES, new_run_id
from tests.sql import query, sql
from tests.waiting import wait_until

MOMENT = "2026-01-02T05:04:05.678901+02:00"
MOMENT_UTC = "2026-01-02T03:04:05.678901+00:00"
WITH_ROWS = [name for name, kind in REGISTRY.items() if kind.table]


@pytest.fixture
def run_id(relay: Relay) -> str:
    made = new_run_id()
    relay.claim(made)
    return made


def body(name: str, run_id: str | None, **beside: Any) -> dict[str, Any]:
    """What the webhook of a kind takes."""
    run = {} if run_id is None else {"run_id": run_id}
    event = EXAMPLES[name] if REGISTRY[name].flat else {"event": EXAMPLES[name]}
    return {**run, **event, **beside}


def get(relay: Relay, run_id: str, path: str) -> Any:
    return CLIENT.get(relay.run_url(run_id) + path, headers=viewer()).json()


def archived(relay: Relay, run_id: str, path: str, count: int) -> list[dict[str, Any]]:
    def rows() -> list[dict[str, Any]] | None:
        events: list[dict[str, Any]] = get(relay, run_id, f"/{path}")["events"]
        return events if len(events) >= count else None

    return wait_until(rows, f"{count} rows of {path}") or []


@pytest.mark.parametrize("name", WITH_ROWS)
def test_an_event_is_shown_archived_and_replayed_alike(relay: Relay, run_id: str, name: str) -> None:
    kind = REGISTRY[name]
    watching = Viewer(relay, run_id).connected()
    watching.wait(1)
    assert relay.post(kind.path, body(name, run_id, occurred_at=MOMENT)).status_code == 204
    assert relay.post(f"/{run_id}{kind.path}", body(name, None)).status_code == 204

    first, second = archived(relay, run_id, str(kind.history_path), 2)
    assert (first["id"] < second["id"], first["occurred_at"]) == (True, MOMENT_UTC)
    assert first["created_at"] == created_at(first["id"])
    assert first.keys() - {"occurred_at"} == {"id", "run_id", *kind.columns, "created_at"}
    declared = DECLARED[str(kind.table)]
    for event in (first, second):
        declared.model_validate(event, strict=True)
        assert event.keys() <= declared.model_fields.keys()
    assert second.get("occurred_at") == (MOMENT_UTC if name == "artifact" else None)
    assert [get(relay, run_id, "")[str(kind.initial_key)][place] for place in (0, 1)] == [first, second]
    if not kind.ends_run:
        wait_until(lambda: len(shown(watching, kind.sse_type)) == 2, "both live")
        assert shown(watching, kind.sse_type) == [first, second]
    watching.cut()


def shown(watching: Viewer, type: str) -> list[dict[str, Any]]:
    return [message["data"] for _, message in watching.messages if message["type"] == type]


def test_what_history_shows_of_an_event_is_what_was_sent(relay: Relay, run_id: str) -> None:
    for name in WITH_ROWS:
        relay.post(REGISTRY[name].path, body(name, run_id))
    (stage,) = archived(relay, run_id, "stage-progress", 1)
    (line,) = archived(relay, run_id, "logs", 1)
    (substage,) = archived(relay, run_id, "substage-events", 1)
    (artifact,) = archived(relay, run_id, "artifacts", 1)
    life = archived(relay, run_id, "run-events", 3)
    assert EXAMPLES["run_stage_progress"].items() <= stage.items()
    assert EXAMPLES["run_log"].items() <= line.items()
    sent = dict(EXAMPLES["substage_completed"])
    stage_name, summary = sent.pop("stage"), sent.pop("summary")
    assert (substage["stage"], substage["summary"]) == (stage_name, summary | sent)
    assert artifact["occurred_at"] == EXAMPLES["artifact"]["created_at"]
    assert {event["event_type"]: event["metadata"] for event in life} == {
        name: EXAMPLES[name] for name in ("run_started", "run_finished", "gpu_shortage")
    }


def test_the_life_of_a_run_moves_its_state_and_viewers_follow(relay: Relay, run_id: str) -> None:
    watching = Viewer(relay, run_id)
    (initial,) = watching.wait(1)
    state = initial["data"]["run"]
    assert (state["status"], state["last_heartbeat_at"], state["stale"]) == ("pending", None, False)

    relay.post("/run-started", {"run_id": run_id})
    relay.post("/heartbeat", {"run_id": run_id})
    relay.post(f"/{run_id}/heartbeat", {})
    relay.post("/gpu-shortage", body("gpu_shortage", run_id))
    types = [message["type"] for message in watching.wait(6)]
    assert types == ["initial", "run_update", "run_event", "run_update", "run_update", "run_event"]
    for _, message in watching.messages:
        if message["type"] == "run_update":
            state |= message["data"]
    assert state == get(relay, run_id, "")["run"]
    assert state["status"] == "running"

    relay.finish(run_id, success=False)
    assert watching.ended()[-1]["data"] == {"status": "failed"}
    wait_until(lambda: stored(relay, run_id)[0] == "failed", "the archived status")
    assert stored(relay, run_id)[1] == state["last_heartbeat_at"]
    assert len(archived(relay, run_id, "run-events", 3)) == 3, "heartbeats leave no rows"


def test_why_a_run_failed_is_told_before_its_end(relay: Relay, run_id: str) -> None:
    relay.post("/run-log", body("run_log", run_id))
    watching = Viewer(relay, run_id)
    watching.wait(1)
    begun = watching.position
    relay.post("/run-finished", {"run_id": run_id, "success": False, "message": "ran out of memory"})
    _, why, complete = watching.ended()
    run = get(relay, run_id, "")["run"]
    assert run["error_message"] == "ran out of memory"
    assert why["type"] == "run_update"
    assert why["data"] == {name: run[name] for name in ("status", "error_message", "finished_at")}
    assert complete == {"type": "complete", "data": {"status": "failed"}}
    assert watching.messages[1][0] in (None, begun), "it moves nobody's position"
    assert Viewer(relay, run_id, position=begun).ended() == [why, complete]
    assert [message["type"] for message in Viewer(relay, run_id).ended()] == ["initial", "complete"]


def test_what_the_database_says_of_an_end_is_told_too(relay: Relay, run_id: str) -> None:
    for _ in range(2):
        relay.post("/run-log", body("run_log", run_id))
    first = archived(relay, run_id, "logs", 2)[0]["id"]
    with sql(relay.database_url) as cursor:
        cursor.execute(
            "UPDATE research_pipeline_runs SET status = %s, error_message = 'by hand' WHERE run_id = %s",
            ["cancelled", run_id],
        )
    cancelled = {"status": "cancelled"}
    wait_until(lambda: get(relay, run_id, "")["run"].items() >= cancelled.items(), "the end to be noticed")
    line, why, complete = Viewer(relay, run_id, position=first).ended()
    assert (line["type"], complete) == ("log", {"type": "complete", "data": cancelled})
    assert why == {
        "type": "run_update",
        "data": {**cancelled, "error_message": "by hand", "finished_at": None},
    }


def stored(relay: Relay, run_id: str) -> tuple[str, str | None]:
    """The status and the last heartbeat in the database."""
    statement = "SELECT status, last_heartbeat_at FROM research_pipeline_runs WHERE run_id = %s"
    found = query(relay.database_url, statement, [run_id])
    status, heard = found[0] if found else ("", None)
    return status, heard and heard.isoformat(timespec="milliseconds")


def test_a_run_that_did_not_say_that_it_started_runs_once_it_works(relay: Relay, run_id: str) -> None:
    relay.post("/gpu-shortage", body("gpu_shortage", run_id))
    assert get(relay, run_id, "")["run"]["status"] == "pending"
    relay.post("/run-log", body("run_log", run_id))
    assert get(relay, run_id, "")["run"]["status"] == "running"
    relay.finish(run_id)
    assert get(relay, run_id, "")["run"]["status"] == "completed"


def test_a_run_that_sends_any_event_is_not_stale(relay: Relay, run_id: str) -> None:
    with sql(relay.database_url) as cursor:
        cursor.execute(
            "UPDATE research_pipeline_runs SET status = 'running', last_heartbeat_at = %s WHERE run_id = %s",
            [MOMENT, run_id],
        )
    assert get(relay, run_id, "")["run"]["stale"] is True
    relay.post("/run-log", body("run_log", run_id))
    assert get(relay, run_id, "")["run"]["stale"] is False


def test_the_run_as_a_whole_is_exact_at_its_id(relay: Relay, run_id: str) -> None:
    for name in ("run_started", "run_log", "run_stage_progress"):
        relay.post(REGISTRY[name].path, body(name, run_id))
    rendered = get(relay, run_id, "")
    RunAsAWhole.model_validate(rendered, strict=True)
    following = Viewer(relay, run_id, position=rendered["id"]).connected()
    relay.post("/run-log", body("run_log", run_id))
    relay.finish(run_id)
    assert [message["type"] for message in following.ended()] == ["log", "complete"]
    fresh = Viewer(relay, run_id, resume=False)
    (initial, _) = fresh.ended()
    assert len(initial["data"]["logs"]) == 2
    assert rendered["logs"] == initial["data"]["logs"][:1]
    assert set(rendered) == {"id", *initial["data"]}


@pytest.mark.parametrize(
    "moment",
    ["yesterday", "2026-01-02T03:04:05", "2026-02-30T03:04:05Z", "0001-01-01T00:00:00+01:00", "5", 5, ""],
)
def test_a_moment_has_a_date_a_time_and_an_offset(relay: Relay, moment: Any) -> None:
    for name in ("run_log", "run_started"):
        answer = relay.post(REGISTRY[name].path, body(name, "run-1", occurred_at=moment))
        assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["occurred_at"])


def test_the_path_may_name_the_run_but_only_a_run(relay: Relay) -> None:
    for wrong in ("a%20b", "x" * 129):
        answer = relay.post(f"/{wrong}/run-log", body("run_log", None))
        assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["path", "run_id"])
    assert relay.post("/run-1/no-such-kind", {}).status_code == 404


@pytest.fixture
def toys(relay: Relay, place: Path) -> Iterator[Relay]:
    """The product with a kind that only the test knows, on a Valkey of its own."""
    valkey, redis_url = embedded.valkey(place / "valkey")
    stores = {"REDIS_URL": redis_url, "DATABASE_URL": relay.database_url, "RELAY_API_DOCS": "true"}
    with sql(relay.database_url) as cursor:
        cursor.execute(toy.TABLE)
    env, program = environment_with(**stores), "tests.acceptance.toy"
    with (
        running(valkey),
        web_worker(place / "web.log", program, "relay", **env) as (url, process),
        a_persister(place / "persister.log", program, "persister", **env),
    ):
        made = Relay(process, {**relay.ready, "url": url, "redis_url": redis_url})
        yield made
        made.http.close()
    with sql(relay.database_url) as cursor:
        cursor.execute("DROP TABLE toys")


def test_a_new_kind_is_a_class_and_a_table(toys: Relay) -> None:
    run_id = new_run_id()
    toys.claim(run_id)
    watching = Viewer(toys, run_id)
    assert watching.wait(1)[0]["data"]["toys"] == []
    red = {"colour": "red", "wheels": 4}
    assert toys.post("/toy", {"run_id": run_id, "event": red}).status_code == 204
    assert toys.post("/toy", {"run_id": run_id, "event": {**red, "wheels": "4"}}).status_code == 422
    batch = [{"run_id": run_id, "kind": "toy", "event": {"colour": "blue", "wheels": 2}}]
    assert toys.http.post(f"{EVENTS}/batch", json=batch).status_code == 204
    live = [message["data"] for message in watching.wait(3)[1:]]
    assert red.items() <= live[0].items()
    assert archived(toys, run_id, "toys", 2) == live
    assert get(toys, run_id, "")["toys"] == live
    assert json.dumps(toys.http.get("/openapi.json").json()).count("/events/toy") == 1
    watching.cut()
