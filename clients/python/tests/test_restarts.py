"""A pipeline that is killed loses nothing that was on disk, and doubles nothing."""

from contextlib import ExitStack
from pathlib import Path

from fake_relay import FakeRelay, Reply
from support import SWIFT, emitter_to, ends, event, files_in, pipeline, says, wait_until

from rp_relay_client import Emitter, Settings


def leaves(url: str, spool: Path, count: int) -> None:
    """A pipeline is killed once it has spooled so many events."""
    with pipeline("spools", url, spool, count) as process:
        assert says(process).startswith("spooled")
        process.kill()
        ends(process)


def test_what_was_spooled_when_the_process_was_killed_is_sent_first_by_the_next(
    relay: FakeRelay, tmp_path: Path
) -> None:
    relay.down()
    leaves(relay.url, tmp_path, 1000)
    relay.up()

    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(1000))
        assert emitter.flush(20)
        assert emitter.stats().sent == 1001

    assert relay.numbers() == list(range(1001))
    assert files_in(tmp_path / relay_directory(tmp_path)) == []


def test_a_batch_under_way_when_the_process_was_killed_keeps_its_key(
    relay: FakeRelay, tmp_path: Path
) -> None:
    relay.always = Reply(503, stores=True)
    with pipeline("spools", relay.url, tmp_path, 100) as process:
        says(process)
        wait_until(lambda: len(relay.stored) == 100 or len(relay.requests) > 3, "the batch to be stored")
        process.kill()
        ends(process)
    relay.always = None

    with emitter_to(relay, tmp_path, Settings(batch_events=1, batch_interval_s=0)) as emitter:
        emitter(event(100))
        assert emitter.flush(20)

    assert relay.numbers() == list(range(101))
    payloads = {request.key: request.body for request in relay.requests}
    assert all(payloads[request.key] == request.body for request in relay.requests)


def test_a_pipeline_killed_again_and_again_loses_only_what_was_not_yet_on_disk(
    relay: FakeRelay, tmp_path: Path
) -> None:
    relay.replies.extend(
        reply for _ in range(20) for reply in (Reply(), Reply(503), Reply(cut=True, stores=True))
    )
    on_disk: set[int] = set()
    for life in range(5):
        begin = life * 100_000
        with pipeline("streams", relay.url, tmp_path, begin) as process:
            last = begin
            while last < begin + 300:
                last = int(says(process))
            process.kill()
            ends(process)
        on_disk.update(range(begin, last + 1))

    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(900_000))
        assert emitter.flush(20)

    numbers = relay.numbers()
    assert numbers == sorted(numbers), "in order, over all lives"
    assert len(numbers) == len(set(numbers)), "nothing twice"
    assert on_disk <= set(numbers), "nothing lost"


def test_of_many_that_start_at_once_one_sends_what_was_left(relay: FakeRelay, tmp_path: Path) -> None:
    relay.down()
    for _ in range(4):
        leaves(relay.url, tmp_path, 200)
    relay.up()

    with ExitStack() as stack:
        started = [stack.enter_context(pipeline("resumes", relay.url, tmp_path)) for _ in range(4)]
        wait_until(lambda: len(relay.stored) >= 800, "all to be sent")
        assert [ends(process) for process in started] == [0] * 4

    assert len(relay.stored) == 800
    pids = {item["event"]["details"]["pipeline"] for item in relay.stored}
    for pid in pids:
        assert relay.numbers(pipeline=pid) == list(range(200))


def test_the_spool_of_a_living_process_is_left_alone(relay: FakeRelay, tmp_path: Path) -> None:
    relay.down()
    with pipeline("spools", relay.url, tmp_path, 100) as process:
        says(process)
        with emitter_to(relay, tmp_path) as emitter:
            emitter(event(0, pipeline="other"))
            wait_until(lambda: emitter.stats().spooled == 1, "its own event only")
            relay.up()
            assert emitter.flush(20)
            assert emitter.stats() == (0, 0, 1, 0, 0)


def test_the_end_of_the_program_sends_what_waits(relay: FakeRelay, tmp_path: Path) -> None:
    with pipeline("ends", relay.url, tmp_path, 2000) as process:
        assert ends(process) == 0

    assert relay.numbers() == list(range(2000))


def test_the_end_of_the_program_is_not_held_up_for_long_by_a_relay_that_is_away(
    relay: FakeRelay, tmp_path: Path
) -> None:
    relay.down()
    with pipeline("ends", relay.url, tmp_path, 2000) as process:
        assert ends(process, 15) == 0
    relay.up()

    with emitter_to(relay, tmp_path) as emitter, emitter:
        wait_until(lambda: len(relay.stored) == 2000, "what the other one left")
    assert relay.numbers() == list(range(2000))


def test_half_a_line_at_the_end_of_a_spool_was_never_accepted(relay: FakeRelay, tmp_path: Path) -> None:
    relay.down()
    leaves(relay.url, tmp_path, 10)
    (segment,) = tmp_path.rglob("*.ndjson")
    with segment.open("ab") as file:
        file.write(b'{"run_id":"run-1","ki')
    relay.up()

    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(10))
        assert emitter.flush(20)
    assert relay.numbers() == list(range(11))


def test_what_waits_for_another_relay_is_not_sent_to_this_one(relay: FakeRelay, tmp_path: Path) -> None:
    leaves("http://127.0.0.1:9", tmp_path, 10)

    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(0, pipeline="here"))
        assert emitter.flush(20)
    assert len(relay.stored) == 1
    assert len(list(tmp_path.rglob("*.ndjson"))) == 1


def test_what_else_lies_in_the_spool_is_nobodys_business(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(0))
        assert emitter.flush(20)
    place = tmp_path / relay_directory(tmp_path)
    (place / "notes.txt").write_text("not ours")
    (place / "empty").mkdir()
    (place / "half").mkdir()
    (place / "half" / "000001.ndjson").write_text("a directory without a lock")

    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(1))
        assert emitter.flush(20)
    assert relay.numbers() == [0, 1]
    assert sorted(path.name for path in place.iterdir()) == ["empty", "half", "notes.txt"]


def test_a_spool_that_a_crash_of_the_machine_damaged_is_read_as_far_as_it_makes_sense(
    relay: FakeRelay, tmp_path: Path
) -> None:
    relay.down()
    leaves(relay.url, tmp_path, 10)
    (segment,) = tmp_path.rglob("*.ndjson")
    mark, lines = segment.read_bytes()[:42], segment.read_bytes()[42:].splitlines(keepends=True)
    lines[4] = b"\0" * 2_000_000 + b"\n"
    segment.write_bytes(b"\0" * len(mark) + b"".join(lines) + b"\0" * 5000)
    relay.explains = False
    relay.unreadable = lambda body: b"\0" in body
    relay.up()

    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(10))
        assert emitter.flush(20)
        assert emitter.stats() == (0, 0, 10, 1, 0)
    assert relay.numbers() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]


def relay_directory(spool: Path) -> str:
    (place,) = (path.name for path in spool.iterdir())
    return place


def test_a_run_s_own_token_sends_what_this_run_left_behind_and_not_what_others_did(
    relay: FakeRelay, tmp_path: Path
) -> None:
    def emitter(run: str) -> Emitter:
        return Emitter(relay.url, f"run.{run}.secret", run, spool_dir=tmp_path, settings=SWIFT)

    relay.down()
    first = emitter("run-a")
    first(event(1))
    wait_until(lambda: first.stats().spooled == 1, "an event on disk")
    first.close(0)
    relay.up()

    for run, number in (("run-b", 2), ("run-a", 3)):
        relay.token = f"run.{run}.secret"
        with emitter(run) as other:
            other(event(number))
            assert other.flush(20)

    assert relay.numbers() == [2, 1, 3]
    assert [item["run_id"] for item in relay.stored] == ["run-b", "run-a", "run-a"]
