"""The relay is away, slow, full, or finds fault: what is good is kept until it is there, and only that."""

import logging
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from fake_relay import TOKEN, FakeRelay, Reply
from support import SWIFT, emitter_to, event, wait_until

from rp_relay_client import Emitter, Settings

PROBLEM = "urn:rp-relay:problem:"


def test_events_wait_on_disk_while_the_relay_is_away(relay: FakeRelay, tmp_path: Path) -> None:
    relay.down()
    with emitter_to(relay, tmp_path) as emitter:
        for number in range(1000):
            emitter(event(number))
        wait_until(lambda: emitter.stats() == (0, 1000, 0, 0, 0), "all to be spooled")
        relay.up()
        assert emitter.flush(20)

    assert relay.numbers() == list(range(1000))


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_batch_is_repeated_with_its_key_until_it_is_kept(
    relay: FakeRelay, tmp_path: Path, status: int
) -> None:
    relay.replies.extend([Reply(status)] * 3)
    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(1))
        assert emitter.flush(20)
        assert emitter.stats() == (0, 0, 1, 0, 0)

    assert relay.numbers() == [1]
    assert len(relay.requests) == 4
    assert len({(request.key, request.body) for request in relay.requests}) == 1


def test_a_connection_cut_after_the_body_doubles_nothing(relay: FakeRelay, tmp_path: Path) -> None:
    relay.replies.extend([Reply(cut=True, stores=True)] * 4)
    with emitter_to(relay, tmp_path) as emitter:
        for number in range(100):
            emitter(event(number))
        assert emitter.flush(20)
        assert emitter.stats() == (0, 0, 100, 0, 0)

    assert relay.numbers() == list(range(100))
    assert len(relay.requests) >= 5


def test_an_answer_that_comes_too_late_doubles_nothing(relay: FakeRelay, tmp_path: Path) -> None:
    never = threading.Event()
    relay.replies.append(Reply(until=never))
    settings = Settings(timeout_s=0.1, backoff_s=0.02, backoff_max_s=0.05)
    with emitter_to(relay, tmp_path, settings) as emitter:
        emitter(event(1))
        emitter(event(2))
        assert emitter.flush(20)
    never.set()

    assert relay.numbers() == [1, 2]
    first, second, *_ = relay.requests
    assert (first.key, first.body) == (second.key, second.body)


@pytest.mark.parametrize("as_date", [False, True])
def test_the_relay_can_ask_for_a_pause(relay: FakeRelay, tmp_path: Path, as_date: bool) -> None:
    date = int(time.time()) + 2
    pause = formatdate(date, usegmt=True) if as_date else "1"
    relay.replies.append(Reply(503, headers={"Retry-After": pause}))
    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(1))
        wait_until(lambda: relay.requests, "the first request")
        since = time.monotonic()
        assert emitter.flush(20)
        assert time.time() >= date if as_date else time.monotonic() - since >= 0.9

    assert len(relay.requests) == 2


def test_a_pause_that_is_no_time_is_ignored(relay: FakeRelay, tmp_path: Path) -> None:
    relay.replies.append(Reply(503, headers={"Retry-After": "soon"}))
    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(1))
        assert emitter.flush(20)


@pytest.mark.parametrize("status", [200, 301, 401, 403, 404, 405])
def test_what_a_person_has_to_put_right_is_kept_and_said_once(
    relay: FakeRelay, tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    relay.always = Reply(status)
    with caplog.at_level(logging.INFO), emitter_to(relay, tmp_path) as emitter:
        for number in range(10):
            emitter(event(number))
        wait_until(lambda: len(relay.requests) >= 5, "some attempts")
        assert emitter.stats().refused == 0
        relay.always = None
        assert emitter.flush(20)

    assert relay.numbers() == list(range(10))
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert str(status) in warnings[0]


def test_what_the_relay_says_about_a_token_is_in_the_log(
    relay: FakeRelay, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    detail = "This token is for one run, and an event is of another one."
    relay.always = Reply(403, {"type": PROBLEM + "forbidden", "detail": detail})
    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(1))
        wait_until(lambda: len(relay.requests) >= 3, "some attempts")

    said = f"The relay does not take events (403 forbidden: {detail[:-1]}): somebody has to put that right."
    assert [record.message for record in caplog.records] == [f"{said} Events are kept."]


def refusal(*errors: tuple[int, str, str]) -> Reply:
    """Of these events, for what is wrong at that place."""
    listed = [{"loc": [index, "event", place], "msg": message} for index, place, message in errors]
    return Reply(422, {"type": PROBLEM + "invalid-event", "detail": "See 'errors'.", "errors": listed})


def test_each_place_and_reason_of_a_refusal_is_said_once(
    relay: FakeRelay, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    relay.down()
    relay.replies.append(
        refusal((0, "step", "too long"), (0, "details", "no object"), (1, "step", "too long"))
    )
    relay.replies.append(refusal((0, "step", "too short"), (0, "details", "no object")))
    with emitter_to(relay, tmp_path) as emitter:
        for number in range(4):
            emitter(event(number))
        wait_until(lambda: emitter.stats().spooled == 4, "all to be spooled")
        relay.up()
        assert emitter.flush(20)
        assert emitter.stats() == (0, 0, 1, 3, 0)

    said = [record.message for record in caplog.records if "The relay refused" in record.message]
    assert said == [
        f"The relay refused an event: 422 invalid-event, event.{what}"
        for what in ("step: too long", "details: no object", "step: too short")
    ]


def test_however_many_reasons_there_are_the_log_is_short_and_the_next_trouble_is_in_it(
    relay: FakeRelay, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    relay.replies.append(refusal(*((0, f"field_{number}", "bad") for number in range(100))))
    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(1))
        assert emitter.flush(20)
        emitter(event(2, set={1}))
        wait_until(lambda: emitter.stats().refused == 2, "the other one to be refused")

    said = [record.message for record in caplog.records if "field_" in record.message]
    assert len(said) == 20
    assert "stats()" in caplog.text
    assert "An event can not be sent" in caplog.text


def test_a_relay_without_a_token_of_its_own_is_asked_again_slowly(relay: FakeRelay, tmp_path: Path) -> None:
    relay.always = Reply(500, {"type": PROBLEM + "misconfigured"})
    settings = Settings(backoff_s=0.001, backoff_max_s=0.001, slow_retry_s=0.2, batch_interval_s=0)
    with emitter_to(relay, tmp_path, settings) as emitter:
        emitter(event(1))
        wait_until(lambda: relay.requests, "the first request")
        since = time.monotonic()
        wait_until(lambda: len(relay.requests) >= 3, "two more")
        assert time.monotonic() - since >= 0.19
        relay.always = None
        assert emitter.flush(20)


def test_the_event_that_the_relay_names_is_dropped_and_the_rest_is_sent(
    relay: FakeRelay, tmp_path: Path
) -> None:
    relay.down()
    relay.refuses = lambda item: item["event"]["details"]["number"] in (0, 17, 18, 99)
    with emitter_to(relay, tmp_path) as emitter:
        for number in range(100):
            emitter(event(number))
        wait_until(lambda: emitter.stats().spooled == 100, "all to be spooled")
        relay.up()
        assert emitter.flush(20)
        assert emitter.stats() == (0, 0, 96, 4, 0)

    assert relay.numbers() == [n for n in range(100) if n not in (0, 17, 18, 99)]
    assert len({request.key for request in relay.requests}) == len(relay.requests), "each payload its own key"


def test_a_flood_of_bad_events_ends(relay: FakeRelay, tmp_path: Path) -> None:
    relay.refuses = lambda item: item["event"]["details"]["number"] % 7 != 0
    with emitter_to(relay, tmp_path) as emitter:
        for number in range(700):
            emitter(event(number))
        assert emitter.flush(30)
        assert emitter.stats() == (0, 0, 100, 600, 0)

    assert relay.numbers() == list(range(0, 700, 7))


def test_a_bad_event_is_found_by_halving_where_the_relay_does_not_name_it(
    relay: FakeRelay, tmp_path: Path
) -> None:
    relay.down()
    relay.explains = False
    relay.refuses = lambda item: item["event"]["details"]["number"] == 37
    with emitter_to(relay, tmp_path) as emitter:
        for number in range(100):
            emitter(event(number))
        wait_until(lambda: emitter.stats().spooled == 100, "all to be spooled")
        relay.up()
        assert emitter.flush(20)
        assert emitter.stats() == (0, 0, 99, 1, 0)

    assert relay.numbers() == [n for n in range(100) if n != 37]
    assert len(relay.requests) < 40


@pytest.mark.parametrize("status", [400, 409, 413, 415, 422])
def test_a_lone_event_that_is_refused_is_dropped(relay: FakeRelay, tmp_path: Path, status: int) -> None:
    relay.replies.append(Reply(status, {"type": PROBLEM + "whatever", "errors": [{"loc": [[]]}, 3]}))
    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(1))
        assert emitter.flush(20)
        emitter(event(2))
        assert emitter.flush(20)
        assert emitter.stats() == (0, 0, 1, 1, 0)

    assert relay.numbers() == [2]


def test_a_relay_that_takes_less_at_once_gets_less_at_once(relay: FakeRelay, tmp_path: Path) -> None:
    relay.down()
    relay.most = 100
    with emitter_to(relay, tmp_path) as emitter:
        for number in range(2000):
            emitter(event(number))
        wait_until(lambda: emitter.stats().spooled == 2000, "all to be spooled")
        relay.up()
        assert emitter.flush(20)
        assert emitter.stats().refused == 0

    assert relay.numbers() == list(range(2000))
    too_long = [request for request in relay.requests if len(request.items) > 100]
    assert len(too_long) <= 4, "it is learned once, not at each batch"


def test_a_key_that_the_relay_knows_under_another_reading_means_kept(
    relay: FakeRelay, tmp_path: Path
) -> None:
    relay.replies.append(Reply(409, {"type": PROBLEM + "idempotency-key-reused"}))
    with emitter_to(relay, tmp_path) as emitter:
        emitter(event(1))
        emitter(event(2))
        assert emitter.flush(20)
        assert emitter.stats().refused == 0

    assert len({request.key for request in relay.requests}) == len(relay.requests)


def test_close_keeps_its_bound_whatever_the_relay_does(relay: FakeRelay, tmp_path: Path) -> None:
    never = threading.Event()
    relay.always = Reply(until=never)
    with emitter_to(relay, tmp_path, Settings()) as emitter:
        emitter(event(1))
        wait_until(lambda: relay.requests, "a request that hangs")
        since = time.monotonic()
        assert not emitter.close(0.2)
        assert time.monotonic() - since < 1.5
        assert emitter.stats().spooled == 1
    never.set()


def test_close_gives_the_spool_free_even_where_a_kept_connection_hangs(
    relay: FakeRelay, tmp_path: Path
) -> None:
    never = threading.Event()
    hanging = Emitter(relay.url, TOKEN, "run-1", spool_dir=tmp_path, settings=Settings(timeout_s=3600))
    hanging(event(1))
    assert hanging.flush(20)
    relay.always = Reply(until=never, stores=False)
    hanging(event(2))
    wait_until(lambda: len(relay.requests) == 2, "a request that hangs")
    assert not hanging.close(0)
    relay.always = None

    with emitter_to(relay, tmp_path) as emitter, emitter:
        wait_until(lambda: relay.numbers() == [1, 2], "another emitter to send it")
    never.set()


def test_close_does_not_wait_for_somebody_to_put_the_token_right(relay: FakeRelay, tmp_path: Path) -> None:
    relay.always = Reply(401)
    with emitter_to(relay, tmp_path, Settings()) as emitter:
        emitter(event(1))
        wait_until(lambda: relay.requests, "an attempt")
        since = time.monotonic()
        assert not emitter.close(30)
        assert time.monotonic() - since < 5


def test_trouble_is_said_once_and_its_end_too(
    relay: FakeRelay, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    relay.always = Reply(503)
    with caplog.at_level(logging.INFO), emitter_to(relay, tmp_path, SWIFT) as emitter:
        emitter(event(1))
        wait_until(lambda: len(relay.requests) >= 5, "some attempts")
        relay.always = None
        assert emitter.flush(20)

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
