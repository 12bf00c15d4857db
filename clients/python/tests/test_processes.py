"""One run, many processes: forked, spawned, pooled, killed."""

from pathlib import Path

import pytest
from fake_relay import FakeRelay, Reply
from support import emitter_to, ends, event, pipeline, says, wait_until


def test_a_forked_child_sends_its_own_events_and_none_of_the_parents(
    relay: FakeRelay, tmp_path: Path
) -> None:
    relay.always = Reply(503)
    with pipeline("forks", relay.url, tmp_path) as process:
        says(process)
        wait_until(lambda: len(relay.requests) >= 2, "the parent to be sending")
        connections = relay.connections
        relay.always = None
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        stats = says(process)
        assert ends(process) == 0

    for name in ("before", "parent", "child"):
        assert relay.numbers(process=name) == list(range(100)), name
    assert len(relay.stored) == 300
    assert relay.connections > connections, "the child has a connection of its own"
    assert stats.endswith("0 0"), "the parent refused and dropped nothing"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_eight_workers_of_a_run_each_deliver_their_events_once_and_in_order(
    relay: FakeRelay, tmp_path: Path, method: str
) -> None:
    with pipeline("workers", relay.url, tmp_path, method) as process:
        assert ends(process, 60) == 0

    for worker in range(8):
        assert relay.numbers(worker=worker) == list(range(50))
    assert relay.numbers(worker="parent") == [0, 1]
    assert len(relay.stored) == 402


def test_a_pool_may_pass_the_emitter_with_every_task(relay: FakeRelay, tmp_path: Path) -> None:
    with pipeline("pool", relay.url, tmp_path) as process:
        says(process)
        assert ends(process, 60) == 0

    for worker in range(20):
        assert relay.numbers(worker=worker) == list(range(50))
    assert len(relay.stored) == 1000
    assert relay.connections <= 4, "one emitter in each process, however many tasks"


def test_what_a_killed_worker_left_is_sent_by_those_who_live(relay: FakeRelay, tmp_path: Path) -> None:
    relay.always = Reply(503)
    with pipeline("killed_children", relay.url, tmp_path) as process:
        says(process)
        relay.always = None
        wait_until(lambda: len(relay.stored) == 101, "the child's events")

    assert relay.numbers(process="child") == list(range(100))


def test_forks_in_the_midst_of_sending_hang_nobody(relay: FakeRelay, tmp_path: Path) -> None:
    with pipeline("fork_storm", relay.url, tmp_path) as process:
        waited_s = float(says(process).split()[1])
        assert ends(process) == 0

    assert relay.numbers(process="parent") == list(range(1000))
    for child in range(40):
        assert relay.numbers(child=child) == list(range(10))
    assert len(relay.stored) == 1400
    assert waited_s < 30, "a child that hangs would have taken its whole minute to exit"


def test_sending_imports_nothing_since_a_fork_would_catch_it_halfway(
    relay: FakeRelay, tmp_path: Path
) -> None:
    with pipeline("imports", relay.url.replace("127.0.0.1", "localhost"), tmp_path) as process:
        assert says(process) == "imported"


def test_a_child_does_not_hold_on_to_what_its_dead_parent_left(relay: FakeRelay, tmp_path: Path) -> None:
    relay.always = Reply(503)
    with pipeline("outlived", relay.url, tmp_path) as process:
        says(process)
        process.kill()
        ends(process)
        relay.always = None
        with emitter_to(relay, tmp_path) as emitter:
            emitter(event(100))
            wait_until(lambda: relay.numbers() == list(range(101)), "the parent's events, then the new one")
