"""Spans: of which requests there are any, what they say, and that nobody waits for who takes them."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from standardwebhooks import Webhook as Signer
from starlette.types import Message, Receive, Scope, Send

from relay import spans as module
from relay.auth.writers import Tokens
from relay.errors import NotStored
from relay.http.traced import TracedWebhook
from relay.http.webhooks import LET_IN, Writers, webhooks
from relay.settings import Settings
from relay.spans import Spans
from relay.stream.entry import NewEvent, traceparent_of

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
EVENT = NewEvent("run-1", "run_log", b'{"message":"a secret"}')
SEAL = b"01234567"


@pytest.fixture
def spans() -> Spans:
    return Spans("relay", "http://127.0.0.1:9")


class Hook:
    """A webhook that appends an event, and answers or fails as it is told."""

    def __init__(self, spans: Spans, status: int, error: Exception | None = None) -> None:
        self._spans = spans
        self._status = status
        self._error = error
        self.appended: Sequence[NewEvent] = ()
        self.shortcuts = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[LET_IN] = True
        with self._spans.append([EVENT]) as events:
            self.appended = events
            if self._error:
                raise self._error
        await send({"type": "http.response.start", "status": self._status, "headers": []})

    def shortcut(self, headers: Any, body: bytes, answer: Any) -> bool:
        self.shortcuts += 1
        return True


async def exported(
    spans: Spans, traceparent: str | None, status: int = 204, error: Exception | None = None
) -> tuple[Hook, Sequence[ReadableSpan]]:
    """What a POST to a webhook is made of, and the spans that it leaves."""
    hook, exporter = Hook(spans, status, error), InMemorySpanExporter()
    webhook = TracedWebhook(hook, "/a/{run_id}", spans)
    headers = [(b"authorization", b"Bearer a secret"), (b"x-run", b"a secret")]
    headers += [(b"traceparent", traceparent.encode("latin-1"))] if traceparent is not None else []

    async def send(message: Any) -> None:
        assert message["status"] == status

    with spans.exporting(exporter):
        if not webhook.shortcut(headers, b"", print):
            with pytest.raises(type(error)) if error else contextlib.nullcontext():
                await webhook({"type": "http", "headers": headers}, Any, send)  # type: ignore[arg-type]
    return hook, exporter.get_finished_spans()


async def test_a_post_of_a_trace_has_a_span_in_it_and_its_append_one_below(spans: Spans) -> None:
    hook, (append, post) = await exported(spans, TRACEPARENT)
    assert hook.shortcuts == 0
    assert (post.name, post.kind, append.name, append.kind) == (
        "POST /a/{run_id}",
        SpanKind.SERVER,
        "append",
        SpanKind.PRODUCER,
    )
    assert post.parent is not None
    assert append.parent is not None
    assert (f"{post.parent.trace_id:032x}", f"{post.parent.span_id:016x}") == (TRACE, PARENT)
    assert append.parent.span_id == post.context.span_id
    assert post.attributes == {
        "http.request.method": "POST",
        "http.route": "/a/{run_id}",
        "http.response.status_code": 204,
    }
    assert append.attributes == {"relay.events": 1, "relay.kinds": ("run_log",)}
    carried = f"00-{TRACE}-{append.context.span_id:016x}-01"
    assert traceparent_of(hook.appended[0].text + SEAL) == carried


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        "a secret",
        f"00-{TRACE}-{PARENT}-00",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\u00e9",
        TRACEPARENT * 20,
    ],
)
async def test_without_a_trace_that_is_recorded_a_post_takes_the_shortcut(
    spans: Spans, traceparent: str | None
) -> None:
    hook, found = await exported(spans, traceparent)
    assert (hook.shortcuts, found) == (1, ())


ROUTE = "/research-pipeline/events/run-log"
SIGNING = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NO_EVENT = b'{"run_id": "run-1", "event": {}}'

Headers = dict[bytes, bytes]
JSON, TEXT = {b"content-type": b"application/json"}, {b"content-type": b"text/plain"}
TOKEN, WRONG = {b"authorization": b"Bearer a token"}, {b"authorization": b"Bearer another"}
FORGED = dict.fromkeys([b"webhook-id", b"webhook-timestamp", b"webhook-signature"], b"x")

WHOLE: Message = {"type": "http.request", "body": NO_EVENT}
BEGUN: Message = {"type": "http.request", "body": NO_EVENT[:9], "more_body": True}
TOO_MUCH: Message = {"type": "http.request", "body": b" " * 9_000_000, "more_body": True}
CUT: Message = {"type": "http.disconnect"}


def signed() -> Headers:
    now = datetime.now(UTC)
    signature = Signer(SIGNING).sign("msg_1", now, NO_EVENT.decode())
    words = [b"msg_1", str(int(now.timestamp())).encode(), signature.encode()]
    return dict(zip(FORGED, words, strict=True))


async def refused(
    spans: Spans, settings: Settings, headers: Headers, *body: Message
) -> tuple[int | None, Sequence[ReadableSpan]]:
    """The status of a POST that stores nothing, None where there is no answer, and the spans it leaves."""
    messages, exporter = list(body), InMemorySpanExporter()
    answers: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0) if messages else await asyncio.Future()  # it waits for what does not come

    async def send(message: Message) -> None:
        answers.append(message)

    hooks = webhooks(settings, Writers(settings, Tokens(settings)), lambda: pytest.fail("it is appended"))
    scope = {"type": "http", "headers": [*headers.items(), (b"traceparent", TRACEPARENT.encode())]}
    with spans.exporting(exporter):
        await TracedWebhook(hooks[ROUTE], ROUTE, spans)(scope, receive, send)
    return answers[0]["status"] if answers else None, exporter.get_finished_spans()


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (JSON, [WHOLE], 401),
        (JSON | WRONG, [WHOLE], 401),
        (JSON | FORGED, [WHOLE], 401),
        (TEXT | FORGED, [WHOLE], 415),
        (JSON | FORGED | {b"webhook-id": b"x y"}, [WHOLE], 400),
        (JSON | FORGED | {b"content-length": b"9000000"}, [], 413),
        (JSON | FORGED, [TOO_MUCH], 413),
        (JSON | FORGED, [BEGUN], 408),
        (JSON | FORGED, [BEGUN, CUT], None),
    ],
)
async def test_who_is_not_let_in_fills_no_traces(
    spans: Spans, headers: Headers, body: Sequence[Message], status: int | None
) -> None:
    settings = Settings.model_validate(
        {"TELEMETRY_WEBHOOK_TOKEN": "a token", "webhook_signing_secret": SIGNING, "body_timeout_s": 0.01}
    )
    assert await refused(spans, settings, headers, *body) == (status, ())


async def test_where_no_token_is_configured_nobody_fills_traces(spans: Spans) -> None:
    assert await refused(spans, Settings(), JSON | TOKEN, WHOLE) == (500, ())


def token() -> Headers:
    return TOKEN


@pytest.mark.parametrize(
    ("proof", "headers", "body", "status"),
    [
        (token, TEXT, [WHOLE], 415),
        (token, JSON, [WHOLE], 422),
        (token, JSON, [BEGUN, CUT], None),
        (signed, JSON, [WHOLE], 422),  # a signature is good for five minutes, so it is made when it is needed
    ],
)
async def test_what_a_writer_does_wrong_is_in_the_trace(
    spans: Spans,
    proof: Callable[[], Headers],
    headers: Headers,
    body: Sequence[Message],
    status: int | None,
) -> None:
    settings = Settings.model_validate(
        {"TELEMETRY_WEBHOOK_TOKEN": "a token", "webhook_signing_secret": SIGNING}
    )
    answered, (post,) = await refused(spans, settings, headers | proof(), *body)
    assert post.attributes is not None
    assert answered == post.attributes.get("http.response.status_code") == status


@pytest.mark.parametrize("error", [NotStored("a secret"), ValueError("a secret")])
async def test_what_failed_says_so_without_the_words_of_an_error(spans: Spans, error: Exception) -> None:
    _, found = await exported(spans, TRACEPARENT, error=error)
    post = found[-1]
    assert post.status.status_code is StatusCode.ERROR
    assert post.attributes is not None
    assert post.attributes["error.type"] == type(error).__name__
    assert not any("secret" in span.to_json() or span.events for span in found)


@pytest.mark.parametrize(("status", "code"), [(422, StatusCode.UNSET), (503, StatusCode.ERROR)])
async def test_an_answer_counts_as_failed_where_it_is_our_fault(
    spans: Spans, status: int, code: StatusCode
) -> None:
    _, found = await exported(spans, TRACEPARENT, status)
    assert found[-1].status.status_code is code


class Broken(SpanProcessor):
    """An SDK that raises at the beginning of a span, or at its end."""

    def __init__(self, when: str) -> None:
        self._when = when

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self._when == "start":
            raise KeyError("a secret")

    def on_end(self, span: ReadableSpan) -> None:
        if self._when == "end":
            raise KeyError("a secret")


BROKEN = ["start", "end", "_recorded", "attach", "_answered", "_failed", "_counted", "_traceparent"]


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize(("status", "error"), [(204, None), (503, None), (503, NotStored())])
async def test_a_post_is_what_it_would_be_also_where_its_spans_can_not_be_made(
    spans: Spans,
    what: str,
    status: int,
    error: Exception | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*words: Any) -> Any:
        raise KeyError("a secret")

    if what in ("start", "end"):
        spans._provider.add_span_processor(Broken(what))
    else:
        monkeypatch.setattr(module, what, broken)
    hook, _ = await exported(spans, TRACEPARENT, status, error)
    assert hook.shortcuts or [event.text.startswith(EVENT.text) for event in hook.appended] == [True]
    assert len(caplog.messages) <= 1
    assert "secret" not in caplog.text


async def test_what_is_appended_outside_of_a_traced_request_carries_nothing(spans: Spans) -> None:
    with spans.append([EVENT]) as events:
        assert events == [EVENT]


def entry(traceparent: str, kind: bytes = b"run_log") -> Sequence[bytes]:
    text = EVENT.text + (f"{traceparent}~".encode() if traceparent else b"")
    return [b"e", b"run-1 " + kind + text + SEAL]


def test_a_batch_has_a_span_for_each_append_that_its_events_came_by(spans: Spans) -> None:
    other = f"00-{'1' * 32}-{'2' * 16}-01"
    batch = [(entry(TRACEPARENT), True), (entry(""), True), (entry(other, b"heartbeat"), True)]
    batch += [(entry(TRACEPARENT, b"artifact"), False)]
    exporter = InMemorySpanExporter()
    ended = time.time_ns() - 1_000_000_000
    with spans.exporting(exporter):
        spans.archived(batch, 0.25, ended)
    one, two = exporter.get_finished_spans()
    for span, trace, parent in ((one, TRACE, PARENT), (two, "1" * 32, "2" * 16)):
        assert (span.name, span.kind) == ("archive", SpanKind.CONSUMER)
        assert span.parent is not None
        assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (trace, parent)
        assert (span.start_time, span.end_time) == (ended - 250_000_000, ended)
    assert one.attributes == {
        "relay.events": 2,
        "relay.kinds": ("artifact", "run_log"),
        "relay.dead_letters": 1,
        "error.type": "DeadLetter",
    }
    assert two.attributes == {"relay.events": 1, "relay.kinds": ("heartbeat",)}
    assert (one.status.status_code, two.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)


def test_a_batch_that_no_spans_can_be_made_of_harms_nobody_and_is_told_of_once_in_a_while(
    spans: Spans, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(kinds: Any) -> Any:
        raise KeyError("a secret")

    monkeypatch.setattr(module, "_counted", broken)
    for _ in range(20):
        spans.archived([(entry(TRACEPARENT), True)], 0, time.time_ns())
    (said,) = caplog.messages
    assert "KeyError" in said
    assert "secret" not in caplog.text


class Refusing(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.FAILURE


def test_an_endpoint_that_takes_nothing_is_told_of_once_in_a_while(
    spans: Spans, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    with spans.exporting(Refusing()):
        for _ in range(20):
            spans.archived([(entry(TRACEPARENT), True)], 0, time.time_ns())
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.name for record in said] == ["relay.spans"]


class Frozen(SpanExporter):
    def __init__(self) -> None:
        self.thawed = threading.Event()
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.thawed.wait(30)
        self.taken += len(spans)
        return SpanExportResult.SUCCESS


@pytest.fixture
def frozen() -> Iterator[Frozen]:
    made = Frozen()
    yield made
    made.thawed.set()


def test_an_endpoint_that_hangs_keeps_no_program_from_its_end(
    spans: Spans, frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.05)
    began = time.monotonic()
    with spans.exporting(frozen):
        spans.archived([(entry(TRACEPARENT), True)] * 3, 0, time.time_ns())
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("size", "whole"), [(None, True), ("512", False)])
def test_the_largest_batch_has_room_while_its_spans_wait_unless_the_operator_gave_less(
    spans: Spans, frozen: Frozen, size: str | None, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 30)
    if size:
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", size)
    batch = [(entry(f"00-{TRACE}-{number:016x}-01"), True) for number in range(1, 10_001)]
    with spans.exporting(frozen):
        spans.archived(batch, 0, time.time_ns())
        frozen.thawed.set()
    assert (frozen.taken == len(batch)) is whole
