"""The live endpoint on the wire, under our own protocol class and under a plain ASGI server."""

import json
import re
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.raw import EVERYWHERE
from tests.acceptance.running import CLIENT, CONVERSATION, EVENTS, USER, Relay, Viewer, relay_up, viewer
from tests.factories import new_run_id, progress
from tests.waiting import wait_until


@pytest.fixture
def run_id(service: Relay) -> str:
    made = new_run_id()
    service.claim(made)
    return made


def get(service: Relay, run_id: str, headers: dict[str, str]) -> httpx.Response:
    return CLIENT.get(f"{service.run_url(run_id)}/events", headers=viewer() | headers, timeout=10)


def test_the_plain_framing_is_blocks_that_begin_with_data(service: Relay, run_id: str) -> None:
    service.progress(run_id, progress())
    watching = Viewer(service, run_id, resume=False).connected()
    service.progress(run_id, progress())
    service.finish(run_id)
    watching.ended()
    blocks = [block for block in watching.raw if not block.startswith(":")]
    assert [json.loads(block.removeprefix("data: "))["type"] for block in blocks] == [
        "initial",
        "paper_generation_progress",
        "complete",
    ]
    assert watching.raw[0].startswith(": ")
    assert re.search(r"^retry: [0-9]+$", watching.raw[0], re.MULTILINE)
    assert watching.clean_end


def test_the_resumable_framing_has_the_id_before_the_data(service: Relay, run_id: str) -> None:
    service.progress(run_id, progress())
    watching = Viewer(service, run_id).connected()
    service.progress(run_id, progress())
    service.finish(run_id)
    watching.ended()
    blocks = [block for block in watching.raw if not block.startswith(":")]
    assert all(re.fullmatch(r"id: [0-9]+\ndata: \{.*\}", block) for block in blocks)
    ids = [id or 0 for id, _ in watching.messages]
    first, second = watching.events()
    assert ids[:2] == [first["id"], second["id"]]
    assert ids == sorted(set(ids))


def test_initial_is_everything_that_happened_so_far(service: Relay, run_id: str) -> None:
    for number in range(3):
        service.progress(run_id, progress(number))
    watching = Viewer(service, run_id)
    (initial,) = watching.wait(1)
    assert list(initial["data"]) == [
        "run",
        "stage_progress",
        "logs",
        "substage_events",
        "artifacts",
        "events",
        "paper_generation_progress",
    ]
    assert initial["data"]["run"]["run_id"] == run_id
    assert initial["data"]["run"]["conversation_id"] == CONVERSATION
    assert initial["data"]["paper_generation_progress"] == service.archived(run_id, 3)
    watching.cut()


def test_the_query_resumes_as_the_header_does_and_the_header_wins(service: Relay, run_id: str) -> None:
    for number in range(4):
        service.progress(run_id, progress(number))
    service.finish(run_id)
    ids = [event["id"] for event in service.archived(run_id, 4)]
    by_query = Viewer(service, run_id, resume=False, query=f"last_event_id={ids[1]}")
    by_query.ended()
    both = Viewer(service, run_id, position=ids[2], query=f"&last_event_id={ids[0]}")
    both.ended()
    assert [id for id, _ in by_query.messages][:2] == ids[2:]
    assert [id for id, _ in both.messages][:1] == ids[3:]


@pytest.mark.parametrize("success", [True, False])
def test_who_comes_after_the_end_gets_everything_and_the_end(
    service: Relay, run_id: str, success: bool
) -> None:
    service.progress(run_id, progress())
    service.finish(run_id, success=success)
    late = Viewer(service, run_id)
    initial, complete = late.ended()
    status = "completed" if success else "failed"
    assert complete == {"type": "complete", "data": {"status": status}}
    assert initial["data"]["run"]["status"] == status
    assert [event["event_type"] for event in initial["data"]["events"]] == ["run_finished"]
    again = Viewer(service, run_id, position=late.position)
    again.ended()
    assert again.status == 204
    position = {"last-event-id": str(late.position)}
    answer = CLIENT.get(f"{service.run_url(run_id)}/events", headers=viewer() | position)
    assert EVERYWHERE.items() <= dict(answer.headers).items(), answer.status_code


def test_events_after_the_end_are_stored_and_shown_to_those_who_come_back(
    service: Relay, run_id: str
) -> None:
    service.progress(run_id, progress(1))
    service.finish(run_id)
    first = Viewer(service, run_id)
    first.ended()
    service.progress(run_id, progress(2))
    back = Viewer(service, run_id, position=first.position)
    news, complete = back.ended()
    assert (news["data"]["details"], complete["type"]) == ({"number": 2}, "complete")
    last = Viewer(service, run_id, position=back.position)
    last.ended()
    assert last.status == 204
    assert len(service.archived(run_id, 2)) == 2


def test_an_unknown_or_foreign_position_gets_a_fresh_initial(service: Relay, run_id: str) -> None:
    other = new_run_id()
    service.claim(other)
    service.progress(run_id, progress())
    service.progress(other, progress())
    (foreign,) = [event["id"] for event in service.archived(other, 1)]
    for position in (1, foreign, 2**53 - 1):
        watching = Viewer(service, run_id, position=position)
        assert watching.wait(1)[0]["type"] == "initial"
        watching.cut()


@pytest.mark.parametrize("position", ["abc", "-1", "1-2-3", "$", "+", "1" * 400, str(2**64)])
def test_a_malformed_position_is_refused(service: Relay, run_id: str, position: str) -> None:
    answer = get(service, run_id, {"last-event-id": position})
    assert (answer.status_code, answer.json()["type"]) == (
        400,
        "urn:rp-relay:problem:malformed-last-event-id",
    )
    assert position not in answer.text or len(position) < 3


def test_an_idle_stream_is_kept_alive(service: Relay, run_id: str) -> None:
    watching = Viewer(service, run_id)
    wait_until(lambda: watching.raw.count(": keep-alive") >= 2, "keep-alives")
    watching.cut()


def test_the_headers_keep_proxies_and_caches_out_of_the_way(service: Relay, run_id: str) -> None:
    for method in ("HEAD", "GET"):
        with CLIENT.stream(method, f"{service.run_url(run_id)}/events", headers=viewer()) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize(
    "path", ["/events", "/paper-generation-progress", "/logs", "", "/nothing-of-that-name"]
)
def test_every_answer_is_for_its_reader_alone(service: Relay, run_id: str, path: str) -> None:
    for headers in (viewer(), {}):
        with CLIENT.stream("GET", service.run_url(run_id) + path, headers=headers) as answer:
            assert EVERYWHERE.items() <= dict(answer.headers).items(), answer.status_code


@pytest.mark.parametrize("conversation", ["7.0", "%207", "+7", "0_7", "7e0", "seven"])
def test_every_route_reads_a_conversation_s_id_alike(service: Relay, run_id: str, conversation: str) -> None:
    run = f"{service.url}/conversations/{conversation}/idea/research-run/{run_id}"
    history = f"{run}/paper-generation-progress"
    for url in (history, f"{history}?limit=1", run, f"{run}/events"):
        answer = CLIENT.get(url, headers=viewer())
        assert (answer.status_code, answer.json()["detail"]) == (422, "conversation_id must be an integer")


def test_other_methods_and_types_are_refused(service: Relay, run_id: str) -> None:
    refused = CLIENT.post(f"{service.run_url(run_id)}/events", headers=viewer())
    assert (refused.status_code, set(refused.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})
    assert refused.headers["content-type"] == "application/problem+json"
    assert get(service, run_id, {"accept": "application/json"}).status_code == 406


@pytest.mark.parametrize("path", ["/events", "/paper-generation-progress"])
def test_the_checks_come_in_the_order_of_the_contract(service: Relay, run_id: str, path: str) -> None:
    def ask(conversation: Any, run: str, headers: dict[str, str]) -> tuple[int, str]:
        url = f"{service.url}/conversations/{conversation}/idea/research-run/{run}{path}"
        answer = CLIENT.get(url, headers=headers)
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.status_code, answer.json()["detail"]

    nobody: dict[str, str] = {}
    assert ask(0, "x", nobody) == (400, "conversation_id must be positive")
    assert ask(-5, "x", nobody) == (400, "conversation_id must be positive")
    assert ask(99, "x", nobody)[0] == 401
    assert ask(99, "x", {"authorization": "Bearer nonsense"})[0] == 401
    assert ask(99, run_id, viewer()) == (404, "Conversation not found")
    assert ask(10**30 - 1, run_id, viewer()) == (404, "Conversation not found")
    assert ask(CONVERSATION, "x", viewer(USER + 1)) == (403, "You do not own this conversation")
    for unknown in ("x", "%00", "%0a", "'%20OR%201=1--", "%25", "r" * 5000):
        assert ask(CONVERSATION, unknown, viewer()) == (404, "Research run not found")
    assert ask("abc", run_id, viewer())[0] == 422


def test_the_cookie_lets_a_page_in(service: Relay, run_id: str) -> None:
    token = viewer()["authorization"].removeprefix("Bearer ")
    answer = CLIENT.head(
        f"{service.run_url(run_id)}/events", headers={"cookie": f'prefs={{"a":1}}; relay_token={token}; b'}
    )
    assert answer.status_code == 200


def test_a_viewer_that_does_not_read_is_cut_and_hurts_nobody(relay: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    steady = Viewer(relay, run_id).connected()
    url = httpx.URL(f"{relay.run_url(run_id)}/events")
    with socket.create_connection((url.host, url.port or 80)) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        headers = "".join(f"{name}: {value}\r\n" for name, value in viewer().items())
        stalled.sendall(f"GET {url.path}?resume=true HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode())
        assert stalled.recv(12) == b"HTTP/1.1 200"
        big = progress(details={"text": "x" * 100_000})
        items = [{"run_id": run_id, "kind": "paper_generation_progress", "event": big}] * 50
        for _ in range(4):
            assert relay.http.post(f"{EVENTS}/batch", json=items).status_code == 204
        wait_until(lambda: len(steady.events()) == 200, "all events at the steady viewer")
        wait_until(lambda: is_cut(stalled), "the stalled viewer to be cut")
    steady.cut()


def is_cut(connection: socket.socket) -> bool:
    """Whether the peer has ended the connection, asked of the kernel without reading from it."""
    established = 1
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO) != established


def test_a_long_run_is_replayed_in_pages_without_a_gap(service: Relay, run_id: str) -> None:
    for _ in range(3):
        items = [
            {"run_id": run_id, "kind": "paper_generation_progress", "event": progress()} for _ in range(1000)
        ]
        assert service.http.post(f"{EVENTS}/batch", json=items).status_code == 204
    service.finish(run_id)
    whole = Viewer(service, run_id)
    whole.ended()
    events = whole.events()
    assert len(events) == 3000
    resumed = Viewer(service, run_id, position=events[10]["id"])
    resumed.ended()
    assert resumed.events() == events[11:]
    assert service.archived(run_id, 3000) == events


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shutdown_sends_everybody_off_to_come_back(place: Path, workers: int) -> None:
    with relay_up(place / "data", "--workers", str(workers)) as relay:
        run_id = new_run_id()
        relay.claim(run_id)
        relay.progress(run_id, progress(1))
        viewers = [Viewer(relay, run_id) for _ in range(200)]
        for watching in viewers:
            watching.wait(1)
        relay.kill("relay", "serve", how=signal.SIGTERM)
        for watching in viewers:
            watching.ended(8)
            assert watching.clean_end
            assert re.search(r"^retry: [0-9]+$", watching.raw[-1], re.MULTILINE)
        relay.progress(run_id, progress(2))
        back = Viewer(relay, run_id, position=viewers[0].position)
        assert back.wait(1)[0]["data"]["details"] == {"number": 2}
        back.cut()
