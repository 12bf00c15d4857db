"""Both servers that the relay supports, and the parts of the product on top of them."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import redis

from persister.store import Store
from relay import connect
from relay.connect import Database
from relay.history import History
from relay.processes import Part, running
from relay.stream import functions
from relay.stream.publish import Publisher
from tests.conftest import Servers
from tests.faults.failover import Cluster, ask
from tests.integration.calling import open_log


@pytest.fixture(scope="session")
def redis_7_url(directory: Path) -> Iterator[str]:
    """Debian's Redis 7."""
    program = shutil.which("redis-server")
    assert program, "redis-server is missing; `make debian` installs it"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"redis://127.0.0.1:{port}/0"
    argv = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    with running(Part("redis-7", argv, lambda: answers(url), log=directory / "redis-7.log")):
        yield url


def answers(url: str) -> bool:
    client = redis.Redis.from_url(url)
    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False
    finally:
        client.close()


@pytest.fixture(params=["valkey", "redis-7"])
def store_url(request: pytest.FixtureRequest, session_servers: Servers) -> str:
    url: str = (
        request.getfixturevalue("redis_7_url") if request.param == "redis-7" else session_servers.redis_url
    )
    return url


@pytest.fixture
def store(store_url: str) -> Iterator[redis.Redis]:
    """A client of each server, empty, also of functions."""
    client = redis.Redis.from_url(store_url, protocol=2)
    client.flushall()
    client.function_flush()
    yield client
    client.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers may take their time, on a machine that is busy with many of them."""
    monkeypatch.setattr(connect, "LOOK_S", 20.0)
    monkeypatch.setattr(connect, "REPLY_S", 20.0)
    monkeypatch.setitem(connect._REDIS, "socket_connect_timeout", 20.0)


@pytest.fixture(scope="session")
def session_cluster(directory: Path) -> Iterator[Cluster]:
    place = directory / "cluster"
    place.mkdir()
    made = Cluster(place, replicas=False)

    async def clear() -> None:
        for node in made.nodes:
            await node.clear()

    try:
        asyncio.run(made.start())
        yield made
    finally:
        asyncio.run(clear())


@pytest.fixture
def cluster(session_cluster: Cluster) -> Cluster:
    """Three primaries, empty, also of functions."""
    for node in session_cluster.nodes:
        ask(node, "FLUSHALL")
        ask(node, "FUNCTION", "FLUSH")
    return session_cluster


@pytest.fixture
def client(servers: Servers) -> Iterator[redis.Redis]:
    """A client as persisters have it."""
    opened = connect.persister_redis(servers.redis_url)
    yield opened
    opened.close()


@pytest.fixture
def archive(servers: Servers) -> Iterator[Store]:
    """The archive as persisters have it."""
    made = Store(lambda: connect.database(servers.database_url))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def short_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A persister that finds nothing new says so at once."""
    monkeypatch.setattr("persister.consumer.BLOCK_MS", 20)


@pytest.fixture
async def database(servers: Servers) -> AsyncIterator[Database]:
    opened = Database(servers.database_url, 2)
    yield opened
    opened.close()


def publisher_to(redis_url: str, highest: Callable[[], Awaitable[int]], shards: int = 1) -> Publisher:
    """A publisher as web workers have it. `highest`: the highest id that is taken already."""
    return Publisher(
        lambda _: connect.append_link(redis_url),
        highest,
        shards=shards,
        deadline_s=2.8,
        remember_ms=3_600_000,
    )


@pytest.fixture
async def publisher(servers: Servers, database: Database) -> AsyncIterator[Publisher]:
    made = publisher_to(servers.redis_url, History(database).highest)
    yield made
    await made.close()


@pytest.fixture
def opened(store: redis.Redis) -> redis.Redis:
    """A server with the library and an empty log."""
    store.function_load(functions.LIBRARY)
    open_log(store)
    return store
