"""One valid example of every kind, and the small things that tests make again and again."""

import itertools
import uuid
from typing import Any

EXAMPLES: dict[str, dict[str, Any]] = {
    "paper_generation_progress": {
        "step": "paper_review",
        "substep": "Review 2 of 5",
        "progress": 0.8667,
        "step_progress": 0.3333,
        "details": {"score": 6.0, "feedback": "Dense writing: define τ before §3."},
    },
    "run_finished": {"success": True, "message": None},
}

_numbers = itertools.count(1)


def new_run_id() -> str:
    return f"run-{uuid.uuid4().hex[:12]}"


def progress(number: int | None = None, **changes: Any) -> dict[str, Any]:
    """A paper generation event that can be told from all others by its `details.number`."""
    number = next(_numbers) if number is None else number
    return {**EXAMPLES["paper_generation_progress"], "details": {"number": number}, **changes}
