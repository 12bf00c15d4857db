"""What the headers of every answer say, of all routes that there are: for one reader alone, what it is and
nothing else, and, where nobody set it up, nothing for pages of other origins."""

from collections.abc import Iterator

import httpx
import pytest

from tests.acceptance.conftest import ORIGIN
from tests.acceptance.raw import EVERYWHERE, PROBLEM, head
from tests.acceptance.raw import exchange as exchange_raw
from tests.acceptance.running import CLIENT, CONVERSATION, Relay, viewer
from tests.acceptance.test_who_sees import cookie
from tests.canaries import TOKEN
from tests.factories import new_run_id

BESIDE = {
    *("allow", "connection", "content-length", "content-type", "date", "retry-after", "transfer-encoding"),
    *("www-authenticate", "x-accel-buffering"),
}
"""What an answer may have beside the headers that all have. No name or version of a server."""

WRITER = {"authorization": f"Bearer {TOKEN}"}
NO_ROUTE = ["/nowhere", "/", "/research-pipeline/events/no-kind", "/conversations/7", "/metrics"]


@pytest.fixture(scope="module")
def run_id(relay: Relay) -> str:
    made = new_run_id()
    relay.claim(made)
    return made


@pytest.fixture(scope="module")
def routes(relay: Relay, run_id: str) -> list[tuple[str, str]]:
    """Method and path of all that users have, and of what they do not have."""
    paths = relay.http.get("/openapi.json").json()["paths"]
    assert len(paths) > 20
    documented = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    missing = [(method, path) for path in NO_ROUTE for method in ("GET", "POST")]
    wrong = [("DELETE", path) for path in paths]
    asked = [*documented, *missing, *wrong, ("GET", "/openapi.json"), ("GET", "/docs")]
    names = {"conversation_id": CONVERSATION, "run_id": run_id}
    return [(method, path.format_map(names)) for method, path in asked]


def answers(relay: Relay, routes: list[tuple[str, str]]) -> Iterator[tuple[str, str, httpx.Response]]:
    """The answer to each, without a token, with a viewer's and with a pipeline's."""
    for method, path in routes:
        for headers in ({}, viewer(), WRITER):
            json: dict[str, str] | None = {} if method in ("POST", "PUT") else None
            with CLIENT.stream(method, relay.url + path, headers=headers, json=json) as answer:
                yield method, path, answer


def test_every_answer_is_for_its_reader_and_is_what_it_says(
    relay: Relay, routes: list[tuple[str, str]]
) -> None:
    """A pipeline's 204 has no content, and is as short as can be."""
    statuses = set()
    for method, path, answer in answers(relay, routes):
        statuses.add(answer.status_code)
        told = dict(answer.headers)
        if method == "POST" and answer.status_code == 204:
            assert told.keys() <= {"date"}, path
            continue
        assert EVERYWHERE.items() <= told.items(), (method, path, answer.status_code)
        assert told.keys() - EVERYWHERE.keys() <= BESIDE, (method, path)
        assert answer.status_code < 400 or told["content-type"] == PROBLEM, (method, path)
    assert statuses >= {200, 201, 204, 401, 404, 405, 422}


def test_what_is_no_good_http_is_refused_with_the_same_headers(guarded: Relay) -> None:
    for pieces in ([b"x\r\n\r\n"], [head("GET", "/livez", host="")], [head("GET", "/" + "x" * 40_000)]):
        answer = exchange_raw(guarded, *pieces)
        assert EVERYWHERE.items() <= answer.headers.items(), answer.status


@pytest.mark.parametrize("of", ["ops_url", "persister_ops_url"])
def test_what_operators_read_has_the_same_headers(relay: Relay, of: str) -> None:
    relay.ops("/livez", of)  # which may have just started
    for method in ("GET", "HEAD", "POST", "OPTIONS", "ECHO"):
        for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/nowhere"):
            answer = CLIENT.request(method, relay.ready[of] + path)
            assert EVERYWHERE.items() <= dict(answer.headers).items(), (method, path)
            assert "ECHO" not in answer.text


def permissions(answer: httpx.Response) -> list[str]:
    return [name for name in answer.headers if name.startswith("access-control") or name == "vary"]


def test_without_listed_origins_no_page_of_another_one_is_told_anything(guarded: Relay) -> None:
    """Nor is its cookie taken. `guarded` has none listed, as where nobody sets RELAY_ALLOWED_ORIGINS."""
    run_id = new_run_id()
    guarded.claim(run_id)
    run = guarded.run_url(run_id)
    urls = [f"{run}/paper-generation-progress", f"{run}/events", run, f"{guarded.url}/tickets"]
    own = guarded.url
    foreign = ["null", "*", ORIGIN, f"{own}.evil.example", f"{own}0", own.replace("127", "evil-127")]
    for origin in foreign:
        for url in urls:
            asked = {"origin": origin, "access-control-request-method": "GET"}
            preflight = CLIENT.options(url, headers=asked)
            assert (preflight.status_code, permissions(preflight)) == (405, []), (origin, url)
            method, good = ("POST", 201) if url.endswith("/tickets") else ("GET", 200)
            for status, headers in ((good, viewer(origin=origin)), (403, cookie(origin=origin))):
                with CLIENT.stream(method, url, headers=headers) as answer:
                    assert answer.status_code == status, (origin, url)
                    assert permissions(answer) == [], (origin, url)
    for url in (f"{own}/livez", f"{own}/nowhere"):
        assert permissions(CLIENT.get(url, headers={"origin": own})) == []
