"""Traces: one goes from the pipeline over the webhook to the archive, has no secrets, and holds nobody up."""

import secrets
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from relay.stream.keys import ShardKeys
from tests.acceptance.running import CLIENT, EVENTS, Relay, Viewer, relay_up, viewer
from tests.canaries import IN_NO_LOG
from tests.conftest import Servers
from tests.factories import EXAMPLES, new_run_id, progress
from tests.sql import query
from tests.waiting import wait_until


class Collector:
    """Takes spans as any collector does, by OTLP over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        taken = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                taken.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    def spans(self, trace_id: bytes) -> dict[tuple[str, str], Span]:
        """The spans of a trace that have come so far, by program and name."""
        found = {}
        for body in list(self.bodies):
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                told = {item.key: item.value.string_value for item in of_resource.resource.attributes}
                for scope in of_resource.scope_spans:
                    for span in scope.spans:
                        if span.trace_id == trace_id:
                            found[told["service.name"], span.name] = span
        return found

    def leave(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.leave()


@pytest.fixture(scope="module")
def traced(directory: Path, session_servers: Servers, collector: Collector) -> Iterator[Relay]:
    """A product that exports traces, on the stores of the session."""
    with relay_up(
        directory / "traced",
        REDIS_URL=session_servers.redis_url,
        DATABASE_URL=session_servers.database_url,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_EXPORTER_OTLP_TIMEOUT="5",  # so that it gives up soon
        OTEL_BSP_SCHEDULE_DELAY="50",
        FASTAPI_OTEL_AUTO_CONFIGURE="true",
    ) as made:
        yield made


def new_trace() -> tuple[bytes, bytes, str]:
    """Its id, that of the pipeline's span, and both as a `traceparent`."""
    trace_id, span_id = secrets.token_bytes(16), secrets.token_bytes(8)
    return trace_id, span_id, f"00-{trace_id.hex()}-{span_id.hex()}-01"


def traced_fields(url: str, run_id: str) -> list[bool]:
    """Of each entry of a run: whether it carries a trace."""
    client = redis.Redis.from_url(url)
    entries: Any = client.xrange(ShardKeys(0).run(run_id))
    client.close()
    return [fields[b"e"][-9:-8] == b"~" for _, fields in entries]


def test_one_trace_goes_from_the_webhook_to_the_archive(traced: Relay, collector: Collector) -> None:
    run_id = new_run_id()
    traced.claim(run_id)
    trace_id, pipeline, traceparent = new_trace()
    event = progress(**EXAMPLES["paper_generation_progress"])
    path, body = "/paper-generation-progress", {"run_id": run_id, "event": event}
    key = {"idempotency-key": f"key-{run_id}"}
    assert traced.post(path, body, traceparent=traceparent, **key).status_code == 204
    found = wait_until(
        lambda: spans if len(spans := collector.spans(trace_id)) == 3 else None, "three spans", 30
    )
    assert found is not None
    post = found["relay", f"POST {EVENTS}{path}"]
    append, archive = found["relay", "append"], found["persister", "archive"]
    assert (post.parent_span_id, append.parent_span_id, archive.parent_span_id) == (
        pipeline,
        post.span_id,
        append.span_id,
    )
    kinds = [Span.SPAN_KIND_SERVER, Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER]
    assert [span.kind for span in (post, append, archive)] == kinds

    # The same again, in another trace or in none, is a repeat; and nobody is shown a trace.
    assert traced.post(path, body, traceparent=new_trace()[2], **key).status_code == 204
    assert traced.post(path, body, **key).status_code == 204
    assert traced.post(path, body).status_code == 204
    assert traced_fields(traced.redis_url, run_id) == [True, False]
    one, two = traced.archived(run_id, 2)
    assert {**one, "id": two["id"], "created_at": two["created_at"]} == two
    watching = Viewer(traced, run_id)
    (initial,) = watching.wait(1)
    watching.cut()
    assert initial["data"]["paper_generation_progress"] == [one, two]


def test_what_is_exported_has_no_secret_and_nothing_of_an_event(traced: Relay, collector: Collector) -> None:
    run_id, (trace_id, _, traceparent) = new_run_id(), new_trace()
    traced.claim(run_id)
    batch = [{"kind": kind, "run_id": run_id, "event": event} for kind, event in EXAMPLES.items()]
    CLIENT.get(f"{traced.run_url(run_id)}/paper?ticket=eyJhbGciOi", headers=viewer(traceparent=traceparent))
    refused = {"traceparent": traceparent, "authorization": "Bearer wrong"}
    assert CLIENT.post(f"{traced.url}{EVENTS}/batch", json=batch, headers=refused).status_code == 401
    answer = traced.http.post(f"{EVENTS}/batch", json=batch, headers={"traceparent": traceparent})
    assert answer.status_code == 204
    wait_until(lambda: len(collector.spans(trace_id)) == 3, "three spans, in whichever order", 30)
    assert ("persister", "archive") in collector.spans(trace_id)
    exported = b"".join(collector.bodies)
    for what, strings in IN_NO_LOG.items():
        assert not [text for text in strings if text.encode() in exported], what
    assert b"user" not in exported


def test_a_traceparent_that_is_none_harms_nobody(traced: Relay) -> None:
    run_id = new_run_id()
    for wrong in ("", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5000, "é"):
        body = {"run_id": run_id, "event": {"message": "m"}}
        header = [(b"traceparent", wrong.encode())]
        answer = traced.http.post(f"{EVENTS}/run-log", json=body, headers=header)
        assert answer.status_code == 204
    assert traced_fields(traced.redis_url, run_id) == [False] * 5


def archived(url: str, run_id: str) -> int:
    statement = "SELECT count(*) FROM rp_paper_generation_events WHERE run_id = %s"
    ((count,),) = query(url, statement, [run_id])
    return int(count)


def test_without_its_endpoint_the_product_goes_on_and_stops_as_before(
    traced: Relay, collector: Collector, directory: Path
) -> None:
    """The last test here: the endpoint does not come back."""
    collector.leave()
    run_id = new_run_id()
    body = {"run_id": run_id, "event": progress()}
    began = time.monotonic()
    for _ in range(50):
        answer = traced.post("/paper-generation-progress", body, traceparent=new_trace()[2])
        assert answer.status_code == 204
    assert time.monotonic() - began < 10
    wait_until(lambda: archived(traced.database_url, run_id) == 50, "all in the archive")
    log = directory / "traced.log"
    wait_until(lambda: log.read_text().count("takes no spans") == 2, "a line of each program", 30)
    assert "opentelemetry" not in log.read_text()
    traced.process.terminate()
    began = time.monotonic()
    traced.process.wait(20)
    assert time.monotonic() - began < 10
