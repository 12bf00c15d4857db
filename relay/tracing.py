"""Whether there are traces. Where there are none, nothing of OpenTelemetry is loaded for them."""

from typing import TYPE_CHECKING, Literal

from relay.errors import Misconfigured
from relay.settings import StoreSettings

if TYPE_CHECKING:
    from relay.spans import Spans

Program = Literal["relay", "persister"]


def spans(settings: StoreSettings, program: Program) -> "Spans | None":
    """What makes the spans of a program, or None where no endpoint is set. Raises Misconfigured."""
    if not settings.otlp_endpoint:
        return None
    try:
        from relay.spans import Spans  # noqa: PLC0415 - it loads what is not needed otherwise
    except ImportError as error:
        raise Misconfigured(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but what sends traces is not installed: install "
            "rp-relay[tracing], or unset it."
        ) from error
    return Spans(program, settings.otlp_endpoint)
