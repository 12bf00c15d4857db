"""Everybody goes where the primary is, and follows where it went."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
import redis.exceptions

from relay import connect
from relay.connect import append_link, persister_clients, persister_redis, primary, shared_link, shared_links
from relay.link import Link
from relay.migrate import load_functions
from relay.stream.keys import ShardKeys
from relay.where import where
from tests.faults.failover import SERVICE, Cluster, Sentinel, ask, member

SHARDS = 4
KEYS = [ShardKeys(shard).log for shard in range(SHARDS)]
MOVED = 0
"""The shard that moves."""

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
async def ends() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def written(link: Link, key: str) -> bool:
    """Whether a write was taken; where it was refused, once it was looked again."""
    await link.connect()
    try:
        await link.command("SET", key, 1)
    except redis.exceptions.ResponseError:
        await link.connect()
        await link.command("SET", key, 1)
        return False
    return True


async def test_a_shard_of_a_cluster_is_followed_to_another_node(
    cluster: Cluster, ends: AsyncExitStack
) -> None:
    shared = shared_links(cluster.url, SHARDS)
    clients = persister_clients(cluster.url, SHARDS)
    assert len(set(shared)) == len(set(clients)) == SHARDS
    link, other = append_link(cluster.url, shard=MOVED), append_link(cluster.url, shard=MOVED + 1)
    for its in (link, other):
        ends.push_async_callback(its.drop)
    for each in shared:
        ends.push_async_callback(each.close)
    for client in clients:
        ends.callback(client.close)

    load_functions(cluster.url)
    assert all(ask(node, "FUNCTION", "LIST") for node in cluster.nodes)
    for shard, key in enumerate(KEYS):
        assert await shared[shard].ask("GET", key) is None
        assert clients[shard].get(key) is None
    assert await written(other, KEYS[MOVED + 1])
    before = cluster.primary(MOVED)
    after = next(node for node in cluster.nodes if node is not before)
    await link.connect()
    cluster.move(MOVED, after)

    assert await shared[MOVED].ask("GET", KEYS[MOVED]) is None, "a read is repeated where the shard is now"
    assert not await written(link, KEYS[MOVED]), "a refused write did not run, and goes there as well"
    assert ask(after, "GET", KEYS[MOVED]) == b"1"
    with pytest.raises(redis.exceptions.MovedError):
        clients[MOVED].get(KEYS[MOVED])
    assert clients[MOVED].get(KEYS[MOVED]) == b"1", "the next call looks again"
    assert await written(other, KEYS[MOVED + 1]), "nobody else was disturbed"


async def test_a_primary_that_was_demoted_is_left_for_the_one_that_sentinels_name(
    place: Path, ends: AsyncExitStack
) -> None:
    old = member(place / "old", "same-for-both")
    new = member(place / "new", "same-for-both")
    sentinel = Sentinel(place / "sentinel", old)
    for server in (old, new, sentinel):
        ends.push_async_callback(server.clear)
        await server.start()
    nobody = "127.0.0.1:1"
    url = f"redis+sentinel://:same-for-both@{nobody},127.0.0.1:{sentinel.port}/{SERVICE}/0"
    link, shared = append_link(url), shared_link(url)
    ends.push_async_callback(link.drop)
    ends.push_async_callback(shared.close)
    with closing(persister_redis(url)) as client:
        assert await written(link, "key")
        assert await shared.ask("GET", "key") == client.get("key") == b"1"
        sentinel.ask("SENTINEL", "REMOVE", SERVICE)
        sentinel.ask("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", new.port, 1)
        ask(old, "REPLICAOF", "127.0.0.1", 1)

        assert not await written(link, "key")
        assert ask(new, "GET", "key") == b"1"
        with pytest.raises(redis.exceptions.ReadOnlyError):
            client.set("key", 2)
        assert client.set("key", 2)
        assert ask(new, "GET", "key") == b"2"


def test_where_nobody_knows_it_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "LOOK_S", 0.01)
    place = where("redis+cluster://127.0.0.1:1,127.0.0.1:2", 0)
    assert place is not None
    with pytest.raises(redis.exceptions.ConnectionError):
        primary(place)
