"""Sends a research pipeline's events to the relay, and never gets in the pipeline's way.

    from rp_relay_client import Emitter, RunLogEvent

    emitter = Emitter("https://relay.example.org", token, run_id)
    emitter(RunLogEvent("loading the dataset"))     # an Emitter is the pipeline's event_callback

Everything that a pipeline needs is here; the modules below are how it is done.
"""

from rp_relay_client.counters import Stats
from rp_relay_client.emitter import Emitter
from rp_relay_client.events import (
    BaseEvent,
    EventKind,
    PaperGenerationProgressEvent,
    PersistenceRecord,
    RunLogEvent,
    RunStageProgressEvent,
    SubstageCompletedEvent,
)
from rp_relay_client.logs import RelayLogHandler
from rp_relay_client.settings import Settings
from rp_relay_client.steps import Step

__all__ = [
    "BaseEvent",
    "Emitter",
    "EventKind",
    "PaperGenerationProgressEvent",
    "PersistenceRecord",
    "RelayLogHandler",
    "RunLogEvent",
    "RunStageProgressEvent",
    "Settings",
    "Stats",
    "Step",
    "SubstageCompletedEvent",
]
