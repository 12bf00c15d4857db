"""What an event kind declares."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
)

from relay.stream.keys import RUN_ID

ROUNDING = 1e-6

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def _clamp(value: float) -> float:
    if 0.0 < value < 1.0:  # as most are, without a call
        return value
    return min(1.0, max(0.0, value))


RunId = Annotated[str, StringConstraints(pattern=f"^{RUN_ID}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(max_length=100_000)]
Fraction = Annotated[
    float,
    Field(ge=-ROUNDING, le=1 + ROUNDING, allow_inf_nan=False),
    AfterValidator(_clamp),
]
"""0.0 to 1.0; what sums of floats leave outside by up to 1e-6 is rounding, and is clamped."""


Count = Annotated[int, Field(ge=-(2**53) + 1, le=2**53 - 1)]
"""A whole number that browsers can hold."""

Number = Annotated[float, Field(allow_inf_nan=False)]


def _check_moment(value: Any) -> Any:
    if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
        raise ValueError("Input should be a date and time with an offset, as RFC 3339 writes them")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("Input should be a moment that has a date in UTC") from error


Moment = Annotated[AwareDatetime, Strict(False), BeforeValidator(_check_moment), AfterValidator(_in_utc)]
"""A moment as text; it becomes one in UTC. (Not strict beneath that, since pydantic takes text for one only
straight from JSON.)"""

Message = tuple[str, bytes]
"""The type and the data of a message to viewers."""


class Kind(BaseModel):
    """One kind of event. A subclass is the whole declaration: the payload's fields, and these:

    kind         its name, in batches and in the stream
    path         its webhook, below /research-pipeline/events
    flat         the webhook takes the fields beside `run_id`, not inside `event`
    sse_type     the `type` of its message to viewers
    initial_key  its list in the `initial` frame; None where it has none
    history_path its list below a run
    table        where its rows go; None where it leaves none. `columns` are those beside id, run_id,
                 occurred_at and created_at, with their SQL types, and also what viewers and history show
    kind_column  where several kinds share a table, the column that holds the kind's name
    also         SQL run with the rows in the same transaction; `events` is the set of rows
    at_work      whether a run that sends it is under way
    ends_run     whether the run is over with it

    Validation is strict. Unknown fields are ignored: refused telemetry is lost telemetry.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, ser_json_inf_nan="constants")

    kind: ClassVar[str]
    path: ClassVar[str]
    flat: ClassVar[bool] = False
    sse_type: ClassVar[str]
    initial_key: ClassVar[str | None]
    history_path: ClassVar[str | None]
    table: ClassVar[str | None]
    columns: ClassVar[Mapping[str, str]]
    kind_column: ClassVar[str | None] = None
    also: ClassVar[str | None] = None
    at_work: ClassVar[bool] = True
    ends_run: ClassVar[bool] = False

    def happened_at(self) -> datetime | None:
        """When it happened by the pipeline's clock, where the event itself says so."""
        return None

    @classmethod
    def messages(cls, payload: bytes) -> Sequence[Message]:
        """What viewers get, from the payload that history shows. The last one is the event, with its id;
        what comes before is state, without an id, and may come again."""
        return ((cls.sse_type, payload),)

    @classmethod
    def changes(cls, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """What it changes in the run, as members of `run`."""
        return {}
