"""How far a shard log is trimmed: as numbers, and where persisters have not come to it. And which names its
group forgets."""

from datetime import timedelta
from typing import Any

import pytest
import redis
import redis.exceptions

from persister.trim import UNHEARD_OF, forget, limit, trim
from relay.stream import functions
from relay.stream.group import last_delivered
from relay.stream.keys import GROUP, ShardKeys, StreamId

KEYS = ShardKeys(0)


def test_of_a_log_that_no_persister_has_come_to_nothing_is_trimmed(client: redis.Redis) -> None:
    def looked_at() -> tuple[int, StreamId | None]:
        return trim(client, 0, timedelta(seconds=-1)), last_delivered(client, KEYS.log)

    assert looked_at() == (0, None), "there is no log"
    entries: list[Any] = [client.xadd(KEYS.log, {"r": "run-1"}) for _ in range(200)]
    assert looked_at() == (0, None), "nobody reads it"
    client.xgroup_create(KEYS.log, "somebody-else", "$")
    assert looked_at() == (0, None), "another reads it"
    client.xgroup_create(KEYS.log, GROUP, entries[-1])
    trimmed, last = looked_at()
    assert (trimmed > 0, str(last)) == (True, entries[-1].decode())
    client.set("text", "x")
    with pytest.raises(redis.exceptions.ResponseError):
        last_delivered(client, "text")


def test_a_name_that_is_not_heard_of_any_more_is_forgotten_unless_it_holds_something(
    client: redis.Redis,
) -> None:
    def names() -> set[bytes]:
        members: Any = client.xinfo_consumers(KEYS.log, GROUP)
        return {member["name"] for member in members}

    assert forget(client, 0, timedelta(0)) == 0, "without the functions"
    client.function_load(functions.LIBRARY, replace=True)
    assert forget(client, 0, timedelta(0)) == 0, "without a log"
    client.xadd(KEYS.log, {"r": "run-1"})
    assert forget(client, 0, timedelta(0)) == 0, "without persisters"
    client.xgroup_create(KEYS.log, GROUP, "0")
    for name in ("holds", "gone", "also-gone"):
        client.xreadgroup(GROUP, name, {KEYS.log: ">"}, count=1)
    assert (forget(client, 0, UNHEARD_OF), names()) == (0, {b"holds", b"gone", b"also-gone"}), (
        "heard of just now"
    )
    assert (forget(client, 0, timedelta(0)), names()) == (2, {b"holds"})
    taken: Any = client.xautoclaim(KEYS.log, GROUP, "another", 0)
    assert [fields for _, fields in taken[1]] == [{b"r": b"run-1"}]
    assert (forget(client, 0, timedelta(0)), names()) == (1, {b"another"})


def test_a_user_who_may_not_forget_names_is_told_of_and_nothing_else_happens(
    client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client.function_load(functions.LIBRARY, replace=True)
    client.xgroup_create(KEYS.log, GROUP, "0", mkstream=True)
    rights = ["+@all", "-xgroup|delconsumer", "-xinfo|consumers"]
    client.acl_setuser("before", enabled=True, passwords=["+before"], keys=["*"], commands=rights)
    where = client.connection_pool.connection_kwargs
    with redis.Redis(where["host"], where["port"], username="before", password="before") as before:
        assert forget(before, 0, UNHEARD_OF) == 0
    client.acl_deluser("before")
    assert "users.acl" in caplog.text


@pytest.mark.parametrize(
    ("pending", "delivered", "retained", "stays"),
    [
        (StreamId(5, 1), StreamId(9, 0), StreamId(20, 0), StreamId(5, 1)),
        (None, StreamId(9, 0), StreamId(20, 0), StreamId(9, 1)),
        (StreamId(5, 1), StreamId(9, 0), StreamId(2, 0), StreamId(2, 0)),
        (StreamId(9, 0), StreamId(10, 0), StreamId(10, 1), StreamId(9, 0)),
    ],
)
def test_the_limit_of_trimming_is_compared_in_numbers(
    pending: StreamId | None, delivered: StreamId, retained: StreamId, stays: StreamId
) -> None:
    assert limit(pending, delivered, retained) == stays
