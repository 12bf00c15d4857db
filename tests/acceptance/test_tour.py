"""The tour: what the relay does, in the order in which a newcomer meets it. Read this file first."""

from tests.acceptance.running import CONVERSATION, USER, Relay, Viewer, viewer
from tests.factories import new_run_id, progress


def test_an_event_reaches_a_live_viewer_and_the_archive_under_one_id(relay: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    watching = Viewer(relay, run_id)
    (initial,) = watching.wait(1)
    assert initial["type"] == "initial"
    assert initial["data"]["run"]["status"] == "pending"
    assert initial["data"]["paper_generation_progress"] == []

    event = progress()
    relay.progress(run_id, event)

    (_, live) = watching.wait(2)
    assert live["type"] == "paper_generation_progress"
    assert {name: live["data"][name] for name in event} == event
    assert live["data"]["run_id"] == run_id
    assert watching.position == live["data"]["id"]

    (archived,) = relay.archived(run_id, 1)
    assert archived == live["data"]
    watching.cut()


def test_a_finished_run_ends_its_stream_and_stays_ended(relay: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    relay.progress(run_id, progress())
    watching = Viewer(relay, run_id)
    watching.wait(1)

    relay.finish(run_id)

    last = watching.ended()[-1]
    assert last == {"type": "complete", "data": {"status": "completed"}}
    again = Viewer(relay, run_id, position=watching.position)
    assert again.ended() == []
    assert again.status == 204


def test_a_viewer_that_was_away_gets_what_it_missed_and_nothing_else(relay: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    events = [progress() for _ in range(6)]
    first = Viewer(relay, run_id)
    first.wait(1)
    for event in events[:2]:
        relay.progress(run_id, event)
    first.wait(3)
    position = first.cut()
    for event in events[2:5]:
        relay.progress(run_id, event)

    second = Viewer(relay, run_id, position=position)
    second.wait(3)
    relay.progress(run_id, events[5])

    seen = [message["data"]["details"] for message in second.wait(4)]
    assert seen == [event["details"] for event in events[2:]]
    second.cut()


def test_history_says_where_the_run_stands_and_can_be_paged(relay: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    for number in range(5):
        relay.progress(run_id, progress(number, step="paper_writeup", progress=number / 10))
    whole = relay.archived(run_id, 5)

    answer = relay.history(run_id).json()
    assert (answer["run_id"], answer["latest_step"], answer["overall_progress"]) == (
        run_id,
        "paper_writeup",
        0.4,
    )
    page = relay.history(run_id, limit=2).json()["events"]
    rest = relay.history(run_id, after=page[-1]["id"]).json()["events"]
    assert page + rest == whole


def test_only_the_owner_sees_a_run_and_only_the_pipeline_writes(relay: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    history = f"{relay.run_url(run_id)}/paper-generation-progress"

    assert relay.http.get(history).status_code == 401
    stranger = relay.http.get(history, headers=viewer(USER + 1))
    assert (stranger.status_code, stranger.json()["detail"]) == (403, "You do not own this conversation")
    taken = {"conversation_id": CONVERSATION, "user_id": USER + 1}
    assert relay.http.put(f"/research-pipeline/runs/{run_id}", json=taken).status_code == 409
    forged = relay.post(
        "/paper-generation-progress", {"run_id": run_id, "event": progress()}, authorization="Bearer guess"
    )
    assert forged.status_code == 401
    assert forged.headers["content-type"] == "application/problem+json"
