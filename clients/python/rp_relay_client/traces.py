"""The trace that a pipeline is in, where it is in one: by OpenTelemetry, which is used only where the
pipeline has loaded it itself."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

_API = "opentelemetry.trace"

SAMPLED = 1


def finder() -> Callable[[], Any] | None:
    """What answers the context of its caller's span; None as long as nobody has loaded OpenTelemetry."""
    return _current if _API in sys.modules else None


def _current() -> Any:
    try:
        return sys.modules[_API].get_current_span().get_span_context()
    except Exception:
        return None  # another thread may be loading it just now; no event is worth less without


def traceparent(contexts: Sequence[Any]) -> str | None:
    """The header of W3C Trace Context for the last of these spans that is recorded."""
    with suppress(Exception):  # whatever stands for a span there: events are worth more than their trace
        for context in reversed(contexts):
            if context is not None and context.is_valid and context.trace_flags & SAMPLED:
                return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return None
