"""What has to be true after a fault, whatever the fault was.

The oracle is given facts and does nothing else: a ledger of what producers tried and were told, and what the
logs, the viewers, the archive and the dead letters hold in the end. It answers with a verdict:

    LOST          acknowledged, and not in the archive or the dead letters, or not seen by a viewer who stayed
    INVENTED      held though nobody sent it so, or though its producer was told that it is not stored
    DOUBLED       one event under two ids, or one id twice
    REORDERED     ids, or the numbers that a producer gave, that do not rise
    DISAGREEMENT  two places that should hold the same do not
    RESET         a viewer was made to start anew, where nothing was wrong with its place
    NOT_QUIET     something is still pending, buried, or held open when all is over
    SLOW          an answer, or the way back after the fault, took too long
    VACUOUS       the run proves nothing: too few events, or the fault was not felt
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import NamedTuple


class Outcome(Enum):
    """What one call told its producer."""

    ACKNOWLEDGED = "204"
    REFUSED = "4xx"
    NOT_STORED = "no connection, or a 503 that says so"
    UNKNOWN = "time-out, reset or another 5xx"


class Fault(Enum):
    LOST = "lost"
    INVENTED = "invented"
    DOUBLED = "doubled"
    REORDERED = "reordered"
    DISAGREEMENT = "disagreement"
    RESET = "reset"
    NOT_QUIET = "not quiet"
    SLOW = "slow"
    VACUOUS = "vacuous"


class Mark(NamedTuple):
    """Which event: the number that its producer gave it within the run, and the digest of its content."""

    run_id: str
    number: int
    sha: str


class Seen(NamedTuple):
    """An event as some place holds it."""

    id: int
    mark: Mark


class Call(NamedTuple):
    """One request of a producer. `client_gave_up`: there was no answer within the producer's own time."""

    mark: Mark
    outcome: Outcome
    began: float
    took_s: float
    status: str
    client_gave_up: bool = False


class Ledger:
    """What producers tried and were told. May be written from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls: list[Call] = []
        self.attempted: dict[tuple[str, int], Mark] = {}
        self.acknowledged: set[Mark] = set()
        self.doubtful: set[Mark] = set()
        self.denied: set[Mark] = set()
        self.acked_at: list[float] = []

    def attempt(self, mark: Mark) -> None:
        """Before the first byte of it is sent."""
        with self._lock:
            self.attempted[mark.run_id, mark.number] = mark

    def told(self, call: Call) -> None:
        """After each call, also of a repeat."""
        with self._lock:
            self.calls.append(call)
            if call.outcome is Outcome.ACKNOWLEDGED:
                self.acknowledged.add(call.mark)
                self.acked_at.append(call.began + call.took_s)
            elif call.outcome is Outcome.UNKNOWN:
                self.doubtful.add(call.mark)
            else:
                self.denied.add(call.mark)

    @property
    def count(self) -> int:
        return len(self.acknowledged)

    @property
    def unknown(self) -> int:
        """Calls without a clear answer, also where a repeat was acknowledged."""
        return sum(call.outcome is Outcome.UNKNOWN for call in self.calls)

    @property
    def never(self) -> set[Mark]:
        """What each call about it was told that it is not stored."""
        return self.denied - self.doubtful - self.acknowledged

    @property
    def statuses(self) -> Mapping[str, int]:
        return Counter(call.status for call in self.calls)

    def of_run(self, run_id: str) -> list[Mark]:
        """What was acknowledged of a run, in its producer's order."""
        return sorted(mark for mark in self.acknowledged if mark.run_id == run_id)


class Viewed(NamedTuple):
    """A viewer's whole life, over all its connections. Each `initial` begins another part, which replaces the
    parts before it; a resumed connection goes on with the same part. `stayed`: it was there until the end."""

    name: str
    run_id: str
    parts: Sequence[Sequence[Seen]]
    stayed: bool = True

    @property
    def final(self) -> Sequence[Seen]:
        return self.parts[-1] if self.parts else ()


class Gauge(NamedTuple):
    """Something that has to be back where it was, but for `slack`."""

    name: str
    before: float
    after: float
    slack: float = 0.0


class Back(NamedTuple):
    """How long something took to come back after the fault was healed, and how long it may take."""

    name: str
    took_s: float
    limit_s: float


@dataclass(frozen=True)
class Facts:
    """All that is known in the end. `archive` is in the order in which history answers, run by run."""

    ledger: Ledger
    archive: Sequence[Seen]
    viewers: Sequence[Viewed] = ()
    log: Sequence[Seen] = ()
    runs: Mapping[str, Sequence[Seen]] = field(default_factory=dict)
    dead: Sequence[Seen] = ()
    pending: int = 0
    lag: int = 0
    gauges: Sequence[Gauge] = ()
    back: Sequence[Back] = ()
    faults: Sequence[tuple[float, float]] = ()
    """When faults began and were over, on the clock of the ledger."""


@dataclass(frozen=True)
class Expected:
    """What a row asks for beyond the rule."""

    acknowledged: int = 1000
    unknown: bool = False
    """The fault has to leave some producer in doubt, or it was not the fault that the row is about."""
    dead: Collection[Mark] = ()
    resets: bool = False
    """Viewers may be made to start anew, since their place is really gone."""
    deadline_s: float = 3.0
    slack_s: float = 2.0
    """For the machine that the tests share with others; the product's own deadline is far below."""
    may_give_up: bool = False
    """A stopped or unreachable web worker can not answer; the producer's own time-out is then right."""


class Finding(NamedTuple):
    fault: Fault
    text: str


@dataclass(frozen=True)
class Verdict:
    """What the oracle found. True in a condition: nothing is wrong."""

    acknowledged: int
    unknown: int
    longest_s: float
    answers: Mapping[str, int]
    findings: Sequence[Finding]

    def __bool__(self) -> bool:
        return not self.findings

    def count(self, fault: Fault) -> int:
        return sum(finding.fault is fault for finding in self.findings)

    @property
    def faults(self) -> set[Fault]:
        return {finding.fault for finding in self.findings}

    @property
    def counts(self) -> dict[str, int]:
        """All that a report needs, by name."""
        calls = {"acknowledged": self.acknowledged, "unknown": self.unknown}
        found = {fault.value: self.count(fault) for fault in Fault}
        return {**calls, **found, "longest stall ms": round(self.longest_s * 1000)}

    @property
    def text(self) -> str:
        """The counts that are not zero, and the first findings of each sort."""
        shown = [f"{fault.value}: {self.count(fault)}" for fault in Fault if self.count(fault)]
        for fault in Fault:
            shown += [found.text for found in self.findings if found.fault is fault][:3]
        return "\n".join(shown) or "all is well"

    def check(self) -> None:
        """Raises AssertionError where anything is wrong."""
        assert self, self.text


def judge(facts: Facts, expected: Expected | None = None) -> Verdict:
    """The verdict on a run."""
    expected = expected or Expected()
    findings: list[Finding] = []
    for check in (_lost, _invented, _doubled, _reordered, _disagreement):
        findings += check(facts)
    for strict in (_reset, _not_quiet, _slow, _vacuous):
        findings += strict(facts, expected)
    ledger = facts.ledger
    longest_s = max((call.took_s for call in ledger.calls), default=0.0)
    return Verdict(ledger.count, ledger.unknown, longest_s, ledger.statuses, findings)


def _lost(facts: Facts) -> Iterator[Finding]:
    """O1: what was acknowledged is kept, and was shown to every viewer who stayed."""
    kept = {seen.mark for seen in (*facts.archive, *facts.dead)}
    for run_id in sorted({mark.run_id for mark in facts.ledger.acknowledged}):
        yield from _missing(facts.ledger.of_run(run_id), kept, "the archive")
    for viewer in facts.viewers:
        if viewer.stayed:
            shown = {seen.mark for seen in viewer.final}
            yield from _missing(facts.ledger.of_run(viewer.run_id), shown, viewer.name)


def _missing(acknowledged: Sequence[Mark], held: Collection[Mark], place: str) -> Iterator[Finding]:
    missing = [mark for mark in acknowledged if mark not in held]
    where = _where(acknowledged, missing)
    for mark in missing:
        yield Finding(Fault.LOST, f"{place} has not {mark.run_id} {mark.number}, of a lost {where}")


def _where(acknowledged: Sequence[Mark], missing: Sequence[Mark]) -> str:
    """Which part of a run is missing."""
    if missing == acknowledged[: len(missing)]:
        return "whole" if len(missing) == len(acknowledged) else "prefix"
    return "suffix" if missing == acknowledged[-len(missing) :] else "middle"


def _places(facts: Facts) -> Iterator[tuple[str, Sequence[Seen]]]:
    """Every list of events that should be in order and without repeats, with its name."""
    yield from ((f"the archive of {run_id}", rows) for run_id, rows in _by_run(facts.archive).items())
    yield from ((f"the run log of {run_id}", entries) for run_id, entries in facts.runs.items())
    yield "the shard log", facts.log
    for viewer in facts.viewers:
        yield from ((viewer.name, part) for part in viewer.parts)


def _invented(facts: Facts) -> Iterator[Finding]:
    """O2: what is held was sent, by somebody who was not told that it is not stored."""
    known = set(facts.ledger.attempted.values())
    never = facts.ledger.never
    for place, held in (*_places(facts), ("the dead letters", facts.dead)):
        for mark in (seen.mark for seen in held if seen.mark not in known or seen.mark in never):
            why = "was said not to be stored" if mark in never else "was never sent so"
            yield Finding(Fault.INVENTED, f"{place} has {mark}, which {why}")


def _doubled(facts: Facts) -> Iterator[Finding]:
    """O3: one event, one id, once in each place. What is buried is not archived."""
    for place, held in (*_places(facts), ("the archive and the dead letters", (*facts.archive, *facts.dead))):
        for what in ([seen.mark for seen in held], [seen.id for seen in held]):
            for item, times in Counter(what).items():
                if times > 1:
                    yield Finding(Fault.DOUBLED, f"{place} has {item} {times} times")
    yield from _two_identities(facts)


def _two_identities(facts: Facts) -> Iterator[Finding]:
    """The same event under different ids in different places, or an id that means different events."""
    marks: dict[Mark, set[int]] = defaultdict(set)
    shown = (viewer.final for viewer in facts.viewers)
    for held in (facts.archive, facts.log, *facts.runs.values(), *shown):
        for seen in held:
            marks[seen.mark].add(seen.id)
    for mark, ids in marks.items():
        if len(ids) > 1:
            yield Finding(Fault.DOUBLED, f"{mark.run_id} {mark.number} has the ids {sorted(ids)}")


def _reordered(facts: Facts) -> Iterator[Finding]:
    """O4: ids rise in each place, and with them the numbers of each run's producer."""
    for place, held in _places(facts):
        for before, after in pairwise(held):
            if after.id < before.id:
                yield Finding(Fault.REORDERED, f"{place} has {after.id} behind {before.id}")
        for entries in _by_run(held).values():
            for before, after in pairwise(entries):
                if after.mark.number < before.mark.number:
                    yield Finding(Fault.REORDERED, f"{place} has {after.mark} behind {before.mark.number}")


def _disagreement(facts: Facts) -> Iterator[Finding]:
    """O5: every viewer and every log that is left holds what the archive holds."""
    archive, logged = _by_run(sorted((*facts.archive, *facts.dead))), _by_run(facts.log)
    for viewer in facts.viewers:
        if viewer.stayed:
            yield from _differ(viewer.name, viewer.final, "the archive", archive.get(viewer.run_id, []))
    for run_id, entries in facts.runs.items():
        for other, others in (("the archive", archive), ("the shard log", logged)):
            pair = _overlap(entries, others.get(run_id, []))
            yield from _differ(f"the run log of {run_id}", pair[0], other, pair[1])


def _overlap(held: Sequence[Seen], others: Sequence[Seen]) -> list[list[Seen]]:
    """Logs are trimmed at their beginnings, so they are compared from where both have begun."""
    begin = max(held[0].id, others[0].id) if held and others else float("inf")
    return [[seen for seen in part if seen.id >= begin] for part in (held, others)]


def _differ(place: str, held: Sequence[Seen], other: str, others: Sequence[Seen]) -> Iterator[Finding]:
    if list(held) != list(others):
        apart = sorted(set(held) ^ set(others))
        first = f"the first difference is {apart[0]}" if apart else "the same in another order or number"
        yield Finding(Fault.DISAGREEMENT, f"{place} has {len(held)}, {other} {len(others)}; {first}")


def _reset(facts: Facts, expected: Expected) -> Iterator[Finding]:
    """O4: a viewer starts anew only where its place is really gone."""
    for viewer in facts.viewers if not expected.resets else ():
        if len(viewer.parts) > 1:
            yield Finding(Fault.RESET, f"{viewer.name} was made to start anew {len(viewer.parts) - 1} times")


def _not_quiet(facts: Facts, expected: Expected) -> Iterator[Finding]:
    """O6: nothing is left over."""
    for name, value in (("entries are pending", facts.pending), ("entries were not delivered", facts.lag)):
        if value:
            yield Finding(Fault.NOT_QUIET, f"{value} {name}")
    buried = {seen.mark for seen in facts.dead}
    for mark in sorted(buried ^ set(expected.dead)):
        yield Finding(Fault.NOT_QUIET, f"{mark} {'is' if mark in buried else 'is not'} in the dead letters")
    for gauge in facts.gauges:
        if gauge.after > gauge.before + gauge.slack:
            yield Finding(Fault.NOT_QUIET, f"{gauge.name} went from {gauge.before} to {gauge.after}")


def _slow(facts: Facts, expected: Expected) -> Iterator[Finding]:
    """O7: nobody waits for long, fault or not."""
    for call in facts.ledger.calls:
        late = call.took_s > expected.deadline_s + expected.slack_s
        if late and not (call.client_gave_up and expected.may_give_up):
            yield Finding(Fault.SLOW, f"{call.mark.run_id} {call.mark.number} took {call.took_s:.2f} s")
    for back in facts.back:
        if back.took_s > back.limit_s:
            yield Finding(Fault.SLOW, f"{back.name} took {back.took_s:.1f} s, not {back.limit_s:.0f} s")


def _vacuous(facts: Facts, expected: Expected) -> Iterator[Finding]:
    """O8: something was at stake."""
    ledger = facts.ledger
    if ledger.count < expected.acknowledged:
        yield Finding(Fault.VACUOUS, f"{ledger.count} of {expected.acknowledged} events were acknowledged")
    if expected.unknown and not (ledger.unknown or ledger.denied):
        yield Finding(Fault.VACUOUS, "the fault left nobody in doubt, and denied nobody")
    for began, ended in facts.faults:
        if not ledger.acked_at or not (min(ledger.acked_at) < began <= ended < max(ledger.acked_at)):
            yield Finding(Fault.VACUOUS, "the fault was not between the first and the last answer")


def _by_run(held: Iterable[Seen]) -> dict[str, list[Seen]]:
    runs: dict[str, list[Seen]] = {}
    for seen in held:
        runs.setdefault(seen.mark.run_id, []).append(seen)
    return runs
