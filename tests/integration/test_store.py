"""How rows are written: by COPY where all is well, else by INSERT, and the same by both."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persister import copy
from persister.store import Store, also, insert
from relay.events.kinds import RunFinished
from relay.stream.entry import Entry
from tests.conftest import Servers
from tests.factories import event
from tests.sql import rows, sql

TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20
) | st.sampled_from(["\\N", "\\", "\t", "\n", "\r\n", "\\.", "\u2028", "\x7f", "a\\tb", '"', "\x01"])
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60)
DETAILS = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, details=st.none() | st.dictionaries(TEXTS, DETAILS, max_size=3))
def test_copy_and_insert_store_the_same(servers: Servers, archive: Store, text: str, details: Any) -> None:
    made = event(step=text, substep=text, details=details).text
    entries = [Entry(id, "run-1", "paper_generation_progress", made) for id in (1 << 40, (1 << 40) + 1)]
    assert archive._refusal(entries[:1], by_copy=True) is None
    assert archive.insert(entries[1:], by_copy=False) == []
    copied, inserted = rows(
        servers.database_url, "step, substep, progress, step_progress, details, occurred_at, created_at"
    )
    assert copied == inserted
    with sql(servers.database_url) as cursor:
        cursor.execute("TRUNCATE rp_paper_generation_events")


@pytest.mark.parametrize(
    "text",
    [
        b'{"step":1}',
        b'{"step":"s","progress":"x"}',
        b'{"step":"s","progress":true}',
        b'{"step":"s","progress":1%b}' % (b"0" * 400),
        b"{no JSON}",
    ],
)
def test_what_the_webhook_does_not_make_is_no_row(text: bytes) -> None:
    good, odd = event().text, Entry(1 << 40, "run-1", "paper_generation_progress", text)
    rows = copy.Rows([Entry(1, "run-1", odd.kind, good), odd, Entry(1 << 41, "run-1", odd.kind, good)])
    assert rows.read().splitlines(keepends=True)[1:] == [copy.NO_ROW]
    assert rows.read() == b""


def test_a_batch_with_no_row_in_it_is_stored_but_for_what_postgresql_does_not_take(
    servers: Servers, archive: Store
) -> None:
    entries = [Entry(id, "run-1", "paper_generation_progress", event().text) for id in range(1, 301)]
    entries[250] = entries[250]._replace(text=b'{"step":"s","progress":"x"}')
    (rejected,) = archive.insert(entries)
    assert rejected.entry == entries[250]
    assert len(rows(servers.database_url, "id")) == 299


def test_the_statements_of_a_kind_are_these() -> None:
    inserted, updated = [" ".join(statement(RunFinished).split()) for statement in (insert, also)]
    assert inserted == (
        "INSERT INTO research_pipeline_run_events "
        "(id, run_id, event_type, metadata, occurred_at, created_at) "
        "SELECT id, run_id, event_type, metadata, occurred_at, created_at "
        "FROM jsonb_to_recordset(%(events)s::jsonb) "
        "AS event(id bigint, run_id text, event_type text, metadata jsonb, "
        "occurred_at timestamptz, created_at timestamptz) "
        "ORDER BY id ON CONFLICT (id) DO NOTHING"
    )
    assert updated.startswith(
        "WITH events AS ( SELECT id, run_id, event_type, metadata, occurred_at, created_at FROM"
    )
    assert "UPDATE research_pipeline_runs" in updated
    assert copy.statement(RunFinished) == (
        "COPY research_pipeline_run_events (id, run_id, event_type, metadata, occurred_at, created_at) "
        "FROM STDIN (ENCODING 'UTF8')"
    )
