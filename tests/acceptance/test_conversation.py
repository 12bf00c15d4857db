"""All runs of a conversation on one connection: no gap, no repeat, whatever happens to it."""

import itertools
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from relay.settings import Settings
from relay.stream.entry import NewEvent
from relay.stream.keys import ShardKeys, StreamId, event_id, shard_of_run
from tests.acceptance.running import CLIENT, EVENTS, USER, Relay, Viewer, relay_up, viewer
from tests.factories import entry, new_run_id, progress
from tests.sql import sql
from tests.waiting import wait_until

conversations = itertools.count(1000)
SHARDS = 3
REPLAY_PAGE = Settings.model_fields["replay_page"].default


@pytest.fixture
def conversation() -> int:
    return next(conversations)


def url(relay: Relay, conversation: int) -> str:
    return f"{relay.url}/conversations/{conversation}/events"


def follow(relay: Relay, conversation: int, position: int | None = None) -> Viewer:
    return Viewer(relay, "", position=position, url=url(relay, conversation))


def claim(relay: Relay, conversation: int, count: int) -> list[str]:
    runs = [new_run_id() for _ in range(count)]
    for run_id in runs:
        relay.claim(run_id, conversation)
    return runs


def send(relay: Relay, runs: list[str], rounds: int) -> None:
    """That many events to each run, all runs in turn."""
    for _ in range(rounds):
        items = [
            {"run_id": run_id, "kind": "paper_generation_progress", "event": progress()} for run_id in runs
        ]
        assert relay.http.post(f"{EVENTS}/batch", json=items).status_code == 204


def seen(*connections: Viewer) -> dict[str, list[int]]:
    """The ids of each run's events over all connections, as a page would hold them."""
    held: dict[str, list[int]] = defaultdict(list)
    for connection in connections:
        for _, message in connection.messages:
            if message["type"] == "initial":
                held[message["run_id"]] = [
                    event["id"] for event in message["data"]["paper_generation_progress"]
                ]
            elif message["type"] == "paper_generation_progress":
                assert message["data"]["run_id"] == message["run_id"]
                held[message["run_id"]].append(message["data"]["id"])
    return held


def archived(relay: Relay, conversation: int, run_id: str, count: int) -> list[int]:
    path = f"{relay.url}/conversations/{conversation}/idea/research-run/{run_id}/paper-generation-progress"

    def ids() -> list[int] | None:
        answer = CLIENT.get(path, headers=viewer())
        found = [event["id"] for event in answer.json()["events"]] if answer.status_code == 200 else []
        return found if len(found) >= count else None

    return wait_until(ids, f"{count} archived events", 60) or []


def count(*connections: Viewer) -> int:
    return sum(map(len, seen(*connections).values()))


def positions(connection: Viewer) -> list[int]:
    """The ids of the blocks that move the position."""
    return [id for id, _ in connection.messages if id]


def test_fifty_runs_on_one_connection_that_is_cut_and_resumed(service: Relay, conversation: int) -> None:
    runs = claim(service, conversation, 50)
    send(service, runs, 2)
    first = follow(service, conversation)
    initials = first.wait(50)
    assert [message["type"] for message in initials] == ["initial"] * 50
    assert {message["run_id"] for message in initials} == set(runs)

    sender = threading.Thread(target=send, args=(service, runs, 20))
    sender.start()
    connections = [first]
    for goal in (300, 500, 800):
        wait_until(lambda goal=goal: count(*connections) >= goal, "more events")  # type: ignore[misc]
        position = connections[-1].cut()
        connections.append(follow(service, conversation, position))
    sender.join()
    wait_until(lambda: count(*connections) >= 50 * 22, "all events", 30)
    connections[-1].cut()

    held = seen(*connections)
    for run_id in runs:
        assert held[run_id] == archived(service, conversation, run_id, 22)
    for connection in connections:
        assert positions(connection) == sorted(positions(connection))
    types = [message["type"] for connection in connections[1:] for _, message in connection.messages]
    assert "initial" not in types or types.count("initial") <= 3 * 50, "only runs that were new then"


def test_a_connection_that_is_cut_in_its_beginning_begins_anew(relay: Relay, conversation: int) -> None:
    runs = claim(relay, conversation, 3)
    send(relay, runs, 1)
    whole = follow(relay, conversation)
    whole.wait(3)
    ids = [id for id, _ in whole.messages]
    assert ids[:2] == [0, 0], "only the last one can be resumed from"
    assert (ids[2] or 0) >= max(seen(whole)[runs[-1]])
    again = follow(relay, conversation, 0)
    assert [message["type"] for message in again.wait(3)] == ["initial"] * 3
    whole.cut()
    again.cut()


def test_a_run_that_is_made_known_later_joins_with_its_initial(relay: Relay, conversation: int) -> None:
    claim(relay, conversation, 1)
    watching = follow(relay, conversation)
    watching.wait(1)
    (late,) = claim(relay, conversation, 1)
    send(relay, [late], 3)
    wait_until(lambda: len(seen(watching)[late]) == 3, "the new run's events")
    send(relay, [late], 2)
    wait_until(lambda: len(seen(watching)[late]) == 5, "its news")
    assert seen(watching)[late] == archived(relay, conversation, late, 5)
    watching.cut()


def test_the_end_of_a_run_is_one_message_among_others(relay: Relay, conversation: int) -> None:
    one, other = claim(relay, conversation, 2)
    watching = follow(relay, conversation)
    watching.wait(2)
    relay.finish(one)
    send(relay, [one, other], 1)
    messages = watching.wait(5)[2:]
    assert messages[0] == {"type": "complete", "run_id": one, "data": {"status": "completed"}}
    assert [(message["type"], message["run_id"]) for message in messages[1:]] == [
        ("paper_generation_progress", one),
        ("paper_generation_progress", other),
    ]
    watching.cut()


@pytest.mark.parametrize("position", ["abc", "-1", "1.2", "1..2", "9" * 30])
def test_a_malformed_position_is_refused(relay: Relay, conversation: int, position: str) -> None:
    claim(relay, conversation, 1)
    answer = CLIENT.get(url(relay, conversation), headers=viewer() | {"last-event-id": position})
    assert (answer.status_code, answer.json()["type"]) == (
        400,
        "urn:rp-relay:problem:malformed-last-event-id",
    )
    assert "joined by dots" in answer.json()["detail"]


def test_a_position_beyond_the_log_begins_anew(relay: Relay, conversation: int) -> None:
    claim(relay, conversation, 2)
    watching = follow(relay, conversation, 2**53 - 1)
    assert [message["type"] for message in watching.wait(2)] == ["initial"] * 2
    watching.cut()


def test_only_the_owner_sees_a_conversation(relay: Relay, conversation: int) -> None:
    claim(relay, conversation, 1)

    def ask(number: Any, headers: dict[str, str]) -> tuple[int, str]:
        answer = CLIENT.get(f"{relay.url}/conversations/{number}/events", headers=headers)
        return answer.status_code, answer.json()["detail"]

    assert ask(0, {}) == (400, "conversation_id must be positive")
    assert ask(conversation, {})[0] == 401
    assert ask(999_999, viewer()) == (404, "Conversation not found")
    assert ask(conversation, viewer(USER + 1)) == (403, "You do not own this conversation")
    head = CLIENT.head(url(relay, conversation), headers=viewer())
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


@pytest.fixture(scope="module")
def sharded(directory: Path) -> Iterator[Relay]:
    """A product with three shards, whose web process is killed."""
    with relay_up(directory / "sharded", RELAY_SHARDS=str(SHARDS), RELAY_KEEP_ALIVE_S="1") as made:
        yield made


class Sharded(Viewer):
    """A viewer whose position has a part for each shard."""

    def _take(self, block: list[str]) -> None:
        self.raw.append("\n".join(block))
        fields = dict(line.split(": ", 1) for line in block)
        if "data" in fields:
            self.place = fields["id"]
            super()._take([f"data: {fields['data']}"])


def test_a_follower_needs_nobody_else_in_the_shards_that_its_runs_are_not_in(
    sharded: Relay, conversation: int
) -> None:
    claim(sharded, conversation, 1)
    watching = Sharded(sharded, "", url=url(sharded, conversation)).connected()
    assert watching.status == 200
    watching.wait(1)
    watching.cut()


def test_a_conversation_without_runs_is_kept_alive_until_it_has_one(
    sharded: Relay, conversation: int
) -> None:
    with sql(sharded.database_url) as cursor:
        cursor.execute("INSERT INTO conversations (id, user_id) VALUES (%s, %s)", (conversation, USER))
    watching = Sharded(sharded, "", url=url(sharded, conversation)).connected()
    assert watching.status == 200
    wait_until(lambda: len(watching.raw) > 3, "keep-alives")
    assert not watching.messages
    (late,) = claim(sharded, conversation, 1)
    assert watching.wait(1)[0]["run_id"] == late
    send(sharded, [late], 1)
    wait_until(lambda: len(seen(watching)[late]) == 1, "its news")
    watching.cut()


def test_over_several_shards_the_position_has_a_part_for_each(sharded: Relay, conversation: int) -> None:
    runs = claim(sharded, conversation, 12)
    send(sharded, runs, 2)
    first = Sharded(sharded, "", url=url(sharded, conversation))
    first.wait(12)
    send(sharded, runs, 3)
    wait_until(lambda: count(first) == 12 * 5, "live events")
    assert len(first.place.split(".")) == 3
    sharded.kill("relay", "serve", how=signal.SIGKILL)
    send_when_back(sharded, runs)
    query = f"&last_event_id={first.place}"
    second = Sharded(sharded, "", url=url(sharded, conversation), query=query)
    wait_until(lambda: count(first, second) == 12 * 6, "what was missed")
    held = seen(first, second)
    for run_id in runs:
        assert held[run_id] == archived(sharded, conversation, run_id, 6)
    second.cut()


def test_a_quiet_shard_does_not_bring_the_runs_of_others_again(sharded: Relay, conversation: int) -> None:
    quiet, busy = (
        next(run for run in iter(new_run_id, "") if shard_of_run(run, SHARDS) == shard) for shard in (0, 1)
    )
    for run_id, known_s_ago in ((quiet, 3600), (busy, 300)):
        sharded.claim(run_id, conversation)
        with sql(sharded.database_url) as cursor:
            cursor.execute(
                "UPDATE research_pipeline_runs SET created_at = to_timestamp(%s) WHERE run_id = %s",
                [time.time() - known_s_ago, run_id],
            )
    send(sharded, [quiet, busy], 1)
    first = Sharded(sharded, "", url=url(sharded, conversation))
    first.wait(2)
    first.cut()
    # As if nothing had happened in the first shard for half an hour: what it holds of then comes again.
    _, *others = first.place.split(".")
    half_an_hour_ago = StreamId(int((time.time() - 1800) * 1000), 0)
    place = ".".join([str(event_id(half_an_hour_ago, 0)), *others])
    send(sharded, [busy], 1)
    second = Sharded(sharded, "", url=url(sharded, conversation), query=f"&last_event_id={place}")
    types = [(message["type"], message["run_id"]) for message in second.wait(2)]
    assert types == [("paper_generation_progress", quiet), ("paper_generation_progress", busy)]
    second.cut()


def send_when_back(relay: Relay, runs: list[str]) -> None:
    def sent() -> bool:
        try:
            send(relay, runs, 1)
        except httpx.TransportError:
            return False
        return True

    wait_until(sent, "the web process to be back")


def test_a_stream_ends_where_the_conversation_becomes_another_s(service: Relay, conversation: int) -> None:
    claim(service, conversation, 1)
    watching = follow(service, conversation)
    watching.wait(1)
    with sql(service.database_url) as cursor:
        cursor.execute("UPDATE conversations SET user_id = %s WHERE id = %s", [USER + 1, conversation])
    watching.ended()
    again = CLIENT.get(f"{service.url}/conversations/{conversation}/events", headers=viewer())
    assert again.status_code == 403


def test_events_that_this_version_shows_to_nobody_hold_up_none(relay: Relay, conversation: int) -> None:
    """A page of them moves the place as any other does."""
    (run_id,) = claim(relay, conversation, 1)
    send(relay, [run_id], 1)
    first = follow(relay, conversation)
    first.wait(1)
    position = first.cut()
    keys = ShardKeys(0)
    unheard_of = entry(NewEvent(run_id, "unheard_of", b"{}"))
    with closing(redis.Redis.from_url(relay.redis_url)) as client, client.pipeline() as all_of_them:
        info: Any = client.xinfo_stream(keys.run(run_id))
        newest = StreamId.parse(info["last-generated-id"])
        for place in range(1, REPLAY_PAGE + 1):
            ordinal = newest.ordinal + place
            all_of_them.xadd(keys.run(run_id), unheard_of, id=str(StreamId.from_ordinal(ordinal)))
        all_of_them.execute()
    send(relay, [run_id], 1)
    second = follow(relay, conversation, position)
    sent = archived(relay, conversation, run_id, 2)
    wait_until(lambda: seen(first, second)[run_id] == sent, "the event behind them")
    second.cut()
