"""What a pipeline emits reaches the relay: in order, in batches, and soon."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_relay import PATH, TOKEN, FakeRelay, Reply
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from support import SWIFT, emitter_to, event, wait_until

from rp_relay_client import BaseEvent, Emitter, RunLogEvent, Settings


def test_an_emitter_is_the_event_callback_of_a_pipeline(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        event_callback: Callable[[BaseEvent], None] = emitter
        event_callback(RunLogEvent("loading the dataset"))
        assert emitter.flush(20)

    assert relay.stored == [
        {"run_id": "run-1", "kind": "run_log", "event": {"message": "loading the dataset", "level": "info"}}
    ]
    (request,) = relay.requests
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["content-type"] == "application/x-ndjson"
    assert 1 <= len(request.key) <= 255
    assert request.key.isascii()


def test_a_request_is_part_of_the_trace_in_which_its_newest_event_was_emitted(
    relay: FakeRelay, tmp_path: Path
) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("pipeline")
    silent = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("pipeline")
    with emitter_to(relay, tmp_path) as emitter:

        def sent() -> str | None:
            emitter(event(1))
            assert emitter.flush(20)
            return relay.requests[-1].headers.get("traceparent")

        assert sent() is None
        with tracer.start_as_current_span("step"):
            expected: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(expected)
            assert sent() == expected["traceparent"]
            with silent.start_as_current_span("not recorded"):
                assert sent() is None
        assert sent() is None


def test_an_event_is_sent_also_where_the_tracing_library_fails(
    relay: FakeRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("opentelemetry.trace.get_current_span")  # as while another thread loads it
    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(1))
        assert emitter.flush(20)
    assert relay.numbers() == [1]


def test_events_arrive_once_in_the_order_of_the_calls(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        for number in range(3000):
            emitter(event(number))
        assert emitter.flush(20)
        assert emitter.stats() == (0, 0, 3000, 0, 0)

    assert relay.numbers() == list(range(3000))


def test_each_thread_keeps_its_order(relay: FakeRelay, tmp_path: Path) -> None:
    def work(worker: int) -> None:
        for number in range(500):
            emitter(event(number, worker=worker))

    with emitter_to(relay, tmp_path) as emitter:
        threads = [threading.Thread(target=work, args=[worker]) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert emitter.flush(20)

    assert len(relay.stored) == 2000
    for worker in range(4):
        assert relay.numbers(worker=worker) == list(range(500))


def test_what_is_emitted_during_a_request_leaves_together_in_the_next(
    relay: FakeRelay, tmp_path: Path
) -> None:
    answered = threading.Event()
    relay.replies.append(Reply(until=answered))
    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(0))
        wait_until(lambda: relay.requests, "the first request")
        for number in range(1, 100):
            emitter(event(number))
        wait_until(lambda: emitter.stats().spooled == 100, "all to be spooled")
        answered.set()
        assert emitter.flush(20)

    assert [len(request.items) for request in relay.requests] == [1, 99]


def test_a_lone_event_does_not_wait_for_company(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        since = time.monotonic()
        for number in range(20):
            emitter(event(number))
            assert emitter.flush(20)
        assert time.monotonic() - since < 5, "milliseconds each"


def test_a_batch_is_bounded_in_events_and_in_bytes(relay: FakeRelay, tmp_path: Path) -> None:
    relay.always = Reply(503)
    settings = Settings(
        batch_events=10, batch_bytes=256 * 1024, batch_interval_s=0, backoff_s=0.02, backoff_max_s=0.02
    )
    with emitter_to(relay, tmp_path, settings) as emitter:
        for number in range(25):
            emitter(event(number))
        for number in range(25, 35):
            emitter(event(number, text="x" * 100_000))
        wait_until(lambda: emitter.stats().spooled == 35, "all to be spooled")
        relay.always = None
        assert emitter.flush(20)

    assert relay.numbers() == list(range(35))
    assert max(len(request.items) for request in relay.requests) == 10
    assert max(len(request.body) for request in relay.requests) <= 256 * 1024


def test_one_connection_serves_many_batches(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        for number in range(5):
            emitter(event(number))
            assert emitter.flush(20)

    assert len(relay.requests) == 5
    assert relay.connections == 1


def test_a_connection_that_the_relay_closed_meanwhile_costs_nothing(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path, Settings(backoff_s=3600, backoff_max_s=3600)) as emitter:
        emitter(event(0))
        assert emitter.flush(20)
        relay.down()
        relay.up()
        emitter(event(1))
        assert emitter.flush(20)

    assert relay.numbers() == [0, 1]


def test_the_helpers_go_through_the_same_queue(relay: FakeRelay, tmp_path: Path) -> None:
    with emitter_to(relay, tmp_path) as emitter:
        emitter.started()
        emitter.heartbeat()
        emitter.gpu_shortage(8, 2, "waiting for a node")
        emitter.artifact("paper", "paper.pdf", 1234, "application/pdf", "2025-06-01T12:00:00+00:00")
        emitter(RunLogEvent("in between", "warning"))
        emitter.finished(False, "out of memory")
        assert emitter.flush(20)

    assert [(item["kind"], item["event"]) for item in relay.stored] == [
        ("run_started", {}),
        ("heartbeat", {}),
        ("gpu_shortage", {"required_gpus": 8, "available_gpus": 2, "message": "waiting for a node"}),
        (
            "artifact",
            {
                "artifact_type": "paper",
                "filename": "paper.pdf",
                "file_size": 1234,
                "file_type": "application/pdf",
                "created_at": "2025-06-01T12:00:00+00:00",
            },
        ),
        ("run_log", {"message": "in between", "level": "warning"}),
        ("run_finished", {"success": False, "message": "out of memory"}),
    ]


def test_an_event_says_what_was_true_when_it_was_emitted(relay: FakeRelay, tmp_path: Path) -> None:
    progress = event(1)
    assert progress.details is not None
    with emitter_to(relay, tmp_path) as emitter:
        emitter(progress)
        progress.details["number"] = 2
        assert emitter.flush(20)

    assert relay.numbers() == [1]


def test_close_sends_what_waits_and_takes_no_more(relay: FakeRelay, tmp_path: Path) -> None:
    emitter = Emitter(relay.url, TOKEN, "run-1", spool_dir=tmp_path, settings=SWIFT)
    for number in range(100):
        emitter(event(number))
    assert emitter.close(20)
    emitter(event(100))

    assert relay.numbers() == list(range(100))
    assert emitter.stats() == (0, 0, 100, 0, 1)
    assert emitter.close(), "a second time does no harm"


def test_nothing_stays_behind_on_disk_once_all_is_sent(relay: FakeRelay, tmp_path: Path) -> None:
    settings = Settings(segment_bytes=1000, batch_interval_s=0)
    with Emitter(relay.url, TOKEN, "run-1", spool_dir=tmp_path, settings=settings) as emitter:
        for number in range(1000):
            emitter(event(number))

    assert relay.numbers() == list(range(1000))
    (place,) = tmp_path.iterdir()
    assert list(place.iterdir()) == []


def test_the_address_may_have_a_prefix_and_even_the_whole_path(relay: FakeRelay, tmp_path: Path) -> None:
    for number, suffix in enumerate(["", "/", "/research-pipeline/events", PATH, PATH + "/"]):
        with Emitter(relay.url + suffix, TOKEN, "run-1", spool_dir=tmp_path, settings=SWIFT) as emitter:
            emitter(event(number))

    assert relay.numbers() == [0, 1, 2, 3, 4]


def test_what_is_emitted_right_before_close_is_at_least_on_disk(relay: FakeRelay, tmp_path: Path) -> None:
    relay.down()
    for life in range(5):
        emitter = Emitter(relay.url, TOKEN, "run-1", spool_dir=tmp_path, settings=SWIFT)
        for number in range(life * 1000, life * 1000 + 1000):
            emitter(event(number))
        assert not emitter.close(0)
        assert emitter.stats().queued == emitter.stats().dropped == 0
    relay.up()

    with Emitter(relay.url, TOKEN, "run-1", spool_dir=tmp_path, settings=SWIFT):
        wait_until(lambda: len(relay.stored) >= 5000, "all to be sent")
    assert relay.numbers() == list(range(5000))
