"""The trace that a pipeline is in, where it is in one: by OpenTelemetry, which is used only where the
pipeline has loaded it itself."""

import sys
from collections.abc import Sequence
from typing import Any


def current() -> Any:
    """The context of the caller's span, as OpenTelemetry has it; None where it is not loaded."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    try:
        return api.get_current_span().get_span_context()
    except Exception:
        return None  # another thread may be loading it just now; no event is worth less without


def traceparent(contexts: Sequence[Any]) -> str | None:
    """The header of W3C Trace Context for the last of these spans that is recorded."""
    for context in reversed(contexts):
        if context is not None and context.is_valid and context.trace_flags.sampled:
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return None
