"""The oracle can be wrong too: each thing that it has to find is put before it, alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.oracle import (
    Back,
    Call,
    Expected,
    Facts,
    Fault,
    Gauge,
    Ledger,
    Mark,
    Outcome,
    Seen,
    Verdict,
    Viewed,
    judge,
)

RUN = "run-1"
FEW = Expected(acknowledged=10)


def mark(number: int, run_id: str = RUN) -> Mark:
    return Mark(run_id, number, f"sha-{number}")


def events(*numbers: int) -> list[Seen]:
    return [Seen(1000 + number, mark(number)) for number in numbers]


WHOLE = events(*range(10))


def ledger(numbers: Sequence[int] = range(10), outcome: Outcome = Outcome.ACKNOWLEDGED) -> Ledger:
    made = Ledger()
    for number in numbers:
        made.attempt(mark(number))
        made.told(Call(mark(number), outcome, float(number), 0.1, "204"))
    return made


def facts(**changes: Any) -> Facts:
    """A run in which all went well, with these changes."""
    whole: dict[str, Any] = {
        "ledger": ledger(),
        "archive": WHOLE,
        "viewers": [Viewed("a viewer", RUN, [WHOLE])],
        "log": WHOLE,
        "runs": {RUN: WHOLE},
        "faults": [(3.0, 5.0)],
    }
    return Facts(**{**whole, **changes})


def verdict(expected: Expected = FEW, **changes: Any) -> Verdict:
    return judge(facts(**changes), expected)


def viewer(*parts: list[Seen], **changes: Any) -> list[Viewed]:
    return [Viewed("a viewer", RUN, parts)._replace(**changes)]


def test_a_run_in_which_all_went_well_is_well() -> None:
    found = verdict()
    assert found, found.text
    found.check()
    assert found.text == "all is well"
    assert (found.counts["acknowledged"], found.counts["lost"], found.counts["longest stall ms"]) == (
        10,
        0,
        100,
    )


def test_a_finding_fails_the_check_with_its_words() -> None:
    with pytest.raises(AssertionError, match=r"lost: 1\n(.*\n)*.*run-1 9, of a lost suffix"):
        verdict(archive=WHOLE[:-1]).check()


@pytest.mark.parametrize(
    ("kept", "where"),
    [
        (events(1, 2, 3, 4, 5, 6, 7, 8, 9), "prefix"),
        (events(0, 1, 2, 3, 5, 6, 7, 8, 9), "middle"),
        (events(0, 1, 2, 3, 4, 5, 6, 7, 8), "suffix"),
        ([], "whole"),
    ],
)
def test_an_acknowledged_event_that_is_not_archived_is_lost(kept: list[Seen], where: str) -> None:
    found = verdict(archive=kept)
    assert found.count(Fault.LOST) == 10 - len(kept)
    assert f"of a lost {where}" in found.text


def test_an_event_in_the_dead_letters_is_not_lost() -> None:
    expected = replace(FEW, dead=[mark(9)])
    assert verdict(expected, archive=WHOLE[:-1], dead=WHOLE[-1:])


def test_an_event_that_is_archived_and_buried_is_doubled() -> None:
    expected = replace(FEW, dead=[mark(9)])
    assert Fault.DOUBLED in verdict(expected, dead=WHOLE[-1:]).faults


def test_a_hole_in_a_viewers_life_is_a_loss_and_a_disagreement() -> None:
    found = verdict(viewers=viewer(events(0, 1, 2, 4, 5, 6, 7, 8, 9)))
    assert found.faults == {Fault.LOST, Fault.DISAGREEMENT}


def test_a_viewer_who_left_need_not_have_all() -> None:
    assert verdict(viewers=viewer(events(0, 1, 2), stayed=False))


def test_a_viewer_who_saw_nothing_at_all_lost_everything() -> None:
    assert verdict(viewers=viewer()).count(Fault.LOST) == 10


def test_an_event_that_nobody_sent_is_invented() -> None:
    stranger = [*WHOLE, Seen(2000, mark(99))]
    found = verdict(archive=stranger, viewers=viewer(stranger), runs={RUN: stranger}, log=stranger)
    assert found.faults == {Fault.INVENTED}


def test_an_event_with_another_content_is_invented_and_the_right_one_is_lost() -> None:
    changed = [*WHOLE[:-1], Seen(1009, Mark(RUN, 9, "another"))]
    assert {Fault.INVENTED, Fault.LOST} <= verdict(archive=changed).faults


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.NOT_STORED])
def test_an_event_that_is_there_though_it_was_denied_is_invented(outcome: Outcome) -> None:
    told = ledger(range(9))
    told.attempt(mark(9))
    told.told(Call(mark(9), outcome, 9.0, 0.1, "4xx or 503"))
    assert verdict(replace(FEW, acknowledged=9), ledger=told).faults == {Fault.INVENTED}


def test_an_event_that_was_denied_after_a_doubt_may_be_there() -> None:
    told = ledger(range(9))
    told.attempt(mark(9))
    for outcome in (Outcome.UNKNOWN, Outcome.NOT_STORED):
        told.told(Call(mark(9), outcome, 9.0, 0.1, "503"))
    assert verdict(replace(FEW, acknowledged=9), ledger=told)


def test_an_event_under_two_ids_is_doubled() -> None:
    twice = [*WHOLE, Seen(1010, mark(9))]
    found = verdict(archive=twice, viewers=viewer(twice), runs={RUN: twice}, log=twice)
    assert found.faults == {Fault.DOUBLED}


def test_an_event_whose_id_changes_from_place_to_place_is_doubled() -> None:
    other = [*WHOLE[:-1], Seen(1010, mark(9))]
    assert Fault.DOUBLED in verdict(viewers=viewer(other)).faults


def test_a_viewer_who_gets_an_event_again_after_a_reconnect_has_it_doubled() -> None:
    assert Fault.DOUBLED in verdict(viewers=viewer([*WHOLE[:5], *WHOLE[4:]])).faults


def test_two_events_that_changed_places_are_reordered() -> None:
    swapped = [*WHOLE[:4], WHOLE[5], WHOLE[4], *WHOLE[6:]]
    assert Fault.REORDERED in verdict(viewers=viewer(swapped)).faults


def test_ids_that_rise_while_the_producers_numbers_fall_are_reordered() -> None:
    swapped = [*WHOLE[:4], Seen(1004, mark(5)), Seen(1005, mark(4)), *WHOLE[6:]]
    found = verdict(archive=swapped, viewers=viewer(swapped), runs={RUN: swapped}, log=swapped)
    assert found.faults == {Fault.REORDERED}


def test_an_unknown_event_may_be_there_once_or_not_at_all_but_the_same_for_all() -> None:
    told = ledger(range(10))
    told.attempt(mark(10))
    told.told(Call(mark(10), Outcome.UNKNOWN, 4.0, 0.1, "503"))
    more = [*WHOLE, *events(10)]
    assert verdict(ledger=told)
    assert verdict(ledger=told, archive=more, viewers=viewer(more), runs={RUN: more}, log=more)
    assert verdict(ledger=told, viewers=viewer(more)).faults == {Fault.DISAGREEMENT}


def test_half_an_event_in_the_shard_log_alone_is_a_disagreement() -> None:
    assert verdict(runs={RUN: WHOLE[:-1]}).faults == {Fault.DISAGREEMENT}


def test_logs_may_be_trimmed_at_their_beginning() -> None:
    assert verdict(runs={RUN: WHOLE[3:]}, log=WHOLE[7:])


def test_a_viewer_starts_anew_only_where_the_row_allows_it() -> None:
    again = viewer(WHOLE[:4], WHOLE)
    assert verdict(viewers=again).faults == {Fault.RESET}
    assert verdict(replace(FEW, resets=True), viewers=again)


def test_a_new_start_does_not_excuse_a_loss() -> None:
    found = verdict(replace(FEW, resets=True), viewers=viewer(WHOLE, WHOLE[:-1]))
    assert Fault.LOST in found.faults


@pytest.mark.parametrize(
    "left",
    [{"pending": 1}, {"lag": 1}, {"gauges": [Gauge("open files", 20, 25, slack=1)]}, {"dead": WHOLE[-1:]}],
)
def test_what_is_left_over_is_not_quiet(left: dict[str, Any]) -> None:
    assert Fault.NOT_QUIET in verdict(**left).faults


def test_a_dead_letter_that_was_expected_and_is_not_there_is_found() -> None:
    assert verdict(replace(FEW, dead=[mark(9)])).faults == {Fault.NOT_QUIET}


def test_a_gauge_within_its_slack_is_quiet() -> None:
    assert verdict(gauges=[Gauge("open files", 20, 21, slack=1)])


def slow(**changes: Any) -> Ledger:
    told = ledger()
    told.told(Call(mark(9), Outcome.UNKNOWN, 4.0, 7.0, "none", **changes))
    return told


def test_a_call_beyond_its_deadline_is_slow() -> None:
    assert verdict(ledger=slow()).faults == {Fault.SLOW}


def test_only_a_producer_who_gave_up_itself_may_be_excused() -> None:
    patient = replace(FEW, may_give_up=True)
    assert verdict(patient, ledger=slow(client_gave_up=True))
    assert verdict(patient, ledger=slow()).faults == {Fault.SLOW}
    assert verdict(ledger=slow(client_gave_up=True)).faults == {Fault.SLOW}


def test_a_long_way_back_is_slow() -> None:
    assert verdict(back=[Back("the first 204", 6.0, 5.0)]).faults == {Fault.SLOW}
    assert verdict(back=[Back("the first 204", 4.0, 5.0)])


def test_an_empty_run_proves_nothing() -> None:
    found = judge(Facts(Ledger(), [], faults=[(1.0, 2.0)]))
    assert found.faults == {Fault.VACUOUS}
    assert found.count(Fault.VACUOUS) == 2


def test_a_fault_before_or_after_all_answers_proves_nothing() -> None:
    assert verdict(faults=[(-1.0, 2.0)]).faults == {Fault.VACUOUS}
    assert verdict(faults=[(3.0, 20.0)]).faults == {Fault.VACUOUS}


def test_a_fault_that_left_nobody_in_doubt_proves_nothing_where_it_should() -> None:
    assert verdict(replace(FEW, unknown=True)).faults == {Fault.VACUOUS}
