"""The kinds of events. To add one: a class here, a migration, an example in `tests/factories.py`."""

from typing import Any, ClassVar

from pydantic import model_serializer
from pydantic_core import from_json, to_json

from relay.events.base import Fraction, Kind, Label, Text


class PaperGenerationProgress(Kind):
    """How far the paper is: the whole of it, and the step at hand."""

    kind = "paper_generation_progress"
    path = "/paper-generation-progress"
    sse_type = "paper_generation_progress"
    initial_key = "paper_generation_progress"
    history_path = "paper-generation-progress"
    table = "rp_paper_generation_events"
    columns: ClassVar = {
        "step": "text",
        "substep": "text",
        "progress": "double precision",
        "step_progress": "double precision",
        "details": "jsonb",
    }

    step: Label
    substep: Text | None = None
    progress: Fraction
    step_progress: Fraction
    details: dict[str, Any] | None = None


class RunFinished(Kind):
    """The run is over. Its row is one of the run's life; the run takes its status from it."""

    kind = "run_finished"
    path = "/run-finished"
    flat = True
    sse_type = "complete"
    initial_key = "events"
    table = "research_pipeline_run_events"
    columns: ClassVar = {"event_type": "text", "metadata": "jsonb"}
    kind_column = "event_type"
    also = """
        UPDATE research_pipeline_runs AS run
        SET status = CASE WHEN (finished.metadata->>'success')::boolean THEN 'completed' ELSE 'failed' END,
            error_message = CASE WHEN NOT (finished.metadata->>'success')::boolean
                                 THEN finished.metadata->>'message' END,
            finished_at = finished.created_at
        FROM (SELECT DISTINCT ON (run_id) * FROM events ORDER BY run_id, id) AS finished
        WHERE run.run_id = finished.run_id AND run.status NOT IN ('completed', 'failed', 'cancelled')
    """
    ends_run = True

    success: bool
    message: Text | None = None

    @model_serializer
    def row(self) -> dict[str, Any]:
        return {
            "event_type": self.kind,
            "metadata": {"success": self.success, "message": self.message},
        }

    @classmethod
    def live(cls, payload: bytes) -> bytes:
        success = from_json(payload)["metadata"]["success"]
        return to_json({"status": "completed" if success else "failed"})
