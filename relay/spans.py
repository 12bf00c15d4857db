"""What happens to the events of a traced POST, as spans: the request, its append, and its archiving. The only
module that knows OpenTelemetry.

A span has names, counts and outcomes, and nothing that came in a body or a header but the `traceparent`
itself. Of an exception it has the name, since its message may quote a payload or SQL.

Spans are exported by a thread of the SDK. What its queue has no room for, what the endpoint does not take,
and what the SDK can not make, is dropped: a trace is worth less than what it is of.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from opentelemetry.context import Context, attach, detach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_QUEUE_SIZE
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from relay import __version__
from relay.errors import RelayError
from relay.stream.entry import NewEvent, kind_of, traced, traceparent_of

log = logging.getLogger(__name__)

FLUSH_S = 2.0
"""How long a program that stops waits for the endpoint to take its last spans."""

QUEUE_SPANS = 20_000
"""How many wait for the endpoint at most. A batch of the persister, up to 10,000 appends, makes its spans all
at once; the SDK's own 2,048 would drop most of them without a word."""

SAID_EVERY_S = 300.0
"""How often the log says that spans are dropped, and why."""

TRACEPARENT = "traceparent"

Parent = Context
"""What a span may be a child of."""

_W3C = TraceContextTextMapPropagator()

T = TypeVar("T")


class Spans:
    """The spans of one program. Those that are made before `exporting`, or after it, are lost."""

    def __init__(self, program: str, endpoint: str) -> None:
        self._endpoint = endpoint
        # What the environment says of the resource wins.
        told = Resource({"service.name": program, "service.version": __version__})
        self._provider = TracerProvider(
            resource=told.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._tracer = self._provider.get_tracer("rp-relay", __version__)
        self._dropped = _Rarely()

    @contextmanager
    def exporting(self, exporter: SpanExporter | None = None) -> Iterator[None]:
        """Sends spans to the endpoint, or to an exporter in its place, and in the end what is left."""
        # The SDK says more, and more often, than an endpoint that is away is worth.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        patient = _Patient(exporter or OTLPSpanExporter(f"{self._endpoint.rstrip('/')}/v1/traces"))
        size = None if OTEL_BSP_MAX_QUEUE_SIZE in os.environ else QUEUE_SPANS
        self._provider.add_span_processor(BatchSpanProcessor(patient, max_queue_size=size))
        try:
            yield
        finally:
            # The SDK would wait for half a minute.
            last = threading.Thread(target=self._provider.shutdown, daemon=True)
            last.start()
            last.join(FLUSH_S)

    def parent(self, traceparent: str) -> Parent | None:
        """Whose child the span of a request is; None where that is no valid `traceparent`, or one of a trace
        that is not recorded."""
        return self._safely(lambda: _recorded(traceparent))

    @contextmanager
    def request(
        self, route: str, parent: Parent, let_in: Callable[[], bool]
    ) -> Iterator[Callable[[int], None]]:
        """The span of a POST, which is to be told the status of the answer.

        In the end it asks whether the writer was let in. Where not, the span is never ended, and so not
        exported: only those who may write may fill traces.
        """
        attributes = {"http.request.method": "POST", "http.route": route}
        span = self._safely(
            lambda: self._tracer.start_span(f"POST {route}", parent, SpanKind.SERVER, attributes)
        )
        if span is None:
            yield _ignore
            return
        token = self._safely(lambda: attach(set_span_in_context(span)))
        try:
            yield lambda status: self._safely(lambda: _answered(span, status))
        except Exception as error:
            self._fail(span, error)
            raise
        finally:
            if token is not None:
                detach(token)
            if let_in():
                self._safely(span.end)

    @contextmanager
    def append(self, events: Sequence[NewEvent]) -> Iterator[Sequence[NewEvent]]:
        """The span of an append within a request: gives the events that are to be appended instead."""
        if not get_current_span().is_recording():
            yield events
            return
        span = self._safely(lambda: self._append(events))
        if span is None:
            yield events
            return
        try:
            yield self._safely(lambda: _carrying(events, span)) or events
        except RelayError as error:
            self._fail(span, error)
            raise
        finally:
            self._safely(span.end)

    def _append(self, events: Sequence[NewEvent]) -> Span:
        counted = _counted(event.kind for event in events)
        return self._tracer.start_span("append", kind=SpanKind.PRODUCER, attributes=counted)

    def archived(self, entries: Iterable[tuple[Sequence[bytes], bool]], took_s: float, ended_ns: int) -> None:
        """The spans of a transaction that ended at a time, in ns since 1970: one for each append that entries
        of it are of. `entries` are their fields, and whether they were stored; the others are dead letters.

        Raises nothing, as above.
        """
        self._safely(lambda: self._archived(entries, ended_ns - int(took_s * 1e9), ended_ns))

    def _safely(self, act: Callable[[], T]) -> T | None:
        """What it answers, or None where it raises: no event is to be lost because its trace is."""
        try:
            return act()
        except Exception as error:
            self._dropped.warn(f"{type(error).__name__}: some spans are missing, or not whole")
            return None

    def _fail(self, span: Span, error: Exception) -> None:
        self._safely(lambda: _failed(span, type(error).__name__))

    def _archived(
        self, entries: Iterable[tuple[Sequence[bytes], bool]], began_ns: int, ended_ns: int
    ) -> None:
        appends: dict[str, list[tuple[str, bool]]] = {}
        for fields, stored in entries:
            if traceparent := traceparent_of(fields[-1]):
                appends.setdefault(traceparent, []).append((kind_of(fields[-1]), stored))
        for traceparent, found in appends.items():
            span = self._tracer.start_span(
                "archive",
                _W3C.extract({TRACEPARENT: traceparent}, Context()),
                SpanKind.CONSUMER,
                _counted(kind for kind, _ in found),
                start_time=began_ns,
            )
            if dead := sum(not stored for _, stored in found):
                span.set_attribute("relay.dead_letters", dead)
                _failed(span, "DeadLetter")
            span.end(ended_ns)


class _Rarely:
    """What would be said again and again is said from time to time."""

    def __init__(self) -> None:
        self._again_at = 0.0

    def warn(self, words: str) -> None:
        now = time.monotonic()
        if now >= self._again_at:
            self._again_at = now + SAID_EVERY_S
            log.warning(words)


class _Patient(SpanExporter):
    """An exporter whose failures are told from time to time, and no more."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._dropped = _Rarely()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._dropped.warn("OTEL_EXPORTER_OTLP_ENDPOINT takes no spans; they are dropped until it does")
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


def _recorded(traceparent: str) -> Context | None:
    context = _W3C.extract({TRACEPARENT: traceparent}, Context())
    return context if get_current_span(context).get_span_context().trace_flags.sampled else None


def _ignore(status: int) -> None:
    return


def _answered(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        _failed(span, str(status))


def _carrying(events: Sequence[NewEvent], span: Span) -> Sequence[NewEvent]:
    traceparent = _traceparent(span)
    return [traced(event, traceparent) for event in events]


def _counted(kinds: Iterable[str]) -> Mapping[str, int | Sequence[str]]:
    every = list(kinds)
    return {"relay.events": len(every), "relay.kinds": sorted(set(every))}


def _failed(span: Span, why: str) -> None:
    span.set_attribute("error.type", why)
    span.set_status(StatusCode.ERROR)


def _traceparent(span: Span) -> str:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, set_span_in_context(span, Context()))
    return carrier[TRACEPARENT]
