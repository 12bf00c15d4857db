"""Bad input from viewers and readers of history, and what nobody outside needs to see: the rows from 33 on of
the list that `test_bad_input` begins."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jwt
import pytest
import redis

from relay.auth import mint_viewer_token
from tests.acceptance.raw import PROBLEM, exchange, head
from tests.acceptance.running import CLIENT, CONVERSATION, USER, Relay, Viewer, viewer
from tests.acceptance.test_bad_input import CANARY, assert_unharmed, log_of
from tests.canaries import SECRET
from tests.factories import new_run_id, progress

RUN = "a-run-that-is-there"
LIVE = f"/conversations/{CONVERSATION}/idea/research-run/{RUN}/events"
WHOLE = f"/conversations/{CONVERSATION}/events"
HISTORY = f"/conversations/{CONVERSATION}/idea/research-run/{RUN}/paper-generation-progress"
ALL = [LIVE, WHOLE, HISTORY, HISTORY.removesuffix("/paper-generation-progress")]


class Case(NamedTuple):
    """What is asked for, by whom, and how it is refused."""

    row: int
    name: str
    status: int
    problem: str
    path: str
    headers: dict[str, str] = viewer()
    method: str = "GET"

    def __str__(self) -> str:
        return f"row {self.row}: {self.name}"


def of(run: str, path: str = LIVE) -> str:
    return path.replace(RUN, run)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def signed(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> dict[str, str]:
    return bearer(jwt.encode({"sub": str(USER), "exp": 2**40, **claims}, secret, algorithm))


POSITIONS = {
    "a word": CANARY,
    "a sign": "-1",
    "another sign": "+1",
    "a stream id": "1-2",
    "too many parts": "1-2-3",
    "the end": "$",
    "the newest": "+",
    "news": ">",
    "beyond 53 bits": str(2**53),
    "beyond 64 bits": str(2**64),
    "of 10 kB": "1" * 10_000,
    "with a fraction": "1.5.5",
    "hexadecimal": "0x10",
    "with an exponent": "1e3",
}

TOKENS = {
    "none": {"authorization": ""},
    "another scheme": {"authorization": f"Basic {CANARY}"},
    "no token at all": bearer(CANARY),
    "expired": bearer(mint_viewer_token(SECRET, USER, -5)),
    "of another secret": signed(secret=CANARY * 2),
    "not signed": bearer(jwt.encode({"sub": str(USER), "exp": 2**40}, "", "none")),
    "of another algorithm": signed(algorithm="HS512", secret=SECRET + "0" * 32),
    "without an end": bearer(jwt.encode({"sub": str(USER)}, SECRET, "HS256")),
    "without a user": bearer(jwt.encode({"exp": 2**40}, SECRET, "HS256")),
    "of a user that is no number": signed(sub=CANARY),
    "not valid yet": signed(nbf=2**39),
    "a cookie of nonsense": {"authorization": "", "cookie": f"relay_token={CANARY}"},
}

RUNS = {
    "unknown": CANARY,
    "an escaped NUL": f"{CANARY}%00",
    "an escaped line end": f"{CANARY}%0a",
    "no UTF-8": f"{CANARY}%ff",
    "of 10 kB": CANARY * 350,
    "SQL": f"{CANARY}'%20OR%201=1--",
    "a percent sign": "%25",
    "an underscore": "_" * len(RUN),
    "braces": "{0}:log",
    "an emoji": "%F0%9F%98%80",
}

CONVERSATIONS = [
    ("0", 400, "bad-request"),
    ("-5", 400, "bad-request"),
    ("99", 404, "not-found"),
    (str(10**29), 404, "not-found"),
    (CANARY, 422, "invalid-event"),
    ("1e3", 422, "invalid-event"),
    ("%D9%A1", 422, "invalid-event"),
    ("9" * 5000, 422, "invalid-event"),
]

PAGES = [
    *[f"limit={value}" for value in ("0", "-1", CANARY, "1001", "1.5", str(10**20), "", "NaN")],
    *[f"after={value}" for value in ("-1", CANARY, str(2**53), "1-1", "9" * 5000)],
]

CASES = [
    *[
        Case(
            33,
            f"a position that is {name}",
            400,
            "malformed-last-event-id",
            LIVE,
            viewer() | {"last-event-id": text},
        )
        for name, text in POSITIONS.items()
    ],
    *[
        Case(
            33,
            f"the same in the query: {name}",
            400,
            "malformed-last-event-id",
            f"{LIVE}?last_event_id={httpx.QueryParams(x=text)['x']}",
        )
        for name, text in POSITIONS.items()
        if text.isalnum()
    ],
    Case(33, "a position with a NUL", 400, "malformed-last-event-id", f"{LIVE}?last_event_id=1%00"),
    Case(
        33,
        "a conversation's position in three parts",
        400,
        "malformed-last-event-id",
        f"{WHOLE}?last_event_id=1.2.3",
    ),
    *[
        Case(
            36,
            f"the conversation {number[:9]} of {path[-9:]}",
            status,
            problem,
            path.replace(f"/{CONVERSATION}/", f"/{number}/"),
        )
        for number, status, problem in CONVERSATIONS
        for path in ALL
    ],
    *[Case(36, f"another user's {path[-9:]}", 403, "forbidden", path, viewer(USER + 1)) for path in ALL],
    *[
        Case(row, f"a run that is {name}, {path[-9:]}", 404, "not-found", of(run, path))
        for row, path in ((38, LIVE), (43, HISTORY))
        for name, run in RUNS.items()
    ],
    Case(38, "a run that climbs", 404, "not-found", of("..%2f..%2flivez")),
    *[
        Case(39, f"{method} of a stream", 405, "method-not-allowed", LIVE, method=method)
        for method in ("POST", "PUT", "DELETE", "PATCH")
    ],
    *[
        Case(
            39, f"JSON of {path[-9:]}", 406, "not-acceptable", path, viewer() | {"accept": "application/json"}
        )
        for path in (LIVE, WHOLE)
    ],
    *[
        Case(41, f"a token {name}, {path[-9:]}", 401, "unauthenticated", path, headers)
        for name, headers in TOKENS.items()
        for path in ALL
    ],
    *[Case(42, f"a page with {query[:12]}", 422, "invalid-event", f"{HISTORY}?{query}") for query in PAGES],
]


@pytest.fixture(scope="module")
def there(guarded: Relay) -> Relay:
    """The product with one run."""
    guarded.claim(RUN)
    guarded.progress(RUN, progress())
    return guarded


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_bad_question_is_refused_without_a_trace_of_it(there: Relay, directory: Path, case: Case) -> None:
    with httpx.Client(base_url=there.url) as client:
        answer = client.request(case.method, case.path, headers=case.headers)
        again = client.get(HISTORY, headers=viewer())
    assert (answer.status_code, answer.headers["content-type"]) == (case.status, PROBLEM), answer.text
    assert answer.json()["type"] == f"urn:rp-relay:problem:{case.problem}"
    assert CANARY not in answer.text + str(answer.headers) + log_of(directory)
    assert (
        case.headers["authorization"][7:] not in log_of(directory) or len(case.headers["authorization"]) < 9
    )
    assert again.status_code == 200


def test_row_33_no_position_moves_a_viewer_to_where_it_should_not_be(there: Relay) -> None:
    """A NUL never gets to the application."""
    lines = [f"{name}: {value}" for name, value in viewer().items()]
    answer = exchange(there, head("GET", LIVE, *lines[1:], "last-event-id: 1\0"))
    assert (answer.status, answer.problem) == (400, "bad-request")


def test_row_36_refused_reads_leave_no_key(there: Relay) -> None:
    client = redis.Redis.from_url(there.redis_url)
    before = set(client.keys())
    for case in CASES:
        if case.row in (33, 36, 38, 43):
            CLIENT.request(case.method, there.url + case.path, headers=case.headers)
    assert set(client.keys()) - before == set()
    client.close()


def test_row_39_a_head_has_an_end(there: Relay) -> None:
    for path in (LIVE, WHOLE):
        answer = CLIENT.head(there.url + path, headers=viewer(), timeout=20)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"].startswith("text/event-stream")


def test_row_42_of_a_limit_that_comes_twice_the_last_one_counts(there: Relay) -> None:
    """As of a doubled key in a body: what can not be meant does no harm."""
    answer = CLIENT.get(f"{there.url}{HISTORY}?limit=0&limit=1", headers=viewer())
    assert (answer.status_code, len(answer.json()["events"])) == (200, 1)


def test_row_42_a_page_begins_anywhere(there: Relay) -> None:
    """A position is a number below which nothing is shown; one of another run is as good as any."""
    run_id = new_run_id()
    there.claim(run_id)
    there.progress(run_id, progress())
    (foreign,) = [event["id"] for event in there.archived(run_id, 1)]
    assert there.history(RUN, after=foreign).json()["events"] == []
    assert [event["run_id"] for event in there.history(run_id, after=1).json()["events"]] == [run_id]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/metrics"])
def test_row_46_in_production_the_paths_are_nobody_s_business(plain: Relay, path: str) -> None:
    answer = CLIENT.get(plain.url + path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, PROBLEM)


def test_row_46_for_developers_they_are_there(relay: Relay) -> None:
    assert CLIENT.get(f"{relay.url}/openapi.json").status_code == 200
    assert CLIENT.get(f"{relay.url}/docs").status_code == 200


def test_after_all_that_a_viewer_sees_what_happens(there: Relay) -> None:
    watching = Viewer(there, RUN).connected()
    seen = len(watching.wait(1)[0]["data"]["paper_generation_progress"])
    assert_unharmed(there)
    there.progress(RUN, progress(7))
    assert watching.wait(2)[1]["data"]["details"] == {"number": 7}
    assert len(watching.events()) == seen + 1
    watching.cut()


ELSEWHERE = {
    34: "test_live:test_an_unknown_or_foreign_position_gets_a_fresh_initial",
    35: "test_live:test_the_query_resumes_as_the_header_does_and_the_header_wins",
    37: "test_live:test_who_comes_after_the_end_gets_everything_and_the_end",
    40: "test_limits:test_row_40_a_user_may_have_so_many_streams_and_no_more",
    44: "test_promises:test_without_postgresql_only_history_is_away",
    45: "test_bad_http:test_row_45_a_client_that_takes_its_time_is_closed_by_a_deadline",
    46: "test_bad_viewers:test_row_46_in_production_the_paths_are_nobody_s_business",
}


def test_every_row_from_33_on_is_tested() -> None:
    for place in ELSEWHERE.values():
        module, name = place.split(":")
        assert callable(getattr(importlib.import_module(f"tests.acceptance.{module}"), name))
    assert {case.row for case in CASES} | ELSEWHERE.keys() == set(range(33, 47))
