"""All kinds of events, checked on import. Everything that differs by kind loops over REGISTRY."""

import re
from collections.abc import Iterable, Mapping

from relay.events import kinds
from relay.events.base import Kind

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PATH = re.compile(r"(/[a-z0-9-]+)+")


def registry(declared: Iterable[type[Kind]]) -> Mapping[str, type[Kind]]:
    """The kinds by name. Raises TypeError where a declaration is incomplete or not unique."""
    by_name: dict[str, type[Kind]] = {}
    paths: set[str] = set()
    for kind in declared:
        for attribute in ("kind", "path", "sse_type", "initial_key", "table", "columns"):
            if not hasattr(kind, attribute):
                raise TypeError(f"{kind.__name__} does not declare {attribute}")
        for name in (kind.kind, kind.sse_type, kind.initial_key, kind.table, *kind.columns):
            if not _NAME.fullmatch(name):
                raise TypeError(f"{kind.__name__} declares a name that is not lower_snake_case")
        if not _PATH.fullmatch(kind.path):
            raise TypeError(f"{kind.__name__} declares a path that is not /lower-kebab-case")
        if kind.kind in by_name or kind.path in paths:
            raise TypeError(f"{kind.__name__} declares a kind or path that another one has")
        for other in by_name.values():
            shared = (kind.table == other.table, kind.initial_key == other.initial_key)
            if any(shared) and not (all(shared) and kind.kind_column and kind.columns == other.columns):
                raise TypeError(
                    f"{kind.__name__} and {other.__name__} share a table or a list, but not all of it"
                )
        by_name[kind.kind] = kind
        paths.add(kind.path)
    return by_name


REGISTRY = registry(
    kind
    for kind in vars(kinds).values()
    if isinstance(kind, type) and issubclass(kind, Kind) and kind is not Kind
)

TABLES: Mapping[str, type[Kind]] = {kind.table: kind for kind in REGISTRY.values()}
"""One kind of each table: those that share a table declare the same columns."""

INITIAL_KEYS = (
    "stage_progress",
    "logs",
    "substage_events",
    "artifacts",
    "events",
    "paper_generation_progress",
)
"""The lists of the `initial` frame, in the order of the contract; all are there, even when empty."""
