"""Whether there are traces. Where there are none, nothing of OpenTelemetry is loaded for them."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from relay.errors import Misconfigured
from relay.settings import StoreSettings

if TYPE_CHECKING:
    from relay.spans import Spans

Program = Literal["relay", "persister"]

EXPORTER = "opentelemetry.exporter.otlp.proto.http"
"""What the extra brings; all else that traces need comes with it."""


def spans(settings: StoreSettings, program: Program) -> "Spans | None":
    """What makes the spans of a program, or None where no endpoint is set. Raises Misconfigured."""
    check(settings)
    if not settings.otlp_endpoint:
        return None
    from relay.spans import Spans  # noqa: PLC0415 - it loads what is not needed otherwise

    return Spans(program, settings.otlp_endpoint)


def check(settings: StoreSettings) -> None:
    """Raises Misconfigured where there should be traces, and what sends them is not there. Loads none."""
    if settings.otlp_endpoint and not _installed():
        raise Misconfigured(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but what sends traces is not installed: install "
            "rp-relay[tracing], or unset it."
        )


def _installed() -> bool:
    try:
        return find_spec(EXPORTER) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False
