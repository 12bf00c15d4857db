"""Who may write: the service's tokens, tokens of single runs, signatures; and nobody who may only read."""

import json
import time
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from relay.auth import mint_run_token
from relay.events.registry import REGISTRY
from tests.acceptance.conftest import LISTED, SIGNING
from tests.acceptance.raw import PROBLEM
from tests.acceptance.running import CLIENT, CONVERSATION, EVENTS, USER, Relay, viewer
from tests.canaries import RUN_SECRET
from tests.factories import EXAMPLES, new_run_id, progress
from tests.waiting import wait_until

get, post = CLIENT.get, CLIENT.post
PAPER = f"{EVENTS}/paper-generation-progress"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def every_write(run_id: str) -> list[tuple[str, str, Any]]:
    """A valid request to each way of writing: method, path, body."""
    owner = {"conversation_id": CONVERSATION, "user_id": USER}
    events = [{"run_id": run_id, "kind": kind, "event": EXAMPLES[kind]} for kind in REGISTRY]
    return [
        *[
            ("POST", f"{EVENTS}{run}{kind.path}", {"run_id": run_id, "event": EXAMPLES[name]})
            for name, kind in REGISTRY.items()
            for run in ("", f"/{run_id}")
        ],
        ("POST", f"{EVENTS}/batch", events),
        ("PUT", f"/research-pipeline/runs/{run_id}", owner),
    ]


def statuses(service: Relay, run_id: str, headers: dict[str, str]) -> set[int]:
    """What every way of writing answers. That of making runs known comes last, by itself."""
    found = []
    for method, path, body in every_write(run_id):
        answer = CLIENT.request(method, service.url + path, json=body, headers=headers)
        assert answer.status_code == 204 or answer.headers["content-type"] == PROBLEM
        found.append(answer.status_code)
    return {*found[:-1], found[-1] * 10}


def test_a_run_s_token_sends_events_of_its_run_and_nothing_else(service: Relay) -> None:
    mine, other = new_run_id(), new_run_id()
    token = bearer(mint_run_token(RUN_SECRET, mine))
    assert statuses(service, mine, token) == {204, 4030}
    assert statuses(service, other, token) == {403, 4030}
    mixed = [{"run_id": run, "kind": "heartbeat", "event": {}} for run in (mine, other)]
    assert post(f"{service.url}{EVENTS}/batch", json=mixed, headers=token).status_code == 403
    doubled = f'{{"run_id": "{mine}", "run_id": "{other}"}}'
    headers = {**token, "content-type": "application/json"}
    assert post(f"{service.url}{EVENTS}/heartbeat", content=doubled, headers=headers).status_code == 403


def test_a_run_s_token_uses_up_nobody_else_s_keys(service: Relay) -> None:
    mine, other, key = new_run_id(), new_run_id(), new_run_id()
    token = bearer(mint_run_token(RUN_SECRET, mine))
    service.claim(mine)
    for run, headers in ((mine, token), (mine, token), (other, {})):
        body = {"run_id": run, "event": progress(1)}
        answer = service.post("/paper-generation-progress", body, **{"idempotency-key": key, **headers})
        assert answer.status_code == 204
    service.progress(mine, progress(2))
    assert [event["details"]["number"] for event in service.archived(mine, 2)] == [1, 2]


def test_what_the_relay_says_of_an_event_nobody_else_can(service: Relay) -> None:
    """Its id, its time, its run's owner and state: whoever sends them is not heard."""
    run_id = new_run_id()
    service.claim(run_id)
    sent: dict[str, Any] = {
        "id": 1,
        "created_at": "2001-01-01T00:00:00+00:00",
        "shard": 15,
        "kind": "run_finished",
    }
    sent |= {"user_id": 1, "conversation_id": 1, "status": "completed", "finished_at": "2001-01-01T00:00:00Z"}
    event = {**sent, **progress(), "run_id": "another"}
    service.post("/paper-generation-progress", {**sent, "run_id": run_id, "event": event})
    batch = [{**sent, "kind": "paper_generation_progress", "run_id": run_id, "event": event}]
    service.http.post(f"{EVENTS}/batch", json=batch).raise_for_status()
    stored = service.archived(run_id, 2)
    now = time.time()
    for row in stored:
        assert row.keys().isdisjoint({"shard", "kind", "user_id", "status"})
        assert row["id"] > 1
        assert row["run_id"] == run_id
        assert abs(datetime.fromisoformat(row["created_at"]).timestamp() - now) < 60
    run = get(service.run_url(run_id), headers=viewer()).json()["run"]
    assert (run["conversation_id"], run["status"]) == (CONVERSATION, "running")
    assert get(f"{service.url}/conversations/1", headers=viewer(1)).status_code == 404


def test_who_may_only_see_may_not_write(service: Relay) -> None:
    run_id = new_run_id()
    service.claim(run_id)
    ticket = post(f"{service.url}/tickets", headers=viewer()).json()["ticket"]
    cookie = {"cookie": f"relay_token={viewer()['authorization'][7:]}"}
    for headers in (viewer(), cookie, bearer(ticket), bearer(run_id), {}):
        assert statuses(service, run_id, headers) == {401, 4010}


def test_who_may_write_may_not_see(service: Relay, relay: Relay) -> None:
    run_id = new_run_id()
    service.claim(run_id)
    writers = [service.http.headers["authorization"][7:], LISTED, mint_run_token(RUN_SECRET, run_id)]
    paths = [path for path in relay.http.get("/openapi.json").json()["paths"] if "conversation_id" in path]
    assert len(paths) > 5
    for path in paths:
        place = path.format(conversation_id=CONVERSATION, run_id=run_id)
        for token in writers:
            for headers in (bearer(token), {"cookie": f"relay_token={token}"}):
                assert get(service.url + place, headers=headers).status_code == 401, path
    for token in writers:
        assert post(f"{service.url}/tickets", headers=bearer(token)).status_code == 401


def test_a_token_of_the_file_is_as_good_until_it_is_struck(relay: Relay, tokens_file: Path) -> None:
    run_id, kept = new_run_id(), tokens_file.read_text()
    assert statuses(relay, run_id, bearer(LISTED)) == {204, 2040}

    def status() -> int:
        return post(
            relay.url + PAPER, json={"run_id": run_id, "event": progress()}, headers=bearer(LISTED)
        ).status_code

    try:
        tokens_file.write_text(json.dumps([{"name": "other", "sha256": sha256(b"other").hexdigest()}]))
        wait_until(lambda: status() == 401, "the end of a token")
        assert statuses(relay, run_id, bearer("other")) == {204, 2040}
    finally:
        tokens_file.write_text(kept)


def signed(body: bytes, key: str) -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "content-type": "application/json",
        "webhook-id": key,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SIGNING).sign(key, now, body.decode()),
    }


def test_a_signed_message_is_stored_once_however_often_it_comes(service: Relay) -> None:
    run_id = new_run_id()
    service.claim(run_id)
    body = json.dumps({"run_id": run_id, "event": progress()}).encode()
    headers = signed(body, f"msg_{run_id}")
    for more in ({}, {}, {"idempotency-key": "another"}):
        assert post(service.url + PAPER, content=body, headers=headers | more).status_code == 204
    headers = signed(body, f"last_{run_id}")
    assert post(service.url + PAPER, content=body, headers=headers).status_code == 204
    assert len(service.archived(run_id, 2)) == 2


@pytest.mark.parametrize("change", ["body", "id", "path", "secret", "token", "claim"])
def test_a_signature_is_good_for_its_message_alone(service: Relay, change: str) -> None:
    run_id = new_run_id()
    body = json.dumps({"run_id": run_id, "event": progress()}).encode()
    headers = signed(body, f"msg_{run_id}")
    method, path = "POST", PAPER
    match change:
        case "body":
            body = body.replace(run_id.encode(), new_run_id().encode())
        case "id":
            headers["webhook-id"] = "another"
        case "path":
            path = f"{EVENTS}/{run_id}/paper-generation-progress"
        case "secret":
            now = datetime.now(UTC)
            headers["webhook-signature"] = Webhook("A" * 32).sign(f"msg_{run_id}", now, body.decode())
        case "token":
            headers["authorization"] = "Bearer wrong"
        case "claim":
            method, path = "PUT", f"/research-pipeline/runs/{run_id}"
    answer = CLIENT.request(method, service.url + path, content=body, headers=headers)
    assert answer.status_code == (403 if change == "claim" else 401), answer.text
