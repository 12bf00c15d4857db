"""How far a shard log is trimmed: as numbers, and where persisters have not come to it."""

from datetime import timedelta
from typing import Any

import pytest
import redis
import redis.exceptions

from persister.trim import limit, trim
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


@pytest.mark.parametrize(
    ("archived", "retained", "stays"),
    [
        (StreamId(9, 0), StreamId(20, 0), StreamId(9, 1)),
        (StreamId(5, 1), StreamId(2, 0), StreamId(2, 0)),
        (StreamId(9, 0), StreamId(10, 1), StreamId(9, 1)),
    ],
)
def test_the_limit_of_trimming_is_compared_in_numbers(
    archived: StreamId, retained: StreamId, stays: StreamId
) -> None:
    assert limit(archived, retained) == stays
