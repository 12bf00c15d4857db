"""Whatever is emitted, and whatever happens to disk or relay: the pipeline does not notice."""

import datetime
import decimal
import fractions
import logging
import os
import signal
import time
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from fake_relay import TOKEN, FakeRelay, Reply
from support import SWIFT, emitter_to, event, wait_until

from rp_relay_client import (
    BaseEvent,
    Emitter,
    EventKind,
    PaperGenerationProgressEvent,
    PersistenceRecord,
    RunLogEvent,
    Settings,
    SubstageCompletedEvent,
)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class Unsent(BaseEvent):
    """An event of a pipeline's own, which says no more than it has to."""

    def type(self) -> str:
        return "ai.own"

    def to_dict(self) -> dict[str, Any]:
        return {}


class Hostile(Unsent):
    def __init__(self, record: Any) -> None:
        self.record = record

    def persistence_record(self) -> Any:
        if isinstance(self.record, Exception):
            raise self.record
        return self.record


def cycle() -> dict[str, Any]:
    knot: dict[str, Any] = {}
    knot["self"] = knot
    return knot


def nested(depth: int) -> list[Any]:
    nest: list[Any] = []
    for _ in range(depth):
        nest = [nest]
    return nest


HOPELESS = {
    "a NaN": event(1, value=float("nan")),
    "an infinity": event(1, value=float("inf")),
    "a cycle": event(1, value=cycle()),
    "an abyss": event(1, value=nested(100_000)),
    "a foreign object": event(1, value=object()),
    "a set": event(1, value={1, 2}),
    "a decimal": event(1, value=decimal.Decimal(1)),
    "a key that is no string": event(1, value={(1, 2): 3}),
    "too many digits": event(1, value=10**5000),
    "too much": event(1, value="x" * 256 * 1024),
    "a summary that is no dict": SubstageCompletedEvent("s", 1, 1, "n", "r", object()),  # type: ignore[arg-type]
    "no event": "a string",
    "nothing": None,
    "an event without content": Hostile(("run_log", None)),
    "an event of three": Hostile(("run_log", {}, 3)),
    "an event that raises": Hostile(Unspeakable()),
    "an event too deep": Hostile(RecursionError()),
}


@pytest.mark.parametrize("hopeless", HOPELESS.values(), ids=HOPELESS.keys())
def test_what_can_not_be_sent_is_counted_as_refused(relay: FakeRelay, tmp_path: Path, hopeless: Any) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        emitter(hopeless)
        wait_until(lambda: emitter.stats() == (0, 0, 0, 1, 0), "it to be refused")
        emitter(event(2))
        assert emitter.flush(20)

    assert relay.numbers() == [2]


def test_an_event_that_says_it_is_not_to_be_sent_is_not(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        emitter(Unsent())
        emitter(event(1))
        assert emitter.flush(20)
        assert emitter.stats() == (0, 0, 1, 0, 0)


def test_an_event_that_just_fits_is_sent(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        emitter(RunLogEvent("x" * (256 * 1024 - 200)))
        assert emitter.flush(20)
        assert emitter.stats().sent == 1


class Model:
    """As pydantic's."""

    def model_dump(self, mode: str) -> dict[str, str]:
        return {"mode": mode}


class Kind(str, Enum):
    OWN = "own_kind"


def test_what_pipelines_put_into_details_is_sent(relay: FakeRelay, tmp_path: Path) -> None:
    class Single(float):
        """As a number of numpy's."""

    details = {
        "third": fractions.Fraction(1, 2),
        "single": Single(0.25),
        "day": datetime.date(2025, 6, 1),
        "path": Path("figures/loss.png"),
        "text": 'τ "é" \u2028 \ud800 \x00',
        "kind": Kind.OWN,
        "pair": (1, 2),
    }
    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(1, **details))
        emitter(Hostile(("review", Model())))
        emitter(Hostile((Kind.OWN, {})))
        assert emitter.flush(20)
        assert emitter.stats() == (0, 0, 3, 0, 0)

    sent = relay.stored[0]["event"]["details"]
    assert sent == {
        "number": 1,
        "third": 0.5,
        "single": 0.25,
        "day": "2025-06-01",
        "path": "figures/loss.png",
        "text": 'τ "é" \u2028 \ud800 \x00',
        "kind": "own_kind",
        "pair": [1, 2],
    }
    assert [(item["kind"], item["event"]) for item in relay.stored[1:]] == [
        ("review", {"mode": "json"}),
        ("own_kind", {}),
    ]


def test_the_classes_of_a_pipeline_need_not_be_ours(relay: FakeRelay, tmp_path: Path) -> None:
    class TheirEvent:
        def persistence_record(self) -> tuple[str, dict[str, Any]]:
            return ("run_log", {"message": "theirs", "level": "info"})

    with emitter_to(relay, tmp_path) as emitter:
        emitter(TheirEvent())
        assert emitter.flush(20)

    assert relay.stored[0]["event"]["message"] == "theirs"


def test_a_full_queue_drops_and_counts(relay: FakeRelay, tmp_path: Path) -> None:
    settings = Settings(queue_events=0)
    with emitter_to(relay, tmp_path, settings) as emitter:
        emitter(event(1))
        assert emitter.stats() == (0, 0, 0, 0, 1)


def test_a_full_spool_drops_the_newest_and_counts_them(relay: FakeRelay, tmp_path: Path) -> None:
    relay.down()
    with emitter_to(relay, tmp_path, Settings(spool_bytes=100_000, backoff_max_s=0.05)) as emitter:
        for number in range(100):
            emitter(event(number, text="x" * 5000))
        wait_until(lambda: emitter.stats().queued == 0, "all to be spooled or dropped")
        stats = emitter.stats()
        assert stats.spooled + stats.dropped == 100
        assert 15 <= stats.spooled <= 20
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.ndjson")) < 110_000
        relay.up()
        assert emitter.flush(20)
        emitter(event(100))
        assert emitter.flush(20)

    assert relay.numbers() == [*range(stats.spooled), 100]


def test_without_a_disk_events_wait_in_memory(
    relay: FakeRelay, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    no_directory = tmp_path / "file"
    no_directory.write_text("in the way")
    relay.always = Reply(503)
    with emitter_to(relay, no_directory) as emitter:
        for number in range(100):
            emitter(event(number))
        wait_until(lambda: relay.requests, "an attempt")
        assert emitter.stats() == (100, 0, 0, 0, 0), "queued, which says that they are not on disk"
        relay.always = None
        assert emitter.flush(20)

    assert relay.numbers() == list(range(100))
    assert sum("can not be spooled" in record.message for record in caplog.records) == 1


def test_a_disk_that_fails_in_the_middle_loses_nothing(
    relay: FakeRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.always = Reply(503)
    with emitter_to(relay, tmp_path) as emitter:
        for number in range(10):
            emitter(event(number))
        wait_until(lambda: emitter.stats().spooled == 10, "the first to be spooled")
        write = os.pwrite

        def full(fd: int, data: bytes, place: int) -> int:
            if "ndjson" in str(Path(f"/proc/self/fd/{fd}").readlink()) and place > 100:
                raise OSError(28, "No space left on device")
            return write(fd, data, place)

        monkeypatch.setattr(os, "pwrite", full)
        for number in range(10, 20):
            emitter(event(number))
        wait_until(lambda: emitter.stats()[:2] == (10, 10), "the others to be in memory")
        relay.always = None
        assert emitter.flush(20)

    assert relay.numbers() == list(range(20))


def test_an_emitter_that_may_not_use_the_disk_does_not(
    relay: FakeRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_SPOOL_DIR", str(tmp_path))
    relay.always = Reply(503)
    with emitter_to(relay, tmp_path, durable=False) as emitter:
        emitter(event(1))
        wait_until(lambda: relay.requests, "an attempt")
        assert emitter.stats().queued == 1
        assert list(tmp_path.iterdir()) == []
        assert not emitter.close(0)
        assert emitter.stats() == (0, 0, 0, 0, 1), "and says that they are lost"


def test_events_wait_where_the_environment_says(
    relay: FakeRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.always = Reply(503)
    monkeypatch.setenv("RELAY_SPOOL_DIR", str(tmp_path / "env"))
    emitter = Emitter(relay.url, TOKEN, "run-1", settings=SWIFT)
    emitter(event(1))
    wait_until(lambda: list((tmp_path / "env").rglob("*.ndjson")), "a spool")
    emitter.close(0)

    monkeypatch.delenv("RELAY_SPOOL_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    emitter = Emitter(relay.url, TOKEN, "run-1", settings=SWIFT)
    emitter(event(1))
    wait_until(lambda: list((tmp_path / "state" / "rp-relay").rglob("*.ndjson")), "a spool")
    emitter.close(0)


def test_a_signal_handler_may_emit_in_the_middle_of_an_event(relay: FakeRelay, tmp_path: Path) -> None:
    fired = 0

    def emit_too(number: int, frame: object) -> None:
        nonlocal fired
        fired += 1
        emitter(event(fired, by="signal"))

    before = signal.signal(signal.SIGALRM, emit_too)
    try:
        with emitter_to(relay, tmp_path) as emitter:
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            number = 0
            while fired < 100:
                emitter(event(number, by="pipeline"))
                number += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert emitter.flush(20)
            dropped = emitter.stats().dropped
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert dropped == 0
    # One handler may interrupt another, so their order is their own affair.
    assert sorted(relay.numbers(by="signal")) == list(range(1, fired + 1))
    assert relay.numbers(by="pipeline") == list(range(number))


def test_a_call_costs_the_pipeline_next_to_nothing_while_the_relay_hangs(
    relay: FakeRelay, tmp_path: Path
) -> None:
    relay.down()
    with emitter_to(relay, tmp_path) as emitter:
        costs = []
        for number in range(2000):
            since = time.perf_counter()
            emitter(event(number))
            costs.append(time.perf_counter() - since)
        assert emitter.stats().dropped == 0

    assert sorted(costs)[len(costs) // 2] < 0.001, "the benchmark measures it; this finds a call that waits"


def test_what_could_never_work_is_said_at_once(tmp_path: Path) -> None:
    for url in ("relay.example.org", "ftp://relay", "http://", "https://user:pass@relay", "http://r?x=1"):
        with pytest.raises(ValueError, match="base_url"):
            Emitter(url, TOKEN, "run-1", spool_dir=tmp_path)
    for run_id in ("", "a b", "a/b", "x" * 129, "é"):
        with pytest.raises(ValueError, match="run_id"):
            Emitter("http://relay", TOKEN, run_id, spool_dir=tmp_path)
    for arguments, what in (
        (("http://relay", None, "run-1"), "token must be .*TELEMETRY_WEBHOOK_TOKEN.* NoneType"),
        (("http://relay", TOKEN, 7), "run_id must be a str, .* int"),
        ((None, TOKEN, "run-1"), "base_url must be a str, .* NoneType"),
    ):
        with pytest.raises(TypeError, match=what):
            Emitter(*arguments, spool_dir=tmp_path)
    with pytest.raises(ValueError, match="batch_events"):
        Settings(batch_events=1001)
    with pytest.raises(ValueError, match="batch_bytes"):
        Settings(batch_bytes=1)
    with pytest.raises(ValueError, match="above 0"):
        Settings(backoff_s=0)


def test_an_emitter_that_is_never_used_starts_and_opens_nothing(tmp_path: Path) -> None:
    emitter = Emitter("http://relay", TOKEN, "run-1", spool_dir=tmp_path)
    assert emitter.stats() == (0, 0, 0, 0, 0)
    assert emitter.flush(0)
    assert emitter.close()
    assert list(tmp_path.iterdir()) == []


def test_refused_events_are_said_in_the_log_but_not_each(
    relay: FakeRelay, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), emitter_to(relay, tmp_path) as emitter:
        for _ in range(100):
            emitter(event(1, value=float("nan")))
        wait_until(lambda: emitter.stats().refused == 100, "all to be refused")

    assert len(caplog.records) == 1


def test_the_events_have_the_shape_that_pipelines_use() -> None:
    progress = PaperGenerationProgressEvent(
        run_id="r", step="paper_review", substep="Review 1 of 3", progress=0.8, step_progress=0.2
    )
    assert progress.type() == "ai.run.paper_generation_progress"
    kind, data = progress.persistence_record()
    assert kind == "paper_generation_progress"
    assert kind is EventKind.PAPER_GENERATION_PROGRESS
    assert progress.to_dict() == {"run_id": "r", **data}
    assert data == {
        "step": "paper_review",
        "substep": "Review 1 of 3",
        "progress": 0.8,
        "step_progress": 0.2,
        "details": None,
    }
    assert "run_id" not in event(1).to_dict()
    assert RunLogEvent("hello").persistence_record() == PersistenceRecord(
        EventKind.RUN_LOG, {"message": "hello", "level": "info"}
    )
    assert SubstageCompletedEvent("s", 1, 2, "n", "r", {"a": 1}).type() == "ai.run.substage_completed"
    with pytest.raises(AttributeError):
        progress.step = "other"  # type: ignore[misc]
    with pytest.raises(TypeError, match="abstract"):
        BaseEvent()  # type: ignore[abstract]
