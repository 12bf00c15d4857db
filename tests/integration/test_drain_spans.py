"""What the drain says to whoever traces it: outcomes, once for each batch, never at the archive's cost."""

import json
import threading
from typing import Any

import pytest
import redis
import redis.exceptions
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from persister.consumer import Consumer
from persister.dead_letters import DeadLetters
from persister.loop import Loop
from persister.settings import Settings
from persister.store import Store
from relay.spans import Spans
from relay.stream.entry import NewEvent, traced
from relay.stream.publish import Publisher
from tests.conftest import Servers
from tests.factories import event
from tests.integration.draining import KEYS, drain, pending
from tests.sql import rows


async def test_the_outcome_of_a_traced_entry_is_in_its_span_and_its_dead_letter_is_as_any(
    servers: Servers, publisher: Publisher, client: redis.Redis, archive: Store
) -> None:
    traceparent = f"00-{'1' * 32}-{'2' * 16}-01"
    bad = NewEvent("run-1", "paper_generation_progress", b'{"step":null,"progress":0,"step_progress":0}')
    unknown = NewEvent("run-1", "from_the_future", b'{"n":1}')
    await publisher.append([traced(one, traceparent) for one in (event(), bad, unknown)])
    await publisher.append([event()])
    client.xadd(KEYS.log, {"some": "thing"})
    spans, exporter = Spans("persister", "http://127.0.0.1:9"), InMemorySpanExporter()
    with spans.exporting(exporter):
        drain(Loop(client, archive, 0, Settings(persister_name="p"), spans))
    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None
    assert (span.attributes["relay.events"], span.attributes["relay.dead_letters"]) == (2, 1)
    assert (len(rows(servers.database_url)), pending(client)) == (2, 0)
    shown = [letter.shown() for letter in DeadLetters([client])]
    assert shown[:-1] == [
        {"run_id": one.run_id, "kind": one.kind, "event": json.loads(one.text)} for one in (bad, unknown)
    ]
    assert shown[-1] == {"some": "thing"}


async def test_a_batch_that_comes_again_since_it_was_not_acknowledged_has_its_spans_once(
    publisher: Publisher, client: redis.Redis, archive: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publisher.append([traced(event(), f"00-{'1' * 32}-{'2' * 16}-01")])
    spans, exporter = Spans("persister", "http://127.0.0.1:9"), InMemorySpanExporter()

    def away(*words: Any) -> None:
        raise redis.exceptions.ConnectionError

    def persister() -> Loop:
        return Loop(client, archive, 0, Settings(persister_name="p"), spans)

    with spans.exporting(exporter):
        with monkeypatch.context() as cut:
            cut.setattr(Consumer, "settle", away)
            with pytest.raises(redis.exceptions.ConnectionError):
                persister().step()
        assert drain(persister()) == 1
    assert len(exporter.get_finished_spans()) == 1


async def test_the_archive_waits_for_no_spans_and_does_without_those_that_can_not_be_made(
    servers: Servers,
    publisher: Publisher,
    client: redis.Redis,
    archive: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    makers = []

    def broken(kinds: Any) -> Any:
        makers.append(threading.current_thread())
        raise ValueError

    monkeypatch.setattr("relay.spans._counted", broken)
    await publisher.append([traced(event(), f"00-{'1' * 32}-{'2' * 16}-01")])
    drain(Loop(client, archive, 0, Settings(persister_name="p"), Spans("persister", "http://127.0.0.1:9")))
    assert makers == [threading.current_thread()], "and not the one that has the archive's connection"
    assert (len(rows(servers.database_url)), pending(client)) == (1, 0)
