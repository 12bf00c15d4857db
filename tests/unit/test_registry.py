"""Declarations of kinds are checked when they are made."""

import json
from typing import Any, ClassVar

import pytest

from relay.events.base import Kind
from relay.events.intake import BATCH, WEBHOOKS
from relay.events.kinds import PaperGenerationProgress, RunFinished
from relay.events.registry import INITIAL_KEYS, REGISTRY, registry
from tests.factories import EXAMPLES


def test_every_kind_has_an_example_that_is_valid_alone_and_in_a_batch() -> None:
    assert EXAMPLES.keys() == REGISTRY.keys()
    for name, kind in REGISTRY.items():
        event = EXAMPLES[name]
        alone = {"run_id": "run-1", **event} if kind.flat else {"run_id": "run-1", "event": event}
        assert WEBHOOKS[name].validate_json(json.dumps(alone)).run_id == "run-1"
        item = {"run_id": "run-1", "kind": name, "event": event}
        assert BATCH.validate_json(json.dumps([item]))[0].kind == name


def test_the_columns_are_what_the_stored_text_holds() -> None:
    for name, kind in REGISTRY.items():
        assert kind.model_validate_json(json.dumps(EXAMPLES[name])).model_dump().keys() == kind.columns.keys()


def test_every_kind_appears_in_the_initial_frame() -> None:
    assert {kind.initial_key for kind in REGISTRY.values() if kind.table} == set(INITIAL_KEYS)


class Toy(Kind):
    kind = "toy"
    path = "/toy"
    sse_type = "toy"
    initial_key = "toys"
    history_path = "toys"
    table = "toys"
    columns: ClassVar = {"size": "bigint"}

    size: int


def test_a_declared_kind_is_found_by_its_name() -> None:
    assert registry([Toy, RunFinished])["toy"] is Toy


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "Toy"},
        {"path": "toy"},
        {"table": "toys; DROP TABLE toys"},
        {"columns": {"size)": "bigint"}},
        {"path": RunFinished.path},
        {"kind": RunFinished.kind},
        {"table": RunFinished.table},
        {"initial_key": PaperGenerationProgress.initial_key},
    ],
)
def test_a_wrong_or_doubled_declaration_is_refused(changes: dict[str, Any]) -> None:
    wrong = type("Wrong", (Toy,), {**changes, "__annotations__": {}})
    with pytest.raises(TypeError, match="Wrong"):
        registry([RunFinished, PaperGenerationProgress, wrong])


def test_an_incomplete_declaration_is_refused() -> None:
    class Incomplete(Kind):
        kind = "incomplete"

    with pytest.raises(TypeError, match="does not declare path"):
        registry([Incomplete])
