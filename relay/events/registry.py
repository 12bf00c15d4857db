"""All kinds of events, checked on import. Everything that differs by kind loops over REGISTRY."""

import re
from collections.abc import Iterable, Mapping

from relay.events import kinds
from relay.events.base import Kind

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PATH = re.compile(r"(/[a-z0-9-]+)+")
_DECLARED = ("kind", "path", "sse_type", "initial_key", "history_path", "table", "columns")


def registry(declared: Iterable[type[Kind]]) -> Mapping[str, type[Kind]]:
    """The kinds by name. Raises TypeError where a declaration is incomplete or contradicts another one."""
    by_name: dict[str, type[Kind]] = {}
    for kind in declared:
        _check(kind)
        for other in by_name.values():
            _check_together(kind, other)
        by_name[kind.kind] = kind
    return by_name


def _check(kind: type[Kind]) -> None:
    for attribute in _DECLARED:
        if not hasattr(kind, attribute):
            raise TypeError(f"{kind.__name__} does not declare {attribute}")
    for name in (kind.kind, kind.sse_type, kind.initial_key or "none", kind.table or "none", *kind.columns):
        if not _NAME.fullmatch(name):
            raise TypeError(f"{kind.__name__} declares a name that is not lower_snake_case")
    for path in (kind.path, f"/{kind.history_path or 'none'}"):
        if not _PATH.fullmatch(path):
            raise TypeError(f"{kind.__name__} declares a path that is not /lower-kebab-case")


def _check_together(kind: type[Kind], other: type[Kind]) -> None:
    both = f"{kind.__name__} and {other.__name__}"
    if kind.kind == other.kind or kind.path == other.path:
        raise TypeError(f"{both} have the same name or path")
    shared = [
        getattr(kind, name) is not None and getattr(kind, name) == getattr(other, name)
        for name in ("table", "initial_key", "history_path")
    ]
    if any(shared) and not (all(shared) and kind.kind_column and kind.columns == other.columns):
        raise TypeError(f"{both} share a table or a list, but not all of it")


REGISTRY = registry(
    kind
    for kind in vars(kinds).values()
    if isinstance(kind, type) and issubclass(kind, Kind) and "kind" in vars(kind)
)

TABLES: Mapping[str, type[Kind]] = {kind.table: kind for kind in REGISTRY.values() if kind.table}
"""One kind of each table: those that share a table declare the same columns."""

HIGHEST_ID = "SELECT greatest({})".format(
    ", ".join(f"(SELECT max(id) FROM {table})" for table in TABLES)  # noqa: S608
)
"""Asks for the highest id in the archive; null where that is empty."""

CHANGING = {name for name, kind in REGISTRY.items() if "changes" in vars(kind)}
"""The kinds that change the run itself."""

AT_WORK = {name for name, kind in REGISTRY.items() if kind.at_work}
"""The kinds that only a run sends that is under way."""

ENDING = {name for name, kind in REGISTRY.items() if kind.ends_run}
"""The kinds with which a run is over."""

LISTED = {name: kind.initial_key for name, kind in REGISTRY.items() if kind.table and kind.initial_key}
"""The list of the `initial` frame that events of a kind are in."""

_CONTRACT = ("stage_progress", "logs", "substage_events", "artifacts", "events", "paper_generation_progress")
INITIAL_KEYS = tuple(
    dict.fromkeys((*_CONTRACT, *(kind.initial_key for kind in TABLES.values() if kind.initial_key)))
)
"""The lists of the `initial` frame, in the order of the contract; all are there, even when empty."""
