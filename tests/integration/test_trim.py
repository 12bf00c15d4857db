"""How far a shard log is trimmed, and where persisters have not come to it."""

from datetime import timedelta
from typing import Any

import pytest
import redis
import redis.exceptions

from persister.consumer import Consumer
from persister.settings import Settings
from relay.stream.group import last_delivered
from relay.stream.keys import GROUP, ShardKeys, StreamId

KEYS = ShardKeys(0)


def test_of_a_log_that_no_persister_has_come_to_nothing_is_trimmed(client: redis.Redis) -> None:
    trimmer = Consumer(client, 0, Settings(), lambda: 0)

    def looked_at() -> tuple[int, StreamId | None]:
        return trimmer.trim(timedelta(seconds=-1)), last_delivered(client, KEYS.log)

    assert looked_at() == (0, None), "there is no log"
    entries: list[Any] = [client.xadd(KEYS.log, {"e": "run-1"}) for _ in range(200)]
    assert looked_at() == (0, None), "nobody reads it"
    client.xgroup_create(KEYS.log, "somebody-else", "$")
    assert looked_at() == (0, None), "another reads it"
    client.xgroup_create(KEYS.log, GROUP, entries[-1])
    trimmed, last = looked_at()
    assert (trimmed > 0, str(last)) == (True, entries[-1].decode())
    client.set("text", "x")
    with pytest.raises(redis.exceptions.ResponseError):
        last_delivered(client, "text")
