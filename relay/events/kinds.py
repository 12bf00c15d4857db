"""The kinds of events. To add one: a class here, a migration, an example in `tests/factories.py`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

from pydantic import Field, model_serializer
from pydantic_core import from_json, to_json

from relay.events.base import Count, Fraction, Kind, Label, Message, Moment, Number, Text


class RunStageProgress(Kind):
    """How far a stage of the search is."""

    kind = "run_stage_progress"
    path = "/stage-progress"
    sse_type = "stage_progress"
    initial_key = "stage_progress"
    history_path = "stage-progress"
    table = "rp_run_stage_progress_events"
    columns: ClassVar = {
        "stage": "text",
        "iteration": "bigint",
        "max_iterations": "bigint",
        "progress": "double precision",
        "total_nodes": "bigint",
        "buggy_nodes": "bigint",
        "good_nodes": "bigint",
        "best_metric": "text",
        "eta_s": "bigint",
        "latest_iteration_time_s": "bigint",
    }

    stage: Label
    iteration: Count
    max_iterations: Count
    progress: Number
    total_nodes: Count
    buggy_nodes: Count
    good_nodes: Count
    best_metric: Text | None = None
    eta_s: Count | None = None
    latest_iteration_time_s: Count | None = None


class RunLog(Kind):
    """A line of the run's log."""

    kind = "run_log"
    path = "/run-log"
    sse_type = "log"
    initial_key = "logs"
    history_path = "logs"
    table = "rp_run_log_events"
    columns: ClassVar = {"message": "text", "level": "text"}

    message: Text
    level: Label = "info"


class SubstageCompleted(Kind):
    """A part of a stage is done. Its row keeps all fields but the stage in the summary."""

    kind = "substage_completed"
    path = "/substage-completed"
    sse_type = "substage_completed"
    initial_key = "substage_events"
    history_path = "substage-events"
    table = "rp_substage_completed_events"
    columns: ClassVar = {"stage": "text", "summary": "jsonb"}

    stage: Label
    main_stage_number: Count
    substage_number: Count
    substage_name: Label
    reason: Text
    summary: dict[str, Any]

    @model_serializer
    def row(self) -> dict[str, Any]:
        fields = {
            "main_stage_number": self.main_stage_number,
            "substage_number": self.substage_number,
            "substage_name": self.substage_name,
            "reason": self.reason,
        }
        return {"stage": self.stage, "summary": self.summary | fields}


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


class Artifact(Kind):
    """A file was uploaded. When it was made is when the event occurred; `created_at` is when it came in."""

    kind = "artifact"
    path = "/artifact-uploaded"
    sse_type = "artifact"
    initial_key = "artifacts"
    history_path = "artifacts"
    table = "rp_artifacts"
    columns: ClassVar = {
        "artifact_type": "text",
        "filename": "text",
        "file_size": "bigint",
        "file_type": "text",
    }

    artifact_type: Label
    filename: Text
    file_size: Count
    file_type: Label
    created_at: Moment = Field(exclude=True)

    def happened_at(self) -> datetime:
        return self.created_at


class LifeEvent(Kind):
    """What happens to a run as a whole: a row in one table, whatever it is."""

    flat = True
    sse_type = "run_event"
    initial_key = "events"
    history_path = "run-events"
    table = "research_pipeline_run_events"
    columns: ClassVar = {"event_type": "text", "metadata": "jsonb"}
    kind_column = "event_type"

    @model_serializer
    def row(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in type(self).model_fields if name != "run_id"}
        return {"event_type": self.kind, "metadata": fields}


class RunStarted(LifeEvent):
    """The run is under way."""

    kind = "run_started"
    path = "/run-started"
    also = """
        UPDATE research_pipeline_runs AS run
        SET status = CASE run.status WHEN 'pending' THEN 'running' ELSE run.status END,
            last_heartbeat_at = greatest(run.last_heartbeat_at, started.created_at)
        FROM (SELECT run_id, max(created_at) AS created_at FROM events GROUP BY run_id) AS started
        WHERE run.run_id = started.run_id
    """

    @classmethod
    def messages(cls, payload: bytes) -> Sequence[Message]:
        return (("run_update", to_json(cls.changes(from_json(payload)))), (cls.sse_type, payload))

    @classmethod
    def changes(cls, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"status": "running", "last_heartbeat_at": payload["created_at"]}


def ending(run: Mapping[str, Any]) -> Sequence[Message]:
    """What ends a stream of a run with these members: why it failed, where that is known, and `complete`."""
    complete = "complete", to_json({"status": run["status"]})
    if not run["error_message"]:
        return (complete,)
    return (
        "run_update",
        to_json({name: run[name] for name in ("status", "error_message", "finished_at")}),
    ), complete


class RunFinished(LifeEvent):
    """The run is over, and takes its status from this event; of several the first one counts."""

    kind = "run_finished"
    path = "/run-finished"
    sse_type = "complete"
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

    @classmethod
    def messages(cls, payload: bytes) -> Sequence[Message]:
        return ending(cls.changes(from_json(payload)))

    @classmethod
    def changes(cls, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        success, message = payload["metadata"]["success"], payload["metadata"].get("message")
        return {
            "status": "completed" if success else "failed",
            "error_message": None if success else message,
            "finished_at": payload["created_at"],
        }


class GpuShortage(LifeEvent):
    """The run waits for GPUs."""

    kind = "gpu_shortage"
    path = "/gpu-shortage"
    at_work = False

    required_gpus: Count
    available_gpus: Count
    message: Text | None = None


class Heartbeat(Kind):
    """The run is alive. It leaves no row: it moves the run's `last_heartbeat_at`, once for many of them."""

    kind = "heartbeat"
    path = "/heartbeat"
    flat = True
    sse_type = "run_update"
    initial_key = None
    history_path = None
    table = None
    columns: ClassVar = {"event_type": "text"}
    also = """
        UPDATE research_pipeline_runs AS run
        SET last_heartbeat_at = greatest(run.last_heartbeat_at, heartbeat.created_at)
        FROM (SELECT run_id, max(created_at) AS created_at FROM events GROUP BY run_id) AS heartbeat
        WHERE run.run_id = heartbeat.run_id
    """

    @model_serializer
    def row(self) -> dict[str, Any]:
        return {"event_type": self.kind}

    @classmethod
    def messages(cls, payload: bytes) -> Sequence[Message]:
        return ((cls.sse_type, to_json(cls.changes(from_json(payload)))),)

    @classmethod
    def changes(cls, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"last_heartbeat_at": payload["created_at"]}
