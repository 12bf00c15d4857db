"""The server-side functions by which persisters share the work, each as the atomic step that it promises to
be, on Valkey and on Redis 7."""

from typing import Any, NamedTuple

import pytest
import redis
import redis.exceptions

from relay.stream import functions
from relay.stream.group import claims
from relay.stream.keys import GROUP, StreamId
from tests.integration.calling import KEYS, Group, append, entries


class Held(NamedTuple):
    """A batch that was claimed."""

    position: str
    ids: list[str]


def position(store: redis.Redis) -> str:
    (group,) = store.xinfo_groups(KEYS.log)
    return str(group["last-delivered-id"].decode())


def claim(store: redis.Redis, who: str, count: int, after: str | None = None, erased: int = 0) -> Held | None:
    """Reads so many entries and claims them; None where that was refused."""
    before = after or position(store)
    reply: Any = store.xread({KEYS.log: before}, count)
    ids = [id.decode() for id, _ in reply[0][1]]
    words = [GROUP, who, before, erased, ids[-1], len(ids)]
    answer: Any = store.fcall(functions.CLAIM, 3, KEYS.log, KEYS.claims, KEYS.erased, *words)
    return Held(before, ids) if answer[1] else None


def claimed(store: redis.Redis, who: str, count: int) -> Held:
    held = claim(store, who, count)
    assert held
    return held


def take_over(store: redis.Redis, who: str, *idle_ms: int) -> Any:
    return store.fcall(functions.TAKE_OVER, 1, KEYS.claims, who, *idle_ms)


def settle(store: redis.Redis, held: Held, run_id: str = "a", keep: int = 1000, *letters: list[str]) -> int:
    return call(functions.SETTLE, store, held, run_id, keep, *letters)


def tidy(store: redis.Redis, held: Held, run_id: str = "a", keep: int = 1000) -> int:
    return call(functions.TIDY, store, held, run_id, keep)


def call(function: str, store: redis.Redis, held: Held, run_id: str, keep: int, *letters: list[str]) -> int:
    keys = [KEYS.claims, KEYS.dead_letters, KEYS.run(run_id)]
    words = [held.position, held.ids[-1], 60_000, keep, held.ids[-1]]
    for letter in letters:
        words += [len(letter), *letter]
    answer: Any = store.fcall(function, len(keys), *keys, *words)
    return int(answer)


def test_a_batch_that_was_read_belongs_to_the_one_who_claims_it_first(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", str(number)) for number in range(5)]))
    start = position(opened)
    first = claimed(opened, "p", 3)
    assert claim(opened, "q", 2, after=start) is None, "it read from where the log is not any more"
    second = claimed(opened, "q", 3)
    assert (first.position, second.position, len(second.ids)) == (start, first.ids[-1], 2)
    assert [(one.persister, one.entries) for one in claims(opened, KEYS)] == [("p", 3), ("q", 2)]
    (group,) = opened.xinfo_groups(KEYS.log)
    assert (group["pending"], group["lag"], group["entries-read"]) == (0, 0, 5)


def test_a_batch_from_which_something_was_erased_since_it_was_read_is_read_again(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", "1")]))
    opened.sadd(KEYS.erased, "1-1")
    assert claim(opened, "p", 1, erased=0) is None
    assert claim(opened, "p", 1, erased=1)


def test_what_was_claimed_is_found_again_by_its_persister_and_by_a_peer_after_a_while(
    opened: redis.Redis,
) -> None:
    append(opened, (None, "", [("a", str(number)) for number in range(4)]))
    first, second = claimed(opened, "p", 2), claimed(opened, "p", 2)
    found = [first.position.encode(), first.ids[-1].encode(), 2]
    assert take_over(opened, "q") is None, "it has none of its own"
    assert take_over(opened, "q", 60_000) is None
    assert take_over(opened, "p") == found, "the oldest one comes first"
    assert take_over(opened, "q", 0) == found
    assert [one.persister for one in claims(opened, KEYS)] == ["q", "p"]
    assert [settle(opened, first), settle(opened, first)] == [1, 0], "whoever comes first has settled it"
    assert take_over(opened, "p")[0] == second.position.encode()
    other = Held(second.position, first.ids)
    assert (settle(opened, other), settle(opened, second)) == (0, 1), (
        "it is not the batch that was claimed there"
    )


def test_settling_lets_an_archived_run_log_expire(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", "1"), ("b", "2")]))
    assert settle(opened, claimed(opened, "p", 1)) == 1
    assert opened.pttl(KEYS.run("a")) > 0
    assert opened.pttl(KEYS.run("b")) == -1, "it is not archived"
    append(opened, (None, "", [("a", "3")]))
    assert opened.pttl(KEYS.run("a")) == -1, "news has to be archived first"


def test_a_run_log_loses_only_what_is_archived(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", str(number)) for number in range(10)]))
    early, late = claimed(opened, "slow", 4), claimed(opened, "quick", 4)
    settle(opened, late, keep=2)
    assert len(entries(opened, KEYS.run("a"))) == 10, "the oldest ones are still with the slow one"
    settle(opened, early, keep=2)
    assert [text for _, text in entries(opened, KEYS.run("a"))] == ["4", "5", "6", "7", "8", "9"]
    settle(opened, claimed(opened, "quick", 4), keep=2)
    assert [text for _, text in entries(opened, KEYS.run("a"))] == ["8", "9"]


def test_tidying_ends_no_claim_and_is_held_up_by_those_of_others_alone(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", str(number)) for number in range(8)]))
    early, late = claimed(opened, "slow", 4), claimed(opened, "quick", 4)
    assert tidy(opened, late, keep=2) == 1
    assert len(entries(opened, KEYS.run("a"))) == 8, "the oldest ones are with the slow one"
    settle(opened, early)
    for _ in ("once", "and again"):
        assert tidy(opened, late, keep=2) == 1
        assert [text for _, text in entries(opened, KEYS.run("a"))] == ["6", "7"]
        assert opened.pttl(KEYS.run("a")) > 0
        assert [one.persister for one in claims(opened, KEYS)] == ["quick"]


def test_once_a_batch_is_settled_nothing_is_tidied_for_it(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", "1"), ("b", "2")]))
    held = claimed(opened, "p", 2)
    settle(opened, held)
    assert tidy(opened, held, "b") == 0
    assert opened.pttl(KEYS.run("b")) == -1


def test_a_run_log_whose_newest_entry_is_gone_expires_too(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", "1"), ("a", "2")]))
    held = claimed(opened, "p", 2)
    opened.xdel(KEYS.run("a"), held.ids[-1])
    settle(opened, held)
    assert opened.pttl(KEYS.run("a")) > 0


def test_a_run_log_that_has_more_than_was_settled_does_not_expire(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", "1"), ("a", "2")]))
    settle(opened, claimed(opened, "p", 1))
    assert opened.pttl(KEYS.run("a")) == -1


def test_the_oldest_of_several_claims_is_what_holds_a_run_log(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", str(number)) for number in range(9)]))
    claimed(opened, "slow", 2)
    claimed(opened, "slower", 3)
    settle(opened, claimed(opened, "quick", 4), keep=2)
    assert len(entries(opened, KEYS.run("a"))) == 9


def test_who_takes_over_has_as_long_as_the_one_before(opened: redis.Redis) -> None:
    opened.hset(KEYS.claims, mapping={"10-0": "11-0 1 1 p", "9-0": "10-0 1 1 p"})
    assert take_over(opened, "q", 60_000) == [b"9-0", b"10-0", 1], "the oldest one, by numbers"
    assert take_over(opened, "r", 60_000) == [b"10-0", b"11-0", 1]
    assert take_over(opened, "s", 60_000) is None
    opened.hset(KEYS.claims, "9-0", "10-0 9999999999999 1 q")
    assert take_over(opened, "s", 60_000)[0] == b"9-0", "it is from the future: the clock was set back"


def test_at_the_end_of_the_log_nobody_is_behind_whatever_was_erased(opened: redis.Redis) -> None:
    (first,) = append(opened, (None, "", [("a", str(number)) for number in range(4)]))
    opened.xdel(KEYS.log, str(StreamId.from_ordinal(first + 1)))
    claimed(opened, "p", 2)
    claimed(opened, "p", 1)
    (group,) = opened.xinfo_groups(KEYS.log)
    assert (group["lag"], group["entries-read"]) == (0, 4)


def test_where_a_claim_can_not_be_noted_it_is_not_made(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", "1")]))
    before = position(opened)
    opened.set(KEYS.claims, "something else")
    with pytest.raises(redis.exceptions.ResponseError):
        claim(opened, "p", 1)
    assert position(opened) == before


def test_where_dead_letters_can_not_be_kept_nothing_is_settled(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", "1")]))
    held = claimed(opened, "p", 1)
    opened.set(KEYS.dead_letters, "something else")
    with pytest.raises(redis.exceptions.ResponseError):
        settle(opened, held, "a", 1000, ["id", held.ids[0]])
    assert len(claims(opened, KEYS)) == 1


def test_the_shard_log_loses_what_is_archived_and_old(opened: redis.Redis) -> None:
    opened.config_set("stream-node-max-entries", 100)
    append(opened, (None, "", [("a", "x")] * 600))
    settle(opened, claimed(opened, "p", 250))
    held = claimed(opened, "q", 200)

    def trimmed(retention_ms: int) -> Any:
        return opened.fcall(functions.TRIM, 2, KEYS.log, KEYS.claims, GROUP, retention_ms)

    assert (trimmed(3_600_000), trimmed(-1000)) == (0, 200), "and not what is claimed"
    settle(opened, held)
    assert trimmed(-1000) == 200, "and not what nobody has claimed"


def test_an_entry_is_buried_once(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", "1")]))
    held = claimed(opened, "p", 1)
    letter = ["id", held.ids[0], "reason", "why", "e", "a"]
    assert [settle(opened, held, "a", 1000, letter, letter), settle(opened, held, "a", 1000, letter)] == [
        1,
        0,
    ]
    letters: Any = opened.xrange(KEYS.dead_letters)
    assert [fields for _, fields in letters] == [
        {b"id": held.ids[0].encode(), b"reason": b"why", b"e": b"a"}
    ] * 2
    assert claims(opened, KEYS) == []


def test_without_memory_the_archive_goes_on(opened: redis.Redis) -> None:
    append(opened, (None, "", [("a", "1"), ("a", "2")]))
    opened.config_set("maxmemory", "1")
    try:
        held = claimed(opened, "p", 1)
        assert take_over(opened, "q", 0)
        assert settle(opened, held, "a", 1000, ["id", held.ids[0]]) == 1
    finally:
        opened.config_set("maxmemory", "0")
    assert (claims(opened, KEYS), opened.xlen(KEYS.dead_letters)) == ([], 1)


def test_a_repeat_leaves_the_expiry_of_an_archived_run_log_alone(opened: redis.Redis) -> None:
    group: Group = ("k", "digest", [("a", "1")])
    (first,) = append(opened, group)
    settle(opened, claimed(opened, "p", 1))
    assert append(opened, group) == [-first]
    assert opened.pttl(KEYS.run("a")) > 0, "or it would stay for ever, and keep its place among the runs"
