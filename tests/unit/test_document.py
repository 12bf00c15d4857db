"""The API document says what every answer of JSON looks like."""

from typing import Any

import pytest
from fastapi import FastAPI

from relay.app import create_app
from relay.events.registry import INITIAL_KEYS, TABLES
from relay.http.history import RUN
from relay.settings import Settings

OPEN_BY_CONTRACT = {"details", "summary", "metadata"}
"""Columns that hold any object."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    lane: Any = create_app(Settings())
    app: FastAPI = lane._app
    return app.openapi()


def schema_of(document: dict[str, Any], path: str) -> Any:
    """What a GET answers."""
    content = document["paths"][path]["get"]["responses"]["200"]["content"]
    return resolved(document, content["application/json"]["schema"])


def resolved(document: dict[str, Any], schema: Any) -> Any:
    name = schema.get("$ref", "").removeprefix("#/components/schemas/")
    return document["components"]["schemas"][name] if name else schema


@pytest.mark.parametrize("table", TABLES)
def test_a_history_declares_the_columns_of_its_events(document: dict[str, Any], table: str) -> None:
    kind = TABLES[table]
    history = schema_of(document, f"{RUN}/{kind.history_path}")
    event = resolved(document, history["properties"]["events"]["items"])
    assert event["properties"].keys() == {"id", "run_id", *kind.columns, "created_at", "occurred_at"}
    assert set(event["required"]) == event["properties"].keys() - {"occurred_at"}
    free = {name for name, column in event["properties"].items() if "additionalProperties" in str(column)}
    assert free <= OPEN_BY_CONTRACT


def test_a_run_as_a_whole_declares_its_state_and_all_its_lists(document: dict[str, Any]) -> None:
    whole = schema_of(document, RUN)
    assert set(whole["required"]) == {"id", "run", *INITIAL_KEYS}
    for key in INITIAL_KEYS:
        assert "run_id" in resolved(document, whole["properties"][key]["items"])["properties"]
    state = resolved(document, whole["properties"]["run"])
    assert state["properties"]["status"]["enum"] == ["pending", "running", "completed", "failed", "cancelled"]
