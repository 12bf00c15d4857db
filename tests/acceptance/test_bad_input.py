"""Bad input to the webhooks: each row of one table is refused in its own words, leaves nothing of itself in
the answer or in the log, and harms no request after it. Numbers are those of the list of bad inputs; what of
that list is tested elsewhere is named at the end."""

import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.acceptance.raw import PROBLEM, Answer
from tests.acceptance.running import EVENTS, Relay, viewer
from tests.canaries import TOKEN
from tests.factories import EXAMPLES, new_run_id, progress

PATH = f"{EVENTS}/paper-generation-progress"
BATCH = f"{EVENTS}/batch"
CANARY = "canary-that-must-not-come-back"
JSON = {"content-type": "application/json"}
EVENT_BYTES, BATCH_BYTES = 256 * 1024, 8 * 1024 * 1024


def body(run_id: str = "run-1", **changes: Any) -> str:
    return json.dumps({"run_id": run_id, "event": progress(**changes)})


def with_detail(text: str) -> str:
    """A good event but for what its `details` hold."""
    return body(details={"x": 0, CANARY: CANARY}).replace('"x": 0', f'"x": {text}')


def batch(*items: Any) -> str:
    return json.dumps([{"run_id": "r", "kind": "paper_generation_progress", **item} for item in items])


def padded(text: str, size: int) -> str:
    return text + " " * (size - len(text))


class Case(NamedTuple):
    """What is sent, and how it is refused. Where a body is given as pieces, it goes in chunks."""

    row: int
    name: str
    status: int
    problem: str
    content: str | bytes | list[bytes] = ""
    headers: dict[str, str | bytes] = JSON  # type: ignore[assignment]
    path: str = PATH
    method: str = "POST"

    def __str__(self) -> str:
        return f"row {self.row}: {self.name}"

    def send(self, relay: Relay) -> Answer:
        content = iter(self.content) if isinstance(self.content, list) else self.content
        headers: Any = self.headers
        response = relay.http.request(self.method, self.path, content=content, headers=headers)
        return Answer(response.status_code, dict(response.headers), response.text)


def deep(levels: int) -> str:
    return with_detail("[" * levels + "]" * levels)


def artifact(**changes: Any) -> str:
    return json.dumps({"run_id": "r", "event": EXAMPLES["artifact"] | changes})


NOT_JSON: list[tuple[int, str, str | bytes]] = [
    (5, "an empty body", ""),
    (5, "spaces only", "   "),
    (6, "truncated", body(step=CANARY)[:-3]),
    (6, "a trailing comma", f'{{"{CANARY}": 1,}}'),
    (6, "single quotes", f"{{'{CANARY}': 1}}"),
    (6, "extra data", body() + CANARY),
    (6, "a raw control character", body(step=CANARY).replace(CANARY, CANARY + "\x01")),
    (6, "a raw line end in a text", body(step=CANARY).replace(CANARY, CANARY + "\n")),
    (7, "bytes that are no UTF-8", f'{{"{CANARY}":"'.encode() + b'\xff\xfe"}'),
    (7, "an overlong form of a slash", f'{{"{CANARY}":"'.encode() + b'\xc0\xaf"}'),
    (7, "a surrogate in UTF-8", f'{{"{CANARY}":"'.encode() + b'\xed\xa0\x80"}'),
    (8, "UTF-16", body(step=CANARY).encode("utf-16")),
    (8, "UTF-32", body(step=CANARY).encode("utf-32")),
    (8, "a byte order mark", b"\xef\xbb\xbf" + body(step=CANARY).encode()),
    (9, "NaN", with_detail("NaN")),
    (9, "Infinity", with_detail("-Infinity")),
    (9, "1e400", with_detail("1e400")),
    (10, "an integer of 5000 digits", with_detail("1" * 5000)),
    (11, "1000 levels", deep(1000)),
    (11, "100000 levels", deep(100_000)),
]

NOT_AN_EVENT: list[tuple[int, str, str] | tuple[int, str, str, str]] = [
    (9, "NaN for progress", body().replace("0.8667", "NaN")),
    (10, "a whole number that browsers can not hold", artifact(file_size=2**53), "/artifact-uploaded"),
    (10, "a whole number far below", artifact(file_size=-(2**70)), "/artifact-uploaded"),
    (11, "65 levels", deep(64)),
    (15, "an array", f'["{CANARY}"]'),
    (15, "a text", f'"{CANARY}"'),
    (15, "a number", "1"),
    (15, "null", "null"),
    (16, "no run", json.dumps({"event": progress(), "x": CANARY})),
    (16, "no event", json.dumps({"run_id": "r", "x": CANARY})),
    (16, "an object for a run", body().replace('"run-1"', f'{{"{CANARY}":1}}')),
    (16, "a text for progress", body(progress=CANARY)),
    (16, "a number as text for progress", body(progress="1")),
    (16, "true for progress", body(progress=True)),
    (16, "progress below 0", body(progress=-0.1)),
    (16, "progress above 1", body(progress=1.1)),
    (16, "progress just beyond rounding", body(step_progress=1.00001)),
    (16, "null for a step", body(step=None)),
    (16, "an array for details", body(details=[CANARY])),
    (16, "a number for a substep", body(substep=1)),
    *[
        (17, f"the run {name}", body(run_id))
        for name, run_id in {
            "without a name": "",
            "of 129 characters": CANARY.ljust(129, "x"),
            "that climbs": f"../{CANARY}",
            "with a slash": f"{CANARY}/b",
            "with a line end": f"{CANARY}\nb",
            "that ends with a line end": f"{CANARY}\n",
            "with an emoji": f"{CANARY}\N{GRINNING FACE}",
            "with braces": f"{{{CANARY}}}",
            "with a NUL": f"{CANARY}\0",
            "of Arabic digits": "\u0661\u0662",
        }.items()
    ],
    (17, "a bad run in the path", json.dumps({"event": progress()}), f"/{CANARY}%0A/run-log"),
    (18, "a kind that would be two fields", batch({"kind": f"x\ndata: {CANARY}", "event": {}}), "/batch"),
    (18, "a kind with a carriage return", batch({"kind": f"\r{CANARY}", "event": {}}), "/batch"),
    (18, "a kind of 1000 characters", batch({"kind": CANARY * 40, "event": {}}), "/batch"),
    (18, "an empty step", body(step="")),
    (18, "a step of 1000 characters", body(step=CANARY * 40)),
    (
        29,
        "a batch with one bad event",
        batch(*[{"event": progress()}] * 9, {"event": {"step": CANARY}}),
        "/batch",
    ),
    (29, "a batch of none", "[]", "/batch"),
    (29, "a batch of texts", json.dumps([CANARY]), "/batch"),
    (29, "a batch that is an object", json.dumps({CANARY: 1}), "/batch"),
]

TOKENS: list[tuple[int, str, dict[str, str | bytes]]] = [
    (1, "no token", {"authorization": ""}),
    (1, "an empty token", {"authorization": "Bearer"}),
    (1, "another scheme", {"authorization": f"Basic {CANARY}"}),
    (1, "a wrong token", {"authorization": f"Bearer {CANARY}"}),
    (1, "a token with a tail", {"authorization": f"Bearer {TOKEN}x"}),
    (3, "a token with bytes beyond ASCII", {"authorization": b"Bearer \xe9" + CANARY.encode()}),
    (4, "a viewer's token", {"authorization": viewer()["authorization"]}),
]

MEDIA: list[tuple[int, str, dict[str, str | bytes]]] = [
    (23, "gzip", {**JSON, "content-encoding": "gzip"}),
    (24, "no content type", {"content-type": ""}),
    (24, "plain text", {"content-type": "text/plain"}),
    (24, "a form", {"content-type": f"multipart/form-data; boundary={CANARY}"}),
    (24, "UTF-16 declared", {"content-type": "application/json; charset=utf-16"}),
    (24, "a type in no known charset", {"content-type": f"application/json; charset={CANARY}"}),
]

KEYS: dict[str, str | bytes] = {
    "empty": "",
    "two words": f"{CANARY} {CANARY}",
    "too long": CANARY.ljust(256, "x"),
    "not ASCII": b"\xe9",
}

PUT: dict[str, Any] = {"method": "PUT", "path": "/research-pipeline/runs/run-1"}

CASES = [
    *[Case(row, name, 401, "unauthenticated", body(), {**JSON, **headers}) for row, name, headers in TOKENS],
    Case(1, "no token for a batch", 401, "unauthenticated", "[]", {**JSON, "authorization": ""}, BATCH),
    Case(1, "no token for a claim", 401, "unauthenticated", "{", {**JSON, "authorization": ""}, **PUT),
    Case(2, "no token and no JSON", 401, "unauthenticated", CANARY, {**JSON, "authorization": ""}),
    Case(2, "no token and 50 MB", 401, "unauthenticated", " " * 50_000_000, {"authorization": ""}),
    *[Case(row, name, 400, "invalid-json", content) for row, name, content in NOT_JSON],
    *[
        Case(
            row,
            name,
            422,
            "invalid-event",
            content,
            path=EVENTS + (path[0] if path else "/paper-generation-progress"),
        )
        for row, name, content, *path in NOT_AN_EVENT
    ],
    Case(16, "a claim of nothing", 422, "invalid-event", "{}", **PUT),
    Case(
        16,
        "a claim with a text",
        422,
        "invalid-event",
        f'{{"user_id":"{CANARY}","conversation_id":1}}',
        **PUT,
    ),
    Case(16, "a claim of conversation 0", 422, "invalid-event", '{"user_id":1,"conversation_id":0}', **PUT),
    Case(
        16,
        "a claim beyond 64 bits",
        422,
        "invalid-event",
        f'{{"user_id":{2**63},"conversation_id":1}}',
        **PUT,
    ),
    Case(
        17,
        "a claim of a bad run",
        422,
        "invalid-event",
        "{}",
        path=f"/research-pipeline/runs/{CANARY}%20b",
        method="PUT",
    ),
    Case(
        20, "an event one byte too large", 413, "body-too-large", padded(body(step=CANARY), EVENT_BYTES + 1)
    ),
    Case(20, "a batch one byte too large", 413, "body-too-large", padded("[]", BATCH_BYTES + 1), path=BATCH),
    Case(20, "a claim one byte too large", 413, "body-too-large", padded("{}", EVENT_BYTES + 1), **PUT),
    Case(21, "one byte too large in chunks", 413, "body-too-large", [b" " * EVENT_BYTES, b" "]),
    Case(21, "a batch too large in chunks", 413, "body-too-large", [b" " * 65536] * 129, path=BATCH),
    *[Case(row, name, 415, "unsupported-media-type", body(), headers) for row, name, headers in MEDIA],
    Case(
        24,
        "lines where there are none",
        415,
        "unsupported-media-type",
        body(),
        {"content-type": "application/x-ndjson"},
    ),
    *[
        Case(26, f"a key that is {name}", 400, "bad-request", body(), {**JSON, "idempotency-key": key})
        for name, key in KEYS.items()
    ],
    Case(29, "a batch of 1001", 413, "batch-too-long", batch(*[{"event": progress()}] * 1001), path=BATCH),
    *[
        Case(32, f"{method} of a webhook", 405, "method-not-allowed", method=method)
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH")
    ],
    Case(32, "POST of a claim", 405, "method-not-allowed", CANARY, path="/research-pipeline/runs/run-1"),
    Case(32, "a path that is none", 404, "not-found", path=f"/{CANARY}"),
    Case(32, "a path with a slash too many", 404, "not-found", path=f"{PATH}/"),
]


def log_of(directory: Path) -> str:
    return (directory / "guarded.log").read_text()


def assert_unharmed(relay: Relay) -> None:
    """An ordinary request is answered as ever."""
    assert relay.http.post(PATH, content=body(), headers=JSON).status_code == 204


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_refused_without_a_trace_of_it(guarded: Relay, directory: Path, case: Case) -> None:
    answer = case.send(guarded)
    assert (answer.status, answer.headers["content-type"]) == (case.status, PROBLEM), answer.text
    assert answer.problem == case.problem
    assert CANARY not in answer.text + str(answer.headers) + log_of(directory)
    assert TOKEN not in answer.text + log_of(directory)
    assert_unharmed(guarded)


def test_row_1_a_refused_token_says_which_scheme_is_wanted(guarded: Relay) -> None:
    for authorization in ("", "Basic x"):
        answer = guarded.http.post(PATH, content=body(), headers={**JSON, "authorization": authorization})
        assert answer.headers["www-authenticate"] == "Bearer"


def test_row_6_says_where_the_json_is_broken(guarded: Relay) -> None:
    answer = guarded.http.post(PATH, content='{\n"a": }', headers=JSON)
    assert "line 2 column 6" in answer.json()["detail"]


def test_row_11_deep_nesting_costs_next_to_nothing(guarded: Relay) -> None:
    (pid,) = guarded.pids("relay", "serve")
    before = psutil.Process(pid).cpu_times()
    content = with_detail("[" * 120_000)
    for _ in range(20):
        assert guarded.http.post(PATH, content=content, headers=JSON).status_code == 400
    after = psutil.Process(pid).cpu_times()
    assert (after.user + after.system - before.user - before.system) / 20 < 0.05


def test_row_20_a_body_may_be_as_large_as_the_limit(guarded: Relay) -> None:
    text = body(details={"text": "x" * 1000})
    for content in (padded(text, EVENT_BYTES), [padded(text, EVENT_BYTES).encode()]):
        sent: Any = iter(content) if isinstance(content, list) else content
        assert guarded.http.post(PATH, content=sent, headers=JSON).status_code == 204
    whole = padded(batch(*[{"event": progress()}] * 1000), BATCH_BYTES)
    assert guarded.http.post(BATCH, content=whole, headers=JSON).status_code == 204


def test_row_29_of_a_batch_with_a_bad_event_that_one_is_named_and_nothing_stored(guarded: Relay) -> None:
    run_id = new_run_id()
    guarded.claim(run_id)
    good = [{"run_id": run_id, "event": progress(number)} for number in range(9)]
    bad = {"run_id": run_id, "event": progress(progress=CANARY)}
    answer = guarded.http.post(BATCH, content=batch(*good, bad), headers=JSON)
    assert {error["loc"][0] for error in answer.json()["errors"]} == {9}
    assert guarded.http.post(BATCH, content=batch(*good), headers=JSON).status_code == 204
    assert len(guarded.archived(run_id, 9)) == 9


def test_row_32_says_which_methods_there_are(guarded: Relay) -> None:
    assert guarded.http.get(PATH).headers["allow"] == "POST"
    answer = guarded.http.head(PATH)
    assert (answer.status_code, answer.headers["allow"], answer.content) == (405, "POST", b"")


SURVIVES = [
    (10, "2 to the 64th", f"{2**64}", 2**64),
    (10, "4000 digits", "1" * 4000, int("1" * 4000)),
    (11, "63 levels", "[" * 62 + "]" * 62, json.loads("[" * 62 + "]" * 62)),
    (12, "a lone surrogate", r'"a\ud800b"', "a\ufffdb"),
    (12, "surrogates the wrong way round", r'"\ude00\ud83d"', "\ufffd\ufffd"),
    (12, "a pair of surrogates", r'"\ud83d\ude00"', "\N{GRINNING FACE}"),
    (13, "a NUL in a value", r'"a\u0000b"', "a\ufffdb"),
    (13, "a NUL in a key", r'{"a\u0000b": 1}', {"a\ufffdb": 1}),
    (14, "a doubled key: the last one counts", r'{"a": 1, "a": 2}', {"a": 2}),
    (18, "what would end a line of the stream", r'"\n\ndata: x\r\u2028\u0085"', "\n\ndata: x\r\u2028\x85"),
]


@pytest.mark.parametrize(
    ("text", "value"),
    [pytest.param(text, value, id=f"row {row}: {name}") for row, name, text, value in SURVIVES],
)
def test_odd_but_good_input_is_kept_as_it_is(guarded: Relay, text: str, value: Any) -> None:
    run_id = new_run_id()
    guarded.claim(run_id)
    content = body(run_id, details={"x": 0}).replace('"x": 0', f'"x": {text}')
    assert guarded.http.post(PATH, content=content, headers=JSON).status_code == 204
    (event,) = guarded.archived(run_id, 1)
    assert event["details"] == {"x": value}


def test_row_14_the_last_of_two_runs_is_the_one(guarded: Relay) -> None:
    first, last = new_run_id(), new_run_id()
    guarded.claim(last)
    content = body(last).replace("{", f'{{"run_id": "{first}", ', 1)
    assert guarded.http.post(PATH, content=content, headers=JSON).status_code == 204
    assert len(guarded.archived(last, 1)) == 1


def test_row_16_rounding_is_clamped(guarded: Relay) -> None:
    run_id = new_run_id()
    guarded.claim(run_id)
    guarded.progress(run_id, progress(progress=1.0000001, step_progress=-0.0000001))
    (event,) = guarded.archived(run_id, 1)
    assert (event["progress"], event["step_progress"]) == (1.0, 0.0)


def test_row_19_unknown_fields_are_ignored(guarded: Relay) -> None:
    run_id = new_run_id()
    guarded.claim(run_id)
    content = {"run_id": run_id, "event": progress(1, id=5, created_at="x", extra={}), "tenant": 1, "id": 7}
    assert guarded.post("/paper-generation-progress", content).status_code == 204
    (event,) = guarded.archived(run_id, 1)
    assert event["id"] > 7
    assert "extra" not in event


ELSEWHERE = {
    22: "test_bad_http:test_row_22_what_is_no_http_is_a_bad_request",
    25: "test_webhooks:test_a_key_makes_a_retry_safe",
    27: "test_live:test_events_after_the_end_are_stored_and_shown_to_those_who_come_back",
    28: "test_webhooks:test_a_run_is_made_known_once",
    30: "test_promises:test_a_viewer_stays_and_goes_on_while_valkey_is_killed",
    31: "test_limits:test_row_31_new_runs_beyond_the_quota_are_refused_and_older_ones_go_on",
}


def test_every_row_up_to_32_is_tested() -> None:
    here = {case.row for case in CASES} | {row for row, *_ in SURVIVES} | {19}
    for place in ELSEWHERE.values():
        module, name = place.split(":")
        assert callable(getattr(importlib.import_module(f"tests.acceptance.{module}"), name))
    assert here | ELSEWHERE.keys() == set(range(1, 33))
