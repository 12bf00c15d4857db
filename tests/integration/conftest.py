"""Both servers that the relay supports, and the parts of the product on top of them."""

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
from relay.stream.publish import Publisher
from tests.conftest import Servers


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
def store(request: pytest.FixtureRequest, session_servers: Servers) -> Iterator[redis.Redis]:
    """A client of each server, empty, also of functions."""
    url = request.getfixturevalue("redis_7_url") if request.param == "redis-7" else session_servers.redis_url
    client = redis.Redis.from_url(url, protocol=2)
    client.flushall()
    client.function_flush()
    yield client
    client.close()


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
