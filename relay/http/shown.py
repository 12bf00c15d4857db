"""What readers are shown of a run and its events, as models: for the API document, and for nothing else. What
PostgreSQL makes of a row is passed through as it is."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model

from relay.events.base import Kind
from relay.events.registry import INITIAL_KEYS, TABLES

_TYPES: Mapping[str, Any] = {
    "text": str,
    "bigint": int,
    "boolean": bool,
    "double precision": float,
    "jsonb": dict[str, Any],
}
"""What a column is in JSON."""


class RunState(BaseModel):
    """A run. `stale`: it is under way, and no event of it came for long."""

    run_id: str
    conversation_id: int
    status: Literal["pending", "running", "completed", "failed", "cancelled"]
    error_message: str | None
    created_at: str
    finished_at: str | None
    last_heartbeat_at: str | None
    stale: bool


def _name(kind: type[Kind]) -> str:
    """The kind's list, as part of a model's name."""
    return (kind.history_path or kind.kind).title().replace("-", "")


def _column(kind: type[Kind], name: str, sql_type: str) -> Any:
    """The type of a column; it may be null where the kind's field may be left out and has no value then."""
    field, shown = kind.model_fields.get(name), _TYPES.get(sql_type, Any)
    return shown | None if field and not field.is_required() and field.default is None else shown


def _event(kind: type[Kind]) -> type[BaseModel]:
    columns = {name: (_column(kind, name, sql_type), ...) for name, sql_type in kind.columns.items()}
    said = Field(default_factory=str, description="By the pipeline's clock; only where that is known")
    fields: dict[str, Any] = {
        "id": (int, ...),
        "run_id": (str, ...),
        **columns,
        "created_at": (str, ...),
        "occurred_at": (str, said),
    }
    return create_model(f"{_name(kind)}Event", __doc__="An event, as it is kept.", **fields)


EVENTS: Mapping[str, type[BaseModel]] = {table: _event(kind) for table, kind in TABLES.items()}
"""The events of each table."""


def history_of(table: str) -> type[BaseModel]:
    """The events of one table, oldest first."""
    fields: dict[str, Any] = {"run_id": (str, ...), "events": (list[EVENTS[table]], ...)}  # type: ignore[valid-type]
    return create_model(f"{_name(TABLES[table])}History", __doc__="The events, oldest first.", **fields)


def paper_history_of(table: str) -> type[BaseModel]:
    """The same of the paper's table, and where the newest one of the run stands."""
    fields: dict[str, Any] = {"latest_step": (str | None, ...), "overall_progress": (float, ...)}
    return create_model(history_of(table).__name__, __base__=history_of(table), **fields)


def _lists() -> dict[str, Any]:
    of_key = {kind.initial_key: EVENTS[table] for table, kind in TABLES.items()}
    return {key: (list[of_key.get(key, BaseModel)], ...) for key in INITIAL_KEYS}  # type: ignore[misc]


RunAsAWhole: type[BaseModel] = create_model(
    "RunAsAWhole",
    __doc__="A run with all that happened in it, oldest first, and the id that this is exact at.",
    **{"id": (int, ...), "run": (RunState, ...), **_lists()},
)
