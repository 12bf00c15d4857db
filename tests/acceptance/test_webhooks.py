"""The pipeline's side on the wire: what is taken, what is refused, and how."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.acceptance.running import CONVERSATION, EVENTS, TOKEN, USER, Relay, Viewer
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


BAD_BODIES: list[tuple[str, bytes | str, int, str]] = [
    ("empty", "", 400, "invalid-json"),
    ("blank", "  ", 400, "invalid-json"),
    ("truncated", body()[:-5], 400, "invalid-json"),
    ("trailing", body() + "x", 400, "invalid-json"),
    ("single quotes", f"{{'{CANARY}':1}}", 400, "invalid-json"),
    ("not UTF-8", b'{"run_id":"\xff"}', 400, "invalid-json"),
    ("UTF-16", body().encode("utf-16"), 400, "invalid-json"),
    ("byte order mark", b"\xef\xbb\xbf" + body().encode(), 400, "invalid-json"),
    ("NaN", body(details={"x": 1}).replace('"x": 1', '"x": NaN'), 400, "invalid-json"),
    ("too large a number", body(details={"x": 1}).replace('"x": 1', '"x": 1e400'), 400, "invalid-json"),
    ("an array", "[]", 422, "invalid-event"),
    ("null", "null", 422, "invalid-event"),
    ("no event", json.dumps({"run_id": "r", "x": CANARY}), 422, "invalid-event"),
    ("a bad run id", body(f"{CANARY}/.."), 422, "invalid-event"),
    ("text for progress", body(progress=CANARY), 422, "invalid-event"),
    ("progress beyond 1", body(progress=1.1), 422, "invalid-event"),
    ("an empty step", body(step=""), 422, "invalid-event"),
    ("a long step", body(step=CANARY * 20), 422, "invalid-event"),
    ("details that are no object", body(details=[CANARY]), 422, "invalid-event"),
]


@pytest.mark.parametrize(
    ("content", "status", "slug"), [case[1:] for case in BAD_BODIES], ids=[case[0] for case in BAD_BODIES]
)
def test_a_bad_body_is_refused_and_the_next_good_one_is_taken(
    relay: Relay, content: bytes | str, status: int, slug: str
) -> None:
    assert_problem(post(relay, content), status, slug)
    assert post(relay, body()).status_code == 204


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", f"Basic {CANARY}", f"Bearer {CANARY}", f"Bearer {TOKEN}x", b"Bearer \xe9\xff"],
)
def test_without_the_token_nothing_is_read(relay: Relay, authorization: str | bytes) -> None:
    for path, method in ((PATH, "POST"), (f"{EVENTS}/batch", "POST"), ("/research-pipeline/runs/a b", "PUT")):
        headers: Any = {"authorization": authorization, "content-type": "application/json"}
        answer = relay.http.request(method, path, content="not json", headers=headers)
        assert_problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/x-ndjson"},
        {"content-encoding": "gzip"},
    ],
)
def test_other_media_types_are_refused(relay: Relay, headers: dict[str, str]) -> None:
    assert_problem(post(relay, body(), **headers), 415, "unsupported-media-type")


def test_a_body_may_be_as_large_as_the_limit_and_no_larger(relay: Relay) -> None:
    limit = 256 * 1024
    fits = body(details={"text": ""})
    fits = fits.replace('"text": ""', '"text": "' + "x" * (limit - len(fits)) + '"')
    assert len(fits) == limit
    assert post(relay, fits).status_code == 204
    assert_problem(post(relay, fits + " "), 413, "body-too-large")

    def chunks() -> Any:
        yield from (fits.encode(), b" ")

    chunked = relay.http.post(PATH, content=chunks(), headers={"content-type": "application/json"})
    assert_problem(chunked, 413, "body-too-large")
    assert post(relay, body()).status_code == 204


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


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_methods_are_refused(relay: Relay, method: str) -> None:
    answer = relay.http.request(method, PATH)
    assert_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"


def test_an_unknown_path_is_not_found(relay: Relay) -> None:
    assert_problem(relay.http.get(f"/{CANARY}"), 404, "not-found")


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


@pytest.mark.parametrize("key", ["", "with space", "x" * 256])
def test_a_malformed_key_is_refused(relay: Relay, key: str) -> None:
    assert_problem(post(relay, body(), **{"idempotency-key": key}), 400, "bad-request")


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


def test_of_a_batch_with_a_bad_event_nothing_is_stored(relay: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    sent = items(run_id, 10)
    sent[6]["event"]["progress"] = CANARY
    answer = post(relay, json.dumps(sent), f"{EVENTS}/batch")
    assert_problem(answer, 422, "invalid-event")
    assert {error["loc"][0] for error in answer.json()["errors"]} == {6}
    del sent[6]
    post(relay, json.dumps(sent), f"{EVENTS}/batch")
    assert len(relay.archived(run_id, 9)) == 9


@pytest.mark.parametrize(
    ("sent", "status", "slug"),
    [
        ([], 422, "invalid-event"),
        (items("run-1", 1001), 413, "batch-too-long"),
        ([{"run_id": "r", "kind": CANARY, "event": {}}], 422, "invalid-event"),
        ([CANARY], 422, "invalid-event"),
        ({"run_id": "r"}, 422, "invalid-event"),
    ],
    ids=["empty", "too long", "an unknown kind", "no object", "no array"],
)
def test_what_is_no_batch_is_refused(relay: Relay, sent: Any, status: int, slug: str) -> None:
    assert_problem(post(relay, json.dumps(sent), f"{EVENTS}/batch"), status, slug)


def test_text_that_postgresql_does_not_store_is_mended(relay: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    sent = body(run_id, substep="HERE", details={"HERE": "HERE"}).replace(
        "HERE", r"a\u0000b\ud800c\ud83d\ude00"
    )
    assert post(relay, sent).status_code == 204
    (event,) = relay.archived(run_id, 1)
    mended = "a\ufffdb\ufffdc\U0001f600"
    assert (event["substep"], event["details"]) == (mended, {mended: mended})


def test_a_run_is_made_known_once(relay: Relay) -> None:
    run_id = new_run_id()
    path = f"/research-pipeline/runs/{run_id}"
    owner = {"conversation_id": CONVERSATION, "user_id": USER}
    assert [relay.http.put(path, json=owner).status_code for _ in range(2)] == [204, 204]
    for other in ({"conversation_id": CONVERSATION + 1}, {"user_id": USER + 1}):
        assert_problem(relay.http.put(path, json=owner | other), 409, "conflict")
    for wrong in (
        {},
        {"conversation_id": 0, "user_id": 1},
        {"conversation_id": "1", "user_id": 1},
        {"conversation_id": 2**63, "user_id": 1},
    ):
        assert_problem(relay.http.put(path, json=wrong), 422, "invalid-event")
    assert_problem(
        relay.http.put(path, content=b"{", headers={"content-type": "application/json"}), 400, "invalid-json"
    )
    assert_problem(relay.http.put("/research-pipeline/runs/a%20b", json=owner), 422, "invalid-event")


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


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=abc",
        "limit=1001",
        f"limit={10**20}",
        "after=-1",
        f"after={2**53}",
        "after=x",
    ],
)
def test_a_page_of_history_has_sane_bounds(relay: Relay, query: str) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    name, _, value = query.partition("=")
    assert_problem(relay.history(run_id, **{name: value}), 422, "invalid-event")
    empty = relay.history(run_id).json()
    assert empty == {"run_id": run_id, "events": [], "latest_step": None, "overall_progress": 0.0}


def test_the_routes_are_documented(relay: Relay) -> None:
    paths = relay.http.get("/openapi.json").json()["paths"]
    schema = paths[PATH]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["required"]) == {"run_id", "event"}
    assert {"/livez", "/readyz", f"{EVENTS}/batch", f"{EVENTS}/run-finished"} <= paths.keys()
    assert relay.http.get("/livez").json() == {"status": "ok"}
    assert relay.http.get("/readyz").json()["checks"] == {"redis": "ok", "postgres": "ok"}
