"""The logs against a small model: whatever writes, drains, trims, dies and comes back, in whatever order, ids
only grow, every acknowledged event is there once, and a viewer gets what follows or is told that it can not.

On failure Hypothesis prints the steps, as few as it can make them, and how to repeat them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import FlakyFailure
from hypothesis.stateful import (
    run_state_machine_as_test,
)

from relay import embedded
from relay.stream import functions
from tests.integration.killable import Valkey
from tests.integration.logs_machine import Logs


@pytest.fixture
def valkey(place: Path) -> Iterator[Valkey]:
    made = Valkey(*embedded.valkey(place / "valkey"))
    yield made
    made.stop()


def explore(
    valkey: Valkey,
    monkeypatch: pytest.MonkeyPatch,
    *,
    examples: int,
    crashes: int = 2,
    phases: Sequence[Phase] = tuple(Phase),
    same_each_time: bool = False,
) -> None:
    monkeypatch.setattr("persister.consumer.BLOCK_MS", 1)
    monkeypatch.setattr("persister.consumer.RUNS_AT_ONCE", 1)
    run_state_machine_as_test(
        type("LogsOfThisServer", (Logs,), {"valkey": valkey, "crashes_left": crashes}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            phases=phases,
            derandomize=same_each_time,
            report_multiple_bugs=False,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


MUTANT: dict[str, Any] = {
    "examples": 300,
    "crashes": 0,
    "phases": [Phase.generate],
    "same_each_time": True,  # or one day chance would not find what is there
}


def found_wanting(explore: Callable[[], None]) -> bool:
    """Whether a broken promise was found. Servers take their time, so that the same steps may find it once
    and not again; that counts as well."""
    try:
        explore()
    except (AssertionError, pytest.fail.Exception):
        return True
    except FlakyFailure as found:
        return found.subgroup(AssertionError) is not None
    return False


@pytest.mark.timeout(400)  # for the shortest steps to a failure; without one it takes some 15 s
def test_whatever_happens_to_the_logs_they_hold_what_was_acknowledged(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    explore(valkey, monkeypatch, examples=15)


def test_the_model_finds_keys_that_are_forgotten(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered, forgotten = "'PEXPIRE', young, math.floor(2.5 * lifetime)", "'UNLINK', young"
    assert functions.LIBRARY.count(remembered) == 1
    monkeypatch.setattr(functions, "LIBRARY", functions.LIBRARY.replace(remembered, forgotten))
    assert found_wanting(lambda: explore(valkey, monkeypatch, **MUTANT))


def test_the_model_finds_a_trim_that_does_not_look_at_what_is_claimed(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, blind = "archived_up_to(keys[2], ordinal(", "(function(_, all) return all end)(nil, ordinal("
    assert functions.LIBRARY.count(looked) == 1
    monkeypatch.setattr(functions, "LIBRARY", functions.LIBRARY.replace(looked, blind))
    assert found_wanting(lambda: explore(valkey, monkeypatch, **MUTANT))
