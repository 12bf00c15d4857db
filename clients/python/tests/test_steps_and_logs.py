"""The two conveniences: steps that know their share of the paper, and the log as events."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_relay import FakeRelay, Reply
from support import emitter_to, event, wait_until

from rp_relay_client import RelayLogHandler, RunLogEvent
from rp_relay_client.steps import SHARES

TRACE = Path(__file__).parents[3] / "relay" / "traces" / "paper_generation.ndjson"


def progress_of(relay: FakeRelay) -> list[tuple[Any, ...]]:
    events = [item["event"] for item in relay.stored]
    return [(e["step"], e["substep"], e["progress"], e["step_progress"]) for e in events]


def test_a_step_reports_its_beginning_and_its_end(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        with emitter.step("paper_writeup") as step:
            step.progress(0.4, substep="Section 3", details={"words_written": 900})
        assert emitter.flush(20)

    assert progress_of(relay) == [
        ("paper_writeup", None, 0.3, 0.0),
        ("paper_writeup", "Section 3", 0.5, 0.4),
        ("paper_writeup", None, 0.8, 1.0),
    ]
    assert relay.stored[1]["event"]["details"] == {"words_written": 900}


def test_a_step_that_fails_or_has_said_that_it_is_complete_adds_no_end(
    relay: FakeRelay, tmp_path: Path
) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        with pytest.raises(RuntimeError), emitter.step("plot_aggregation"):
            raise RuntimeError
        with emitter.step("paper_review") as step:
            step.progress(1, substep="Paper review complete.")
        assert emitter.flush(20)

    assert progress_of(relay) == [
        ("plot_aggregation", None, 0.0, 0.0),
        ("paper_review", None, 0.8, 0.0),
        ("paper_review", "Paper review complete.", 1.0, 1.0),
    ]


def test_the_shares_of_the_steps_are_those_that_pipelines_have_always_reported() -> None:
    recorded = [json.loads(line)["event"] for line in TRACE.read_text().splitlines()]
    assert {event["step"] for event in recorded} == set(SHARES)
    for event_ in recorded:
        begins, weight = SHARES[event_["step"]]
        assert event_["progress"] == pytest.approx(begins + weight * event_["step_progress"], abs=1e-4)


def test_an_unknown_step_has_to_say_how_far_the_paper_is(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        with emitter.step("poster") as step:
            step.progress(0.5, overall=0.9)
            step.progress(0.6)
        assert emitter.flush(20)
        assert emitter.stats().refused == 1

    assert progress_of(relay) == [("poster", None, 0.9, 0.5)]


def test_progress_outside_of_its_range_counts_as_the_nearer_end(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        step = emitter.step("paper_review")
        for value in (-3, 0.5, 40):
            step.progress(value)
        step.progress("half")  # type: ignore[arg-type]
        assert emitter.flush(20)
        assert emitter.stats().refused == 1

    assert [(whole, part) for _, _, whole, part in progress_of(relay)] == [(0.8, 0.0), (0.9, 0.5), (1.0, 1.0)]


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("pipeline.of.the.tests")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.handlers.clear()


def test_log_records_become_events(relay: FakeRelay, tmp_path: Path, log: logging.Logger) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        log.addHandler(RelayLogHandler(emitter, logging.INFO))
        log.debug("too fine")
        log.info("epoch %d of %d", 3, 10)
        try:
            raise ValueError("bad loss")
        except ValueError:
            log.exception("training failed")
        assert emitter.flush(20)

    first, second = [item["event"] for item in relay.stored]
    assert first == {"message": "epoch 3 of 10", "level": "info"}
    assert second["level"] == "error"
    assert second["message"].startswith("training failed\nTraceback")
    assert "bad loss" in second["message"]


def test_a_record_that_does_not_fit_is_cut_or_told_as_it_is(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        handler = RelayLogHandler(emitter)
        handler.handle(logging.makeLogRecord({"msg": "x" * 300_000}))
        handler.handle(logging.makeLogRecord({"msg": "epoch %d", "args": ("three",)}))
        assert emitter.flush(20)

    first, second = [item["event"]["message"] for item in relay.stored]
    assert len(first) == 100_000
    assert second.startswith("epoch %d")


def test_the_log_of_the_client_itself_is_left_out(relay: FakeRelay, tmp_path: Path) -> None:
    handler = RelayLogHandler(lambda event: None)
    root = logging.getLogger()
    with emitter_to(relay, tmp_path) as emitter:
        handler = RelayLogHandler(emitter)
        root.addHandler(handler)
        try:
            relay.always = Reply(503)
            emitter(event(1, value=float("nan")))
            emitter(event(2))
            wait_until(lambda: len(relay.requests) >= 3, "trouble")
            relay.always = None
            assert emitter.flush(20)
        finally:
            root.removeHandler(handler)

    assert [item["kind"] for item in relay.stored] == ["paper_generation_progress"]


def test_an_event_that_logs_while_it_is_emitted_does_not_feed_on_itself(log: logging.Logger) -> None:
    emitted: list[RunLogEvent] = []

    def emit(event: RunLogEvent) -> None:
        emitted.append(event)
        log.info("emitted one more")

    log.addHandler(RelayLogHandler(emit))
    log.info("once")
    log.info("twice")
    assert [event.message for event in emitted] == ["once", "twice"]
