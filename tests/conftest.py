"""Real servers for all tests that need them: started once, emptied in between."""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from relay import embedded, migrate
from relay.processes import running
from relay.startup import EVERY_CHECK
from tests.canaries import leaks
from tests.sql import sql


@pytest.fixture(scope="session", autouse=True)
def insecure_on_purpose() -> Iterator[None]:
    """All programs that tests start may use embedded servers and the like, unless a test says otherwise."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RELAY_ALLOW_INSECURE", ",".join(EVERY_CHECK))
        yield


class Servers(NamedTuple):
    """The URLs of a Valkey and a PostgreSQL with the newest schema."""

    redis_url: str
    database_url: str


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """Where servers keep their data. Not pytest's own place: as root, PostgreSQL runs under an account that
    has to pass through, and every start of pytest locks that place again. All their logs are in there too,
    and at the end none of them may have leaked anything."""
    with tempfile.TemporaryDirectory(prefix="relay-tests-") as made:
        yield Path(made)
        assert not list(leaks(Path(made)))


@pytest.fixture
def place(directory: Path) -> Path:
    """A directory for the servers of one test."""
    return Path(tempfile.mkdtemp(dir=directory))


@pytest.fixture(scope="session")
def session_servers(directory: Path) -> Iterator[Servers]:
    valkey, redis_url = embedded.valkey(directory / "valkey")
    postgres, database_url = embedded.postgres(directory / "postgres")
    with running(valkey), running(postgres):
        migrate.upgrade(database_url)
        with closing(redis.Redis.from_url(redis_url)) as client:
            client.config_set("hz", 500)  # how often it looks whether a read has waited for long enough
        yield Servers(redis_url, database_url)


@pytest.fixture
def servers(session_servers: Servers) -> Servers:
    """The session's servers, empty."""
    client = redis.Redis.from_url(session_servers.redis_url)
    client.flushall()
    client.close()
    with sql(session_servers.database_url) as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        tables = [name for (name,) in cursor.fetchall() if name != "alembic_version"]
        cursor.execute(f"TRUNCATE {', '.join(tables)} CASCADE")
    return session_servers
