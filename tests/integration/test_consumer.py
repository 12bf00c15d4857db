"""A persister's side of the consumer group, on a real server, where others are at work at the same time."""

import json
from typing import Any

import pytest
import redis

from persister.consumer import Batch, Consumer, Settlement
from persister.settings import Settings
from relay.connect import persister_redis
from relay.stream.entry import NewEvent
from relay.stream.group import claims
from relay.stream.keys import ShardKeys
from relay.stream.publish import Publisher
from tests.conftest import Servers
from tests.factories import progress

KEYS = ShardKeys(0)
P = Settings(persister_name="p")


class Cut(Consumer):
    """Its connection ends before it has the answer."""

    def _exchange(self, connection: Any, *commands: bytes) -> list[Any]:
        super()._exchange(connection, *commands)
        raise redis.exceptions.ConnectionError("cut")


class Deaf(Consumer):
    """The same, while it claims."""

    def _claimed(self, connection: Any, batch: Batch, erased: int) -> bool:
        super()._claimed(connection, batch, erased)
        raise redis.exceptions.ConnectionError("cut")


class Overtaken(Consumer):
    """Something happens between reading a batch and claiming it, once."""

    def __init__(self, client: redis.Redis, settings: Settings, between: Any) -> None:
        super().__init__(client, 0, settings, lambda: 0)
        self._between = between

    def _claimed(self, connection: Any, batch: Batch, erased: int) -> bool:
        between, self._between = self._between, lambda: None
        between()
        return super()._claimed(connection, batch, erased)


def events(run_id: str, count: int) -> list[NewEvent]:
    text = json.dumps(progress()).encode()
    return [NewEvent(run_id, "paper_generation_progress", text) for _ in range(count)]


def consumer(client: redis.Redis, kind: type[Consumer] = Consumer) -> Consumer:
    return kind(client, 0, P, lambda: 0)


def ids(batch: Batch | None) -> list[bytes]:
    assert batch
    return [stream_id for stream_id, _ in batch.deliveries]


async def test_what_was_settled_stays_so_where_its_persister_did_not_hear_of_it(
    publisher: Publisher, client: redis.Redis
) -> None:
    await publisher.append(events("a", 3))
    batch = consumer(client).claim()
    assert batch
    with pytest.raises(redis.exceptions.ConnectionError):
        consumer(client, Cut).settle(Settlement(batch, {"a": batch.deliveries[-1][0].decode()}))
    assert int(client.pttl(KEYS.run("a"))) > 0
    assert (consumer(client).claim(), claims(client, KEYS)) == (None, [])


async def test_what_was_claimed_is_found_again_where_its_persister_did_not_hear_of_it(
    publisher: Publisher, client: redis.Redis
) -> None:
    await publisher.append(events("a", 3))
    with pytest.raises(redis.exceptions.ConnectionError):
        consumer(client, Deaf).claim()
    assert len(ids(consumer(client).claim())) == 3


async def test_a_batch_that_a_peer_claimed_first_is_left_to_it(
    publisher: Publisher, client: redis.Redis
) -> None:
    await publisher.append(events("a", 3))
    peer = Consumer(client, 0, Settings(persister_name="peer", persister_batch=2), lambda: 0)
    theirs: list[bytes] = []
    ours = ids(Overtaken(client, P, lambda: theirs.extend(ids(peer.claim()))).claim())
    assert (len(theirs), len(ours)) == (2, 1)
    assert theirs[-1] < ours[0]


async def test_what_is_erased_while_it_is_read_is_not_claimed(
    publisher: Publisher, client: redis.Redis
) -> None:
    await publisher.append(events("a", 2))
    entries: Any = client.xrange(KEYS.log)
    (first, _), (second, _) = entries

    def erase() -> None:
        client.sadd(KEYS.erased, first)
        client.xdel(KEYS.log, first)

    assert ids(Overtaken(client, P, erase).claim()) == [second]


async def test_what_was_read_over_a_connection_that_is_lost_then_is_not_claimed_over_another_one(
    publisher: Publisher, client: redis.Redis, servers: Servers
) -> None:
    """It may lead to a server that took over, and has other entries there."""
    await publisher.append(events("a", 2))
    own = persister_redis(servers.redis_url)

    def cut() -> None:
        client.client_kill_filter(_type="normal", skipme=True)

    with pytest.raises(redis.exceptions.ConnectionError):
        Overtaken(own, P, cut).claim()
    assert claims(client, KEYS) == []
    own.close()
