"""The events that pipelines emit, as they emit them already."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NamedTuple, Protocol


class EventKind(str, Enum):
    """What an event is, by the relay's name for it."""

    RUN_STAGE_PROGRESS = "run_stage_progress"
    RUN_LOG = "run_log"
    SUBSTAGE_COMPLETED = "substage_completed"
    PAPER_GENERATION_PROGRESS = "paper_generation_progress"
    ARTIFACT = "artifact"
    RUN_STARTED = "run_started"
    RUN_FINISHED = "run_finished"
    HEARTBEAT = "heartbeat"
    GPU_SHORTAGE = "gpu_shortage"


class PersistenceRecord(NamedTuple):
    """What is sent of an event. Unpacks as `kind, data`."""

    kind: EventKind
    data: dict[str, Any]


class Recordable(Protocol):
    """What an emitter takes: our events, and any class of a pipeline's own that has this method.

    The answer is `(kind, data)`, or None for an event that is not to be sent. `data` is a dict, or has
    pydantic's `model_dump`.
    """

    def persistence_record(self) -> tuple[Any, Any] | None: ...


class BaseEvent(ABC):
    """The base of all events. A subclass has to say its type and its content."""

    @abstractmethod
    def type(self) -> str:
        """The dotted name of the event, as in `ai.run.log`."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The content of the event."""

    def persistence_record(self) -> PersistenceRecord | None:
        """What is sent to the relay; None, as here, where nothing is."""
        return None


class _KeptEvent(BaseEvent):
    """An event whose fields are its content."""

    _TYPE: ClassVar[str]
    _KIND: ClassVar[EventKind]

    def type(self) -> str:
        return self._TYPE

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def persistence_record(self) -> PersistenceRecord:
        return PersistenceRecord(self._KIND, dict(self.__dict__))


@dataclass(frozen=True)
class RunStageProgressEvent(_KeptEvent):
    """How far an experiment stage is. `progress` is that of the stage, 0.0 to 1.0; times are seconds."""

    _TYPE = "ai.run.stage_progress"
    _KIND = EventKind.RUN_STAGE_PROGRESS

    stage: str
    iteration: int
    max_iterations: int
    progress: float
    total_nodes: int
    buggy_nodes: int
    good_nodes: int
    best_metric: str | None = None
    eta_s: int | None = None
    latest_iteration_time_s: int | None = None


@dataclass(frozen=True)
class RunLogEvent(_KeptEvent):
    """A line of the run's log. `level` is `debug`, `info`, `warning`, `error` or `critical`."""

    _TYPE = "ai.run.log"
    _KIND = EventKind.RUN_LOG

    message: str
    level: str = "info"


@dataclass(frozen=True)
class SubstageCompletedEvent(_KeptEvent):
    """A part of a stage is over. `stage` is its full name, as in `2_baseline_tuning_1_first_attempt`."""

    _TYPE = "ai.run.substage_completed"
    _KIND = EventKind.SUBSTAGE_COMPLETED

    stage: str
    main_stage_number: int
    substage_number: int
    substage_name: str
    reason: str
    summary: dict[str, Any]


@dataclass(frozen=True)
class PaperGenerationProgressEvent(_KeptEvent):
    """How far the paper is: all of it in `progress`, the step at hand in `step_progress`, 0.0 to 1.0.

    `run_id` is there for pipelines that pass it by name. It is not sent: what counts is the emitter's run.
    """

    _TYPE = "ai.run.paper_generation_progress"
    _KIND = EventKind.PAPER_GENERATION_PROGRESS

    step: str
    substep: str | None = None
    progress: float = 0.0
    step_progress: float = 0.0
    details: dict[str, Any] | None = None
    run_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        content = dict(self.__dict__)
        if self.run_id is None:
            del content["run_id"]
        return content

    def persistence_record(self) -> PersistenceRecord:
        content = dict(self.__dict__)
        del content["run_id"]
        return PersistenceRecord(self._KIND, content)
