"""The steps of a paper, for pipelines that count nothing but the step at hand."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

from rp_relay_client.events import PaperGenerationProgressEvent


class Share(NamedTuple):
    """The part of the whole paper that a step is: where it begins, and how much it is."""

    begins: float
    weight: float


SHARES: Mapping[str, Share] = {
    "plot_aggregation": Share(0.0, 0.15),
    "citation_gathering": Share(0.15, 0.15),
    "paper_writeup": Share(0.3, 0.5),
    "paper_review": Share(0.8, 0.2),
}
"""As pipelines have always reported them."""


class Step:
    """One step of the paper, under way.

    As a context it reports its beginning, and its end if no exception passes. It never raises: what can
    not be sent is counted by the emitter.
    """

    def __init__(
        self,
        name: str,
        emit: Callable[[PaperGenerationProgressEvent], None],
        refuse: Callable[[Exception], None],
    ) -> None:
        self.name = name
        self._emit = emit
        self._refuse = refuse
        self._share = SHARES.get(name)
        self._reached = 0.0

    def progress(
        self,
        step_progress: float,
        *,
        substep: str | None = None,
        overall: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        """Reports how far this step is, 0.0 to 1.0; what is outside counts as the nearer end.

        How far the whole paper is follows from the step's share. A step that is not one of the known four
        has none, so it has to say: `overall`, 0.0 to 1.0. Without it the event is refused, and counted.
        """
        try:
            step_progress = _within(step_progress)
            whole = self._whole(step_progress) if overall is None else _within(overall)
        except (TypeError, ValueError) as error:
            self._refuse(error)
            return
        self._reached = step_progress
        self._emit(PaperGenerationProgressEvent(self.name, substep, whole, step_progress, details))

    def _whole(self, step_progress: float) -> float:
        if self._share is None:
            raise ValueError(f"the step {self.name!r} is not a known one: pass overall=")
        return round(self._share.begins + self._share.weight * step_progress, 6)

    def __enter__(self) -> "Step":
        if self._share is not None:
            self.progress(0.0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None and self._share is not None and self._reached < 1:
            self.progress(1.0)


def _within(value: float) -> float:
    return min(1.0, max(0.0, float(value)))
