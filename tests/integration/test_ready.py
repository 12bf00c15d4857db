"""What `/readyz` says of stores that are there, and do not let this user in."""

from types import SimpleNamespace
from typing import Any

import pytest

from relay import app, connect
from relay.connect import Database
from relay.errors import NotStored
from relay.history import History
from tests.conftest import Servers
from tests.integration.conftest import publisher_to
from tests.sql import sql

PASSWORD = "Redis refuses the user or password of REDIS_URL; check the user and password"


async def test_a_wrong_password_is_no_store_that_is_away(servers: Servers) -> None:
    redis_url, database_url = (
        f"{url.partition('//')[0]}//nobody:wrong@{url.rpartition('@')[2]}"
        for url in (servers.redis_url, servers.database_url)
    )
    link, database = connect.shared_link(redis_url), Database(database_url, 1)
    publisher = publisher_to(redis_url, History(database).highest)
    services: Any = SimpleNamespace(links=[link], database=database, publisher=publisher)
    assert await app._redis(services) == PASSWORD
    assert await app._append(services) == PASSWORD
    assert await app._postgres(services) == (
        "PostgreSQL refuses the user or password of DATABASE_URL; check the user and password"
    )
    await link.close()
    await publisher.close()
    database.close()


async def test_tables_that_nobody_may_read_are_the_operators_business(servers: Servers) -> None:
    with sql(servers.database_url) as cursor:
        cursor.execute("CREATE ROLE unprivileged LOGIN PASSWORD 'unprivileged'")
        url = f"postgresql://unprivileged:unprivileged@{servers.database_url.rpartition('@')[2]}"
        database = Database(url, 1)
        publisher = publisher_to(servers.redis_url, History(database).highest)
        with pytest.raises(NotStored):
            await publisher.open()
        assert "run deploy/postgres/grants.sql" in str(publisher.reason)
        await publisher.close()
        database.close()
        cursor.execute("DROP ROLE unprivileged")
