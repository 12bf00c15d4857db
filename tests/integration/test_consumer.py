"""A persister's side of the consumer group, on a real server, where others are at work at the same time."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from persister.consumer import READ_COUNT, RUNS_AT_ONCE, Batch, Consumer, NotKept, Settlement
from persister.settings import Settings
from relay.connect import persister_redis
from relay.stream.entry import NewEvent, run_of
from relay.stream.group import claims
from relay.stream.keys import ShardKeys
from relay.stream.publish import Publisher
from tests.conftest import Servers
from tests.factories import progress

KEYS = ShardKeys(0)
P = Settings(persister_name="p")
MANY = 2 * RUNS_AT_ONCE + 1
"""More runs than two calls tidy."""


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


class Watched(Consumer):
    """What it sends is seen, a round trip each."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client, 0, Settings(persister_name="p", persister_batch=MANY), lambda: 0)
        self.sent: list[bytes] = []

    def _exchange(self, connection: Any, *commands: bytes) -> list[Any]:
        self.sent.append(b"".join(commands))
        return super()._exchange(connection, *commands)


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


def of_many_runs() -> list[NewEvent]:
    return [event for number in range(MANY) for event in events(f"run-{number}", 1)]


def dealt_with(batch: Batch | None, *letters: Sequence[str]) -> Settlement:
    assert batch
    return Settlement(batch, {run_of(fields[1]): id.decode() for id, fields in batch.deliveries}, letters)


def expiring(client: redis.Redis) -> int:
    """How many run logs expire."""
    with client.pipeline(transaction=False) as pipe:
        for number in range(MANY):
            pipe.pttl(KEYS.run(f"run-{number}"))
        return sum(left > 0 for left in pipe.execute())


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


async def test_a_batch_that_is_not_in_as_many_files_as_asked_for_is_not_given_out(
    publisher: Publisher, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.link.WAITAOF_MS", 10)
    await publisher.append(events("a", 2))
    durable = Settings(persister_name="p", waitaof="0,1")
    for _ in ("new", "its own, once more"):
        with pytest.raises(NotKept):
            Consumer(client, 0, durable, lambda: 0).claim()
    assert [claim.entries for claim in claims(client, KEYS)] == [2]
    assert len(ids(consumer(client).claim())) == 2


async def test_a_settlement_that_is_refused_is_repeated_before_anything_else(
    publisher: Publisher, client: redis.Redis
) -> None:
    await publisher.append(events("a", 2))
    ours = Consumer(client, 0, Settings(persister_name="p", persister_batch=1), lambda: 0)
    batch = ours.claim()
    assert batch
    client.function_flush()
    assert len(ids(ours.claim_more(Settlement(batch, {})))) == 1
    assert len(claims(client, KEYS)) == 1


async def test_a_batch_of_few_runs_is_settled_in_the_round_trip_in_which_the_next_one_is_read(
    publisher: Publisher, client: redis.Redis
) -> None:
    ours = Watched(client)
    await publisher.append(events("a", MANY))
    settlement = dealt_with(ours.claim())
    await publisher.append(events("a", 1))
    ours.sent.clear()
    assert ours.claim_more(settlement)
    settling, claiming = ours.sent
    assert (settling.count(b"FCALL"), settling.count(b"XREAD"), claiming.count(b"FCALL")) == (1, 1, 1)


@pytest.mark.parametrize("more", [True, False])
async def test_a_batch_of_many_runs_is_settled_in_calls_that_each_tidy_some(
    publisher: Publisher, client: redis.Redis, more: bool
) -> None:
    ours = Watched(client)
    await publisher.append(of_many_runs())
    settlement = dealt_with(ours.claim())
    ours.sent.clear()
    if more:
        assert ours.claim_more(settlement) is None
    else:
        ours.settle(settlement)
    runs = [sent.count(KEYS.run("").encode()) for sent in ours.sent]
    assert (runs, [sent.count(b"FCALL") for sent in ours.sent]) == ([RUNS_AT_ONCE, RUNS_AT_ONCE, 1], [1] * 3)
    assert (expiring(client), claims(client, KEYS)) == (MANY, [])


async def test_who_takes_over_between_two_calls_of_a_settlement_does_all_of_it_once(
    publisher: Publisher, client: redis.Redis
) -> None:
    """What could not be stored is buried once, and the one who was overtaken has nothing left to do."""
    await publisher.append(of_many_runs())
    ours = consumer(client)
    settlement = dealt_with(ours.claim(), ["id", "1-1"])
    first, *rest = ours._settling(settlement)
    with ours._connection() as connection:
        assert ours._call(connection, first) == [1]
        assert (expiring(client), len(claims(client, KEYS))) == (RUNS_AT_ONCE, 1)
        assert client.xlen(KEYS.dead_letters) == 0
        peer = Consumer(client, 0, Settings(persister_name="peer", persister_claim_s=0.0001), lambda: 0)
        again = peer.claim()
        assert again == settlement.batch
        peer.settle(dealt_with(again, ["id", "1-1"]))
        assert [ours._call(connection, part) for part in rest] == [[0], [0]]
    assert (expiring(client), claims(client, KEYS), client.xlen(KEYS.dead_letters)) == (MANY, [], 1)


def test_a_batch_is_bounded_in_bytes_also_where_large_events_come_after_small_ones(
    client: redis.Redis,
) -> None:
    small, large, most = b"x" * 100, b"x" * 4_000, 1 << 20
    with client.pipeline(transaction=False) as pipe:
        for text in [small] * 9_000 + [large] * 2_000 + [small] * 10:
            pipe.xadd(KEYS.log, {"e": text})
        pipe.execute()
    settings = Settings(persister_name="p", persister_batch_bytes=most)
    its = Consumer(client, 0, settings, lambda: 0)
    batches = []
    while batch := its.claim():
        batches.append(batch)
    sizes = [sum(len(fields[-1]) for _, fields in batch.deliveries) for batch in batches]
    assert sum(len(batch.deliveries) for batch in batches) == 11_010
    assert max(sizes) < most + READ_COUNT * len(large)
    assert len(batches[0].deliveries) == settings.persister_batch
