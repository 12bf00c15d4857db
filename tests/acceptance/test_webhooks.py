"""The pipeline's side on the wire: what is taken, what is refused, and how."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.acceptance.running import CONVERSATION, EVENTS, USER, Relay, Viewer
from tests.canaries import TOKEN
from tests.factories import new_run_id, progress

PATH = f"{EVENTS}/paper-generation-progress"
CANARY = "canary-that-must-not-come-back"


def post(relay: Relay, content: bytes | str, path: str = PATH, **headers: str) -> httpx.Response:
    return relay.http.post(path, content=content, headers={"content-type": "application/json", **headers})


def body(run_id: str = "run-1", **changes: Any) -> str:
    return json.dumps({"run_id": run_id, "event": progress(**changes)})


def assert_problem(answer: httpx.Response, status: int, slug: str) -> None:
    """A problem of that kind, that tells nothing of what was sent."""
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (status, f"urn:rp-relay:problem:{slug}")
    assert answer.headers["content-type"] == "application/problem+json"
    assert isinstance(problem["detail"], str)
    assert problem["status"] == status
    assert CANARY not in answer.text
    assert TOKEN not in answer.text


def test_a_declared_length_over_the_limit_is_refused_before_the_body_comes(relay: Relay) -> None:
    url = httpx.URL(relay.url)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
        head += "content-type: application/json\r\ncontent-length: 50000000\r\n\r\n"
        connection.sendall(head.encode())
        connection.settimeout(5)
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413"), "and the connection is closed"


def test_a_key_makes_a_retry_safe(relay: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    content, key = body(run_id), f"key-{run_id}"
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: post(relay, content, **{"idempotency-key": key}), range(100)))
    assert {answer.status_code for answer in answers} == {204}
    assert_problem(post(relay, body(run_id), **{"idempotency-key": key}), 409, "idempotency-key-reused")
    post(relay, body(run_id))
    assert len(relay.archived(run_id, 2)) == 2


def items(run_id: str, count: int) -> list[dict[str, Any]]:
    return [
        {"run_id": run_id, "kind": "paper_generation_progress", "event": progress()} for _ in range(count)
    ]


@pytest.mark.parametrize("media_type", ["application/json", "application/x-ndjson"])
def test_a_batch_is_stored_whole_and_in_order(relay: Relay, media_type: str) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    sent = items(run_id, 1000)
    content = json.dumps(sent) if media_type == "application/json" else "\n".join(map(json.dumps, sent))
    headers = {"content-type": media_type, "idempotency-key": run_id}
    for _ in range(2):
        assert post(relay, content, f"{EVENTS}/batch", **headers).status_code == 204
    stored = relay.archived(run_id, 1000)
    assert [event["details"] for event in stored] == [item["event"]["details"] for item in sent]


def test_a_run_is_made_known_once(relay: Relay) -> None:
    run_id = new_run_id()
    path = f"/research-pipeline/runs/{run_id}"
    owner = {"conversation_id": CONVERSATION, "user_id": USER}
    assert [relay.http.put(path, json=owner).status_code for _ in range(2)] == [204, 204]
    for other in ({"conversation_id": CONVERSATION + 1}, {"user_id": USER + 1}):
        assert_problem(relay.http.put(path, json=owner | other), 409, "conflict")


def test_a_run_that_ended_before_it_was_known_is_known_as_ended(relay: Relay) -> None:
    run_id = new_run_id()
    other = new_run_id()
    relay.finish(run_id, success=False)
    relay.claim(other)
    relay.progress(other, progress())
    relay.archived(other, 1)  # what came before is archived as well
    relay.claim(run_id)
    initial, complete = Viewer(relay, run_id).ended()
    assert initial["data"]["run"]["status"] == "failed"
    assert complete["data"] == {"status": "failed"}


def test_the_routes_are_documented(relay: Relay) -> None:
    paths = relay.http.get("/openapi.json").json()["paths"]
    schema = paths[PATH]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["required"]) == {"run_id", "event"}
    assert {"/livez", "/readyz", f"{EVENTS}/batch", f"{EVENTS}/run-finished"} <= paths.keys()
    assert relay.http.get("/livez").json() == {"status": "ok"}
    checks = relay.http.get("/readyz").json()["checks"]
    assert checks == dict.fromkeys(("redis", "tailers", "append", "postgres"), "ok")
