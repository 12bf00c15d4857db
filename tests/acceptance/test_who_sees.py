"""Who may see: every route against another's viewer, cookies and scripts by origin, tickets, and the end of a
token."""

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric import ec

from relay.auth import mint_viewer_token
from tests.acceptance.conftest import ORIGIN, SIGNER
from tests.acceptance.raw import EVERYWHERE, PROBLEM
from tests.acceptance.running import CLIENT, CONVERSATION, USER, Relay, viewer
from tests.canaries import SECRET
from tests.factories import new_run_id, progress
from tests.sql import sql

OTHER_USER, OTHER_CONVERSATION = 4343, 4300
UNKNOWN_CONVERSATION = 987_655
"""Nobody makes a run of it known."""

MOVING_CONVERSATION = 4302
"""It becomes another user's."""

SMALL_CONVERSATION = 4301
"""It has one run, so that a stream fits into what a connection holds for a client that does not read yet."""

get, post = CLIENT.get, CLIENT.post


@pytest.fixture
def run_id(service: Relay) -> str:
    made = new_run_id()
    service.claim(made)
    return made


def cookie(**headers: str) -> dict[str, str]:
    return {"cookie": f"theme=dark; relay_token={mint_viewer_token(SECRET, USER, 60)}", **headers}


def token(**claims: Any) -> str:
    return jwt.encode({"sub": str(USER), "exp": int(time.time()) + 60, **claims}, SECRET, "HS256")


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def ticket_of(service: Relay, headers: dict[str, str]) -> str:
    answer = post(f"{service.url}/tickets", headers=headers)
    assert (answer.status_code, answer.json()["expires_in"]) == (201, 30)
    assert answer.headers["cache-control"] == "no-store"
    return str(answer.json()["ticket"])


@contextmanager
def stream(url: str, headers: dict[str, str]) -> Iterator[tuple[httpx.Response, Iterator[dict[str, Any]]]]:
    """An open stream, and its messages."""
    with CLIENT.stream("GET", url, headers=headers, timeout=20) as answer:
        lines = answer.iter_lines()
        yield answer, (json.loads(line[6:]) for line in lines if line.startswith("data: "))


def test_what_is_another_s_looks_the_same_whether_it_exists_or_not(service: Relay, relay: Relay) -> None:
    """Two tenants against each route: nothing tells a stranger which runs or conversations there are."""
    paths = [path for path in relay.http.get("/openapi.json").json()["paths"] if "conversation_id" in path]
    assert len(paths) > 5
    theirs, mine = new_run_id(), new_run_id()
    service.claim(theirs)
    service.progress(theirs, progress())
    service.claim(mine, OTHER_CONVERSATION, OTHER_USER)
    stranger = viewer(OTHER_USER)

    def seen(path: str, conversation: int, run: str) -> tuple[int, bytes, list[tuple[str, str]]]:
        place = path.format(conversation_id=conversation, run_id=run)
        answer = get(service.url + place, headers=stranger)
        told = sorted(header for header in answer.headers.items() if header[0] != "date")
        return answer.status_code, answer.content, told

    for path in paths:
        foreign = {str(seen(path, CONVERSATION, run)) for run in (theirs, mine, "no-such-run", "%00")}
        nowhere = {str(seen(path, 987_654, run)) for run in (theirs, mine, "no-such-run", "%00")}
        assert (len(foreign), len(nowhere)) == (1, 1), path
        assert seen(path, CONVERSATION, theirs)[0] == 403
        assert seen(path, 987_654, theirs)[0] == 404
        if "{run_id}" in path:
            hidden = {str(seen(path, OTHER_CONVERSATION, run)) for run in (theirs, "no-such-run", "%00")}
            assert len(hidden) == 1, path
            assert seen(path, OTHER_CONVERSATION, theirs)[0] == 404


def origins(service: Relay) -> list[tuple[int, dict[str, str]]]:
    own = httpx.URL(service.url)
    return [
        (200, {}),
        (200, {"origin": service.url}),
        (200, {"origin": f"https://{own.host}:{own.port}"}),
        (200, {"origin": ORIGIN}),
        (200, {"sec-fetch-site": "same-origin"}),
        (200, {"sec-fetch-site": "none"}),
        (403, {"sec-fetch-site": "cross-site"}),
        (403, {"sec-fetch-site": "same-site"}),
        (403, {"origin": "null"}),
        (403, {"origin": ""}),
        (403, {"origin": "https://evil.example"}),
        (403, {"origin": f"{ORIGIN}.evil.example"}),
        (403, {"origin": "https://evil-app.example.com"}),
        (403, {"origin": "https://example.com"}),
        (403, {"origin": ORIGIN.replace("https", "http")}),
        (403, {"origin": f"{ORIGIN}:8443"}),
        (403, {"origin": f"{service.url}.evil.example"}),
        (403, {"origin": f"{service.url}0"}),
        (403, {"origin": f"http://{own.host}"}),
        (403, {"origin": f"file://{own.host}:{own.port}"}),
        (403, {"origin": f"{own.host}:{own.port}"}),
    ]


def test_the_cookie_is_taken_from_known_origins_alone(service: Relay, run_id: str) -> None:
    history = f"{service.run_url(run_id)}/paper-generation-progress"
    for status, headers in origins(service):
        answer = get(history, headers=cookie(**headers))
        assert answer.status_code == status, headers
        foreign = headers.get("origin") != ORIGIN
        assert ("access-control-allow-origin" not in answer.headers) == foreign, headers
        assert status == 200 or answer.headers["content-type"] == PROBLEM
        ticket = post(f"{service.url}/tickets", headers=cookie(**headers))
        assert ticket.status_code == (201 if status == 200 else status), headers
        assert EVERYWHERE.items() <= dict(ticket.headers).items()
        assert get(history, headers=viewer() | headers).status_code == 200
    assert get(f"{service.run_url(run_id)}/events", headers=cookie(origin="null")).status_code == 403


def test_a_script_of_a_listed_origin_reads_streams_and_refusals(service: Relay, run_id: str) -> None:
    with stream(f"{service.run_url(run_id)}/events", cookie(origin=ORIGIN)) as (answer, messages):
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers.get_list("vary") == ["origin"]
        assert next(messages)["type"] == "initial"
        service.progress(run_id, progress(5))
        assert next(messages)["data"]["details"] == {"number": 5}
    refused = get(f"{service.run_url(run_id)}/events", headers={"origin": ORIGIN})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)
    missing = get(f"{service.url}/nowhere", headers={"origin": ORIGIN})
    assert (missing.status_code, missing.headers["access-control-allow-origin"]) == (404, ORIGIN)


def test_browsers_that_ask_first_are_told_what_is_permitted(service: Relay, run_id: str) -> None:
    def ask(origin: str) -> httpx.Response:
        asked = {"origin": origin, "access-control-request-method": "GET"}
        return CLIENT.options(f"{service.run_url(run_id)}/events", headers=asked)

    permitted = ask(ORIGIN)
    assert permitted.status_code == 204
    assert permitted.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in permitted.headers["access-control-allow-headers"]
    assert "PUT" not in permitted.headers["access-control-allow-methods"]
    for origin in ("https://evil.example", "null", "*", f"{ORIGIN}.evil.example"):
        refused = ask(origin)
        assert (refused.status_code, refused.headers["content-type"]) == (405, PROBLEM)
        assert not [name for name in refused.headers if name.startswith("access-control")]


def test_a_token_of_the_identity_provider_is_as_good(service: Relay, run_id: str) -> None:
    def status(key: ec.EllipticCurvePrivateKey, **claims: Any) -> int:
        present = {"sub": str(USER), "exp": int(time.time()) + 60, **claims}
        signed = bearer(jwt.encode(present, key, "ES256", headers={"kid": "2026"}))
        return get(service.run_url(run_id), headers=signed).status_code

    assert status(SIGNER) == 200
    assert status(SIGNER, sub=str(OTHER_USER)) == 403
    assert status(SIGNER, exp=int(time.time()) - 1) == 401
    assert status(ec.generate_private_key(ec.SECP256R1())) == 401


def test_a_ticket_of_one_worker_is_good_at_another_and_then_at_none(relay: Relay, plain: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    ticket = ticket_of(relay, viewer())
    with stream(f"{plain.run_url(run_id)}/events?ticket={ticket}", {}) as (answer, _):
        assert answer.status_code == 200
    for service in (relay, plain):
        assert get(f"{service.run_url(run_id)}/events?ticket={ticket}").status_code == 401


def test_a_ticket_opens_one_stream(service: Relay, run_id: str, directory: Path) -> None:
    for path in (f"{service.run_url(run_id)}/events", f"{service.url}/conversations/{CONVERSATION}/events"):
        ticket = ticket_of(service, viewer())
        for _ in range(2):
            assert CLIENT.head(f"{path}?ticket={ticket}").status_code == 200, "which opens none"
        with stream(f"{path}?ticket={ticket}", {}) as (answer, messages):
            assert answer.status_code == 200
            assert next(messages)["type"] == "initial"
        again = get(f"{path}?ticket={ticket}")
        assert (again.status_code, again.headers["content-type"]) == (401, PROBLEM)
        assert again.json()["detail"].startswith("The ticket is used, expired or not valid; ")
        assert CLIENT.head(f"{path}?ticket={ticket}").status_code == 401
        # Another server's own log of requests is its operator's: see `create_app`.
        logs = [log for log in directory.rglob("*.log") if log.name != "plain.log"]
        assert not [log for log in logs if ticket in log.read_text(errors="replace")]


def test_a_ticket_is_for_streams_of_its_own_user_and_makes_no_tickets(service: Relay, run_id: str) -> None:
    ticket = ticket_of(service, viewer())
    for method, url in (
        ("GET", f"{service.run_url(run_id)}/paper-generation-progress"),
        ("GET", service.run_url(run_id)),
        ("POST", f"{service.url}/tickets"),
    ):
        assert CLIENT.request(method, f"{url}?ticket={ticket}").status_code == 401
    with stream(f"{service.run_url(run_id)}/events?ticket={ticket}", {}) as (answer, _):
        assert answer.status_code == 200
    stranger = ticket_of(service, viewer(OTHER_USER))
    assert get(f"{service.run_url(run_id)}/events?ticket={stranger}").status_code == 403
    for wrong in ("", "x", "relay:{0}:log", "%00", "a" * 10_000):
        assert get(f"{service.run_url(run_id)}/events?ticket={wrong}").status_code == 401


def test_of_many_who_come_with_one_ticket_one_is_let_in(service: Relay) -> None:
    run_id = new_run_id()
    service.claim(run_id)
    service.finish(run_id)  # so that each answer has an end
    url = f"{service.run_url(run_id)}/events?ticket={ticket_of(service, viewer())}"
    with ThreadPoolExecutor(10) as pool:
        statuses = list(pool.map(lambda _: get(url, timeout=20).status_code, range(10)))
    assert sorted(statuses) == [200, *[401] * 9]


def test_a_ticket_is_kept_for_half_a_minute_and_not_as_itself(service: Relay) -> None:
    client = redis.Redis.from_url(service.redis_url)
    before = set(client.keys())
    ticket = ticket_of(service, viewer())
    (key,) = set(client.keys()) - before
    assert 25 <= client.ttl(key) <= 30
    assert ticket not in f"{key!r} {client.get(key)!r}"
    client.close()


def test_a_stream_ends_with_its_token_and_says_so(relay: Relay, plain: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id, SMALL_CONVERSATION)
    short = bearer(token(exp=math.ceil(time.time()) + 3))
    with ExitStack() as stack:
        opened = []
        for service in (relay, plain):
            conversation = f"{service.url}/conversations/{SMALL_CONVERSATION}"
            for above in (f"{conversation}/idea/research-run/{run_id}", conversation):
                ticket = f"{above}/events?ticket={ticket_of(service, short)}"
                for url, headers in ((f"{above}/events", short), (ticket, {})):
                    opened.append((url, headers, stack.enter_context(stream(url, headers))))
        for url, headers, (answer, messages) in opened:
            *_, last = messages
            assert answer.status_code == 200
            assert last["type"] == "error"
            assert "expired" in last["data"]
            assert get(url, headers=headers).status_code == 401


def test_a_stream_ends_once_its_run_is_another_s_and_others_go_on(relay: Relay, plain: Relay) -> None:
    """However the run changes hands: with its conversation, or by itself."""
    moved, given, kept = new_run_id(), new_run_id(), new_run_id()
    for run_id, conversation in ((moved, MOVING_CONVERSATION), (given, CONVERSATION), (kept, CONVERSATION)):
        relay.claim(run_id, conversation)
    with ExitStack() as stack:

        def opened(service: Relay, conversation: int, run_id: str) -> tuple[str, Iterator[dict[str, Any]]]:
            url = f"{service.url}/conversations/{conversation}/idea/research-run/{run_id}/events"
            _, messages = stack.enter_context(stream(url, viewer()))
            assert next(messages)["type"] == "initial"
            return url, messages

        lost = [opened(service, MOVING_CONVERSATION, moved) for service in (relay, plain)]
        lost += [opened(service, CONVERSATION, given) for service in (relay, plain)]
        others = [opened(service, CONVERSATION, kept) for service in (relay, plain)]
        with sql(relay.database_url) as cursor:
            cursor.execute(
                "UPDATE conversations SET user_id = user_id + 1 WHERE id = %s", [MOVING_CONVERSATION]
            )
            runs = "UPDATE research_pipeline_runs SET conversation_id = %s WHERE run_id = %s"
            cursor.execute(runs, [MOVING_CONVERSATION, given])
        for url, messages in lost:
            *_, last = messages
            assert (last["type"], "not yours" in last["data"]) == ("error", True)
            assert get(url, headers=viewer()).status_code in (403, 404)
        relay.progress(kept, progress(5))
        for _, messages in others:
            assert next(messages)["data"]["details"] == {"number": 5}


def test_a_token_that_names_runs_needs_no_owner_in_the_database(service: Relay) -> None:
    mine, other = new_run_id(), new_run_id()
    headers = bearer(token(runs=[mine]))
    service.progress(mine, progress(3))
    above = f"{service.url}/conversations/{UNKNOWN_CONVERSATION}"
    path = f"{above}/idea/research-run"
    with (
        stream(f"{path}/{mine}/events", headers) as (_, one),
        stream(f"{above}/events", headers) as (_, all_of_them),
    ):
        initial = next(one)["data"]
        assert initial["paper_generation_progress"][0]["details"] == {"number": 3}
        assert initial["run"]["status"] == "pending"
        assert next(all_of_them)["run_id"] == mine
        service.finish(mine)
        assert [message["type"] for message in one][-1] == "complete"
    for wrong in (other, "%00"):
        assert get(f"{path}/{wrong}", headers=headers).json()["detail"] == "Research run not found"
    assert get(f"{service.url}/conversations/0/events", headers=headers).status_code == 400
    assert get(f"{path}/{mine}", headers=viewer()).status_code == 404
