"""What the logs of a shard, and the archive behind them, should hold."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field

from relay.stream.entry import NewEvent, Record
from relay.stream.keys import START


@dataclass
class Model:
    """What there should be. An id is `given` once its event is acknowledged, and for ever."""

    given: dict[int, NewEvent] = field(default_factory=dict)
    once: dict[str, tuple[list[NewEvent], list[int]]] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    delivered: set[int] = field(default_factory=set)
    settled: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    dead: set[int] = field(default_factory=set)
    archive: dict[int, Record] = field(default_factory=dict)

    def append(self, events: Sequence[NewEvent], ids: Sequence[int]) -> None:
        assert list(ids) == sorted(set(ids))
        assert ids[0] > max(self.given, default=START), "an id came again, or one that is too low"
        self.given.update(zip(ids, events, strict=True))

    def of_run(self, run_id: str, position: int = START) -> list[int]:
        return [
            id
            for id, event in self.given.items()
            if event.run_id == run_id and id > position and id not in self.lost
        ]

    @property
    def pending(self) -> set[int]:
        return self.delivered - self.settled

    @property
    def unsettled(self) -> set[int]:
        return self.given.keys() - self.settled - self.lost

    @property
    def missing(self) -> set[int]:
        """What may be nowhere but among the dead letters, or on its way there."""
        return self.refused - self.archive.keys()

    def lose(self) -> None:
        """The server is empty: what is not archived is gone, and nobody is at work on it."""
        self.lost |= self.given.keys() - self.archive.keys()
        self.settled |= self.given.keys()
        self.once.clear()
        self.dead.clear()


class Archive:
    """The model's archive, as replay sees it. `meanwhile` happens before its first answer."""

    def __init__(self, model: Model) -> None:
        self._rows = model.archive
        self.meanwhile: Callable[[], None] | None = None

    def _of(self, run_id: str, first: int, before: int | None) -> list[Record]:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        found = (self._rows[id] for id in sorted(self._rows) if first <= id < (before or id + 1))
        return [record for record in found if record.run_id == run_id]

    async def records(
        self, run_ids: Sequence[str], first: int, before: int | None, limit: int
    ) -> Sequence[Record]:
        (run_id,) = run_ids
        return self._of(run_id, first, before)[:limit]

    async def payloads(self, table: str, run_id: str, before: int) -> AsyncIterator[bytes]:
        found = self._of(run_id, START, before) if table == "rp_paper_generation_events" else []
        if found:
            yield b",".join(record.payload for record in found)

    async def reaching(self, run_id: str, before: int) -> Collection[str]:
        return ["rp_paper_generation_events"] if self._of(run_id, START, before) else []

    async def newest(self, run_id: str) -> int:
        return max((record.id for record in self._of(run_id, START, None)), default=START)
