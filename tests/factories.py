"""One valid example of every kind, and the small things that tests make again and again."""

import itertools
import json
import uuid
from typing import Any
from zlib import crc32

from relay.stream.entry import FIELD, NewEvent, head_of
from tests.canaries import PAYLOAD

EXAMPLES: dict[str, dict[str, Any]] = {
    "paper_generation_progress": {
        "step": "paper_review",
        "substep": "Review 2 of 5",
        "progress": 0.8667,
        "step_progress": 0.3333,
        "details": {"score": 6.0, "feedback": PAYLOAD},
    },
    "run_stage_progress": {
        "stage": "1_initial_implementation_1_preliminary",
        "iteration": 3,
        "max_iterations": 6,
        "progress": 0.5,
        "total_nodes": 3,
        "buggy_nodes": 2,
        "good_nodes": 1,
        "best_metric": "validation accuracy↑[mnist:(0.9120)]",
        "eta_s": 270,
        "latest_iteration_time_s": 130,
    },
    "run_log": {"message": PAYLOAD, "level": "warning"},
    "substage_completed": {
        "stage": "1_initial_implementation_1_preliminary",
        "main_stage_number": 1,
        "substage_number": 1,
        "substage_name": "preliminary",
        "reason": "max iterations reached",
        "summary": {"good_nodes": 2, "feedback": PAYLOAD},
    },
    "artifact": {
        "artifact_type": "plot",
        "filename": "loss.png",
        "file_size": 48_213,
        "file_type": "image/png",
        "created_at": "2026-01-02T03:04:05.678901+00:00",
    },
    "run_started": {},
    "run_finished": {"success": True, "message": None},
    "gpu_shortage": {"required_gpus": 4, "available_gpus": 1, "message": None},
    "heartbeat": {},
}

_numbers = itertools.count(1)


def new_run_id() -> str:
    return f"run-{uuid.uuid4().hex[:12]}"


def progress(number: int | None = None, **changes: Any) -> dict[str, Any]:
    """A paper generation event that can be told from all others by its `details.number`."""
    number = next(_numbers) if number is None else number
    return {**EXAMPLES["paper_generation_progress"], "details": {"number": number}, **changes}


def event(run_id: str = "run-1", **changes: Any) -> NewEvent:
    """The same as it is appended to a log."""
    text = json.dumps(progress(**changes), ensure_ascii=False)
    return NewEvent(run_id, "paper_generation_progress", text.encode())


def entry(event: NewEvent) -> dict[Any, Any]:
    """The field of its entry in a log."""
    whole = head_of(event.run_id, event.kind) + event.text
    return {FIELD: b"%b%08x" % (whole, crc32(whole))}
