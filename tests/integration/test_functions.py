"""The server-side functions that write the logs, each as the atomic step that it promises to be, on Valkey
and on Redis 7."""

from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.stream import functions
from relay.stream.keys import SEQUENCES, StreamId
from tests.integration.calling import FLOOR, KEYS, REMEMBER_MS, Group, append, entries, everything, open_log


def test_events_go_to_the_shard_log_and_their_run_logs_under_one_id(opened: redis.Redis) -> None:
    (first,) = append(opened, (None, "", [("a", "1"), ("b", "2"), ("a", "3")]))
    assert entries(opened, KEYS.log) == [(first, "1"), (first + 1, "2"), (first + 2, "3")]
    assert entries(opened, KEYS.run("a")) == [(first, "1"), (first + 2, "3")]
    assert entries(opened, KEYS.run("b")) == [(first + 1, "2")]


def test_groups_of_a_call_follow_each_other(opened: redis.Redis) -> None:
    one, two = append(opened, (None, "", [("a", "1"), ("a", "2")]), (None, "", [("b", "3")]))
    assert two == one + 2
    assert [text for _, text in entries(opened, KEYS.log)] == ["1", "2", "3"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 700), min_size=1, max_size=4))
def test_ids_grow_without_a_hole_within_a_call_also_over_many_milliseconds(
    opened: redis.Redis, sizes: list[int]
) -> None:
    opened.delete(KEYS.log, KEYS.run("a"))
    open_log(opened)
    for size in sizes:
        append(opened, (None, "", [("a", "x")] * size))
    ordinals = [ordinal for ordinal, _ in entries(opened, KEYS.log)]
    assert len(ordinals) == sum(sizes)
    assert ordinals == sorted(set(ordinals))
    assert all(StreamId.from_ordinal(ordinal).sequence < SEQUENCES for ordinal in ordinals)


def test_a_key_that_comes_again_with_the_same_events_writes_nothing(opened: redis.Redis) -> None:
    (first,) = append(opened, ("k", "digest", [("a", "1"), ("a", "2")]))
    assert append(opened, ("k", "digest", [("a", "1"), ("a", "2")])) == [-first], "below zero: a repeat"
    assert len(entries(opened, KEYS.log)) == len(entries(opened, KEYS.run("a"))) == 2


def test_a_key_that_comes_again_within_one_call_writes_nothing_either(opened: redis.Redis) -> None:
    group: Group = ("k", "digest", [("a", "1")])
    answers = append(opened, group, (None, "", [("a", "2")]), group, ("k", "other", [("a", "3")]))
    assert answers == [answers[0], answers[0] + 1, -answers[0], -1]
    assert [text for _, text in entries(opened, KEYS.log)] == ["1", "2"]


def test_a_key_that_comes_again_with_other_events_is_refused_alone(opened: redis.Redis) -> None:
    append(opened, ("k", "digest", [("a", "1")]))
    answers = append(opened, ("k", "other", [("a", "2")]), (None, "", [("b", "3")]))
    assert answers[0] == -1
    assert [text for _, text in entries(opened, KEYS.log)] == ["1", "3"]


YOUNG, OLD = KEYS.once


def test_keys_are_remembered_for_as_long_as_was_said_and_forgotten_before_three_times_that(
    opened: redis.Redis,
) -> None:
    first: Group = ("first", "digest", [("a", "1")])
    (stored,) = append(opened, first)
    left: Any = opened.pttl(YOUNG)
    assert REMEMBER_MS < left <= 2.5 * REMEMBER_MS
    opened.pexpire(YOUNG, 3 * REMEMBER_MS // 2)  # as long as was said has gone by
    append(opened, ("second", "digest", [("a", "2")]))
    assert (opened.hlen(YOUNG), opened.hlen(OLD)) == (1, 1)
    assert REMEMBER_MS < opened.pttl(OLD) <= 1.5 * REMEMBER_MS, (
        "so the next turn unlinks it before it expires"
    )
    assert append(opened, first) == [-stored]


def test_a_key_that_comes_again_is_remembered_anew(opened: redis.Redis) -> None:
    group: Group = ("k", "digest", [("a", "1")])
    append(opened, group)
    opened.rename(YOUNG, OLD)
    append(opened, group)
    assert opened.hkeys(YOUNG) == [b"k"]
    assert opened.pttl(YOUNG) > REMEMBER_MS


def test_so_many_keys_are_remembered_and_no_more_and_always_the_newest_half(opened: redis.Redis) -> None:
    def used(number: int) -> int:
        return append(opened, (str(number), "digest", [("a", "1")]), known_keys=10)[0]

    stored = []
    for number in range(33):
        stored.append(used(number))
        assert opened.hlen(YOUNG) + opened.hlen(OLD) <= 10
    assert opened.hlen(YOUNG) + opened.hlen(OLD) == 8
    assert [used(number) for number in range(28, 33)] == [-first for first in stored[28:]]
    assert used(0) > stored[-1], "it is too long ago: a repeat is news"


def test_keys_of_one_call_are_counted_together(opened: redis.Redis) -> None:
    def call(first: int, count: int) -> None:
        keys = map(str, range(first, first + count))
        append(opened, *((key, "digest", [("a", "1")]) for key in keys), known_keys=1000)

    call(0, 499)
    call(1000, 1)
    assert (opened.hlen(YOUNG), opened.hlen(OLD)) == (500, 0)
    call(2000, 300)
    assert (opened.hlen(YOUNG), opened.hlen(OLD)) == (300, 500)
    call(3000, 201)
    assert (opened.hlen(YOUNG), opened.hlen(OLD)) == (201, 300)


@pytest.mark.parametrize("spoilt", ["run", "young", "old", "log", "runs"])
def test_where_anything_is_wrong_nothing_is_written(opened: redis.Redis, spoilt: str) -> None:
    append(opened, (None, "", [("a", "1")]))
    key = {"run": KEYS.run("b"), "young": YOUNG, "old": OLD, "log": KEYS.log, "runs": KEYS.runs}[spoilt]
    opened.set(key, "not what it should be")
    before = everything(opened)
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        append(opened, (None, "", [("a", "2")]), ("k", "digest", [("b", "3")]))
    assert everything(opened) == before


def test_groups_with_new_runs_beyond_the_quota_are_refused_alone(opened: redis.Redis) -> None:
    answers = append(
        opened,
        (None, "", [("a", "1"), ("b", "2"), ("a", "3")]),
        ("k", "digest", [("a", "no"), ("c", "no"), ("d", "no")]),
        (None, "", [("c", "4")]),
        (None, "", [("d", "no")]),
        (None, "", [("c", "5"), ("b", "6")]),
        quota=3,
    )
    assert [answer > 0 for answer in answers] == [True, False, True, False, True]
    assert answers[1] == answers[3] == -2
    assert [text for _, text in entries(opened, KEYS.log)] == ["1", "2", "3", "4", "5", "6"]
    assert set(opened.keys(KEYS.run("*"))) == {KEYS.run(run).encode() for run in "abc"}
    assert not opened.exists(YOUNG)
    assert append(opened, (None, "", [("a", "7")]), quota=1) > [0], "a run that is there is not new"


def test_runs_without_a_log_make_room_when_it_is_time_to_look(opened: redis.Redis) -> None:
    append(opened, (None, "", [(run, "1") for run in "abc"]), quota=3)
    opened.delete(KEYS.run("a"), KEYS.run("b"))
    opened.pexpire(KEYS.run("c"), 600_000)
    assert append(opened, (None, "", [("d", "no")]), quota=3) == [-2], "it is too soon to look"
    opened.zadd(KEYS.runs, {KEYS.run(run): 0 for run in "abc"})
    assert append(opened, (None, "", [("d", "2"), ("e", "3")]), quota=3) > [0]
    assert append(opened, (None, "", [("f", "no")]), quota=3) == [-2]
    now: Any = opened.time()
    again: Any = opened.zscore(KEYS.runs, KEYS.run("c"))
    assert 590_000 < again - now[0] * 1000 < 610_000, "it is looked at when it can have expired"


def test_one_call_looks_at_so_many_runs_and_the_next_one_goes_on(opened: redis.Redis) -> None:
    opened.zadd(KEYS.runs, {KEYS.run(f"gone-{number}"): 0 for number in range(1500)})
    assert append(opened, (None, "", [("a", "no")]), quota=400) == [-2]
    assert opened.zcard(KEYS.runs) == 500
    assert append(opened, (None, "", [("a", "1")]), quota=400) > [0]
    assert opened.zcard(KEYS.runs) == 1


def test_without_memory_nothing_is_written(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", "1")]))
    before = everything(opened)
    opened.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            append(opened, (None, "", [("a", "2")]))
    finally:
        opened.config_set("maxmemory", "0")
    assert everything(opened) == before


def test_without_a_log_nothing_is_written(store: redis.Redis) -> None:
    store.function_load(functions.LIBRARY)
    with pytest.raises(redis.exceptions.ResponseError, match="NOLOG"):
        append(store, (None, "", [("a", "1")]))
    assert everything(store) == {}


def test_ids_go_on_above_a_floor_that_lies_in_the_future(opened: redis.Redis) -> None:
    now: Any = opened.time()
    floor = StreamId((now[0] + 3600) * 1000, 7).ordinal
    assert open_log(opened, floor) == floor
    assert append(opened, (None, "", [("a", "1"), ("a", "2")])) == [floor + 1]
    assert append(opened, (None, "", [("a", "3")])) == [floor + 3], "the clock is far behind"


def test_opening_again_changes_nothing_and_never_lowers_the_top(opened: redis.Redis) -> None:
    (first,) = append(opened, (None, "", [("a", "1")]))
    before = everything(opened)
    assert open_log(opened, FLOOR) == first
    assert everything(opened) == before


def test_a_run_log_that_outlived_the_shard_log_still_bounds_the_ids(opened: redis.Redis) -> None:
    future = StreamId.from_ordinal(append(opened, (None, "", [("a", "1")]))[0] + 10**9)
    opened.xadd(KEYS.run("a"), {"e": "2"}, id=str(future))
    assert append(opened, (None, "", [("a", "3")])) == [future.ordinal + 1]


@pytest.mark.parametrize("ahead", [0, 199, 200, 399, 400])
def test_however_many_run_logs_a_call_has_the_one_that_is_ahead_bounds_its_ids(
    opened: redis.Redis, ahead: int
) -> None:
    runs = [str(number) for number in range(401)]
    (first,) = append(opened, (None, "", [(run, "1") for run in runs]))
    future = StreamId.from_ordinal(first + 10**9)
    opened.xadd(KEYS.run(runs[ahead]), {"e": "2"}, id=str(future))
    assert append(opened, (None, "", [(run, "3") for run in runs])) == [future.ordinal + 1]
    assert opened.xlen(KEYS.log) == 2 * len(runs)


@pytest.mark.parametrize("fresh", [0, 199, 200, 399, 400])
def test_however_many_run_logs_a_call_has_those_that_are_new_are_counted(
    opened: redis.Redis, fresh: int
) -> None:
    runs = [str(number) for number in range(401)]
    append(opened, (None, "", [(run, "1") for run in runs if run != str(fresh)]))
    everybody: Group = (None, "", [(run, "2") for run in runs])
    assert append(opened, everybody, quota=400) == [-2]
    assert append(opened, everybody, quota=401) > [0]
    assert opened.zcard(KEYS.runs) == 401


def test_the_library_changes_its_name_with_its_source() -> None:
    assert functions.VERSION in functions.LIBRARY.splitlines()[0]
    assert all(
        name.endswith(functions.VERSION) for name in (functions.APPEND, functions.OPEN, functions.SETTLE)
    )
