"""Stores that refuse: said with what to do, by what is typed and by what goes on without them."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from urllib.parse import urlsplit

import click
import psycopg2
import pytest
import redis
from click.testing import CliRunner

from persister.__main__ import main as persister
from persister.loop import Loop
from persister.settings import Settings as PersisterSettings
from persister.store import Store
from relay.cli import main as relay
from relay.connect import database, persister_redis
from relay.errors import DatabaseUnavailable
from relay.reasons import known, why
from relay.settings import Settings
from relay.startup import guard, refuse_insecure
from tests.conftest import Servers
from tests.sql import sql

NOBODY = "redis://127.0.0.1:1/0", "postgresql://127.0.0.1:1/none"
PRUNE = (persister, ["prune", "--older-than", "90d"])
ERASE = (relay, ["erase", "run-1"])
MIGRATE = (relay, ["migrate"])
LIST = (persister, ["dead-letters", "list"])
Words = tuple[click.Command, list[str]]


def said(words: Words, servers: Servers) -> str:
    """What the command ends with, with these stores."""
    env = {"REDIS_URL": servers.redis_url, "DATABASE_URL": servers.database_url}
    done = CliRunner().invoke(*words, env=env)
    assert done.exit_code == 1, done.output
    *_, last = done.output.splitlines()
    assert "wrong" not in done.output
    return last.removeprefix("Error: ")


def wrong(url: str) -> str:
    """With another password."""
    return url.replace(f":{urlsplit(url).password}@", ":wrong@")


@pytest.fixture(scope="module")
def mere_role(session_servers: Servers) -> Iterator[str]:
    """The URL of a role without any rights."""
    parts = urlsplit(session_servers.database_url)
    with sql(session_servers.database_url) as cursor:
        cursor.execute("CREATE ROLE mere LOGIN PASSWORD 'mere'")
        yield session_servers.database_url.replace(f"postgres:{parts.password}@", "mere:mere@")
        cursor.execute("DROP ROLE mere")


@pytest.fixture(scope="module")
def without_tables(session_servers: Servers) -> Iterator[str]:
    with sql(session_servers.database_url) as cursor:
        cursor.execute("CREATE DATABASE bare")
        yield session_servers.database_url.rpartition("/")[0] + "/bare"
        cursor.execute("DROP DATABASE bare WITH (FORCE)")


@contextmanager
def blind_user(url: str) -> Iterator[str]:
    """The URL of a user of Redis who may do nothing."""
    with closing(redis.Redis.from_url(url)) as client:
        client.acl_setuser("blind", enabled=True, passwords=["+blind"], commands=["-@all", "+ping"])
        yield url.replace(f":{urlsplit(url).password}@", "blind:blind@")
        client.acl_deluser("blind")


@pytest.mark.parametrize("words", [ERASE, LIST, MIGRATE, PRUNE], ids=lambda words: words[1][0])
def test_a_wrong_password_of_redis_is_told(servers: Servers, words: Words) -> None:
    told = said(words, servers._replace(redis_url=wrong(servers.redis_url)))
    assert told.endswith("Redis refuses the user or password of REDIS_URL; check the user and password.")


@pytest.mark.parametrize("words", [ERASE, MIGRATE, PRUNE], ids=lambda words: words[1][0])
def test_a_postgresql_that_refuses_is_told_with_what_to_do(
    servers: Servers, mere_role: str, words: Words
) -> None:
    for url, what in (
        (wrong(servers.database_url), "refuses the user or password of DATABASE_URL; check the user"),
        (f"{servers.database_url}-none", "has no database of the name that is in DATABASE_URL"),
        (NOBODY[1], "PostgreSQL does not answer; run the same again."),
        (f"{servers.database_url}?sslmode=foo", "DATABASE_URL has an option that is not understood, or its"),
        (mere_role, "The role in DATABASE_URL may not do that; use one that may, relay_operator"),
    ):
        assert what in said(words, servers._replace(database_url=url))


def test_a_user_who_may_not_is_told_who_may(servers: Servers) -> None:
    with blind_user(servers.redis_url) as url:
        assert "use one who may, relay_operator" in said(LIST, servers._replace(redis_url=url))


def test_a_database_without_tables_is_told(servers: Servers, without_tables: str) -> None:
    for words in (ERASE, PRUNE):
        told = said(words, servers._replace(database_url=without_tables))
        assert told == "The database has no tables yet; run `relay migrate`."


def test_a_schema_of_another_version_is_told(servers: Servers) -> None:
    with sql(servers.database_url) as cursor:
        cursor.execute("SELECT version_num FROM alembic_version")
        ((version,),) = cursor.fetchall()
        cursor.execute("UPDATE alembic_version SET version_num = '9999'")
        try:
            assert "run a version that is as new" in said(MIGRATE, servers)
        finally:
            cursor.execute("UPDATE alembic_version SET version_num = %s", [version])


@pytest.mark.parametrize("form", ["host={0.hostname} port={0.port} user={0.username} password={0.password}"])
def test_what_libpq_takes_besides_a_url_does_too(servers: Servers, form: str) -> None:
    dsn = form.format(urlsplit(servers.database_url)) + " dbname=postgres"
    done = CliRunner().invoke(*MIGRATE, env={"REDIS_URL": servers.redis_url, "DATABASE_URL": dsn})
    assert done.exit_code == 0, done.output


def test_stores_that_refuse_at_the_start_are_not_just_away(
    monkeypatch: pytest.MonkeyPatch, servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RELAY_ALLOW_INSECURE", "embedded")
    refusing = Settings(redis_url=wrong(servers.redis_url), database_url=wrong(servers.database_url))
    away = refuse_insecure(refusing)
    assert [sentence.partition(" of ")[0] for sentence in away] == [
        "Redis refuses the user or password",
        "PostgreSQL refuses the user or password",
    ]
    monkeypatch.setattr("relay.startup._look_later", lambda *_: None)
    with caplog.at_level(logging.WARNING), guard(refusing):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        f"{sentence} It is looked at again every 2 s." for sentence in away
    ]


def test_a_persister_says_what_it_waits_for(servers: Servers, without_tables: str) -> None:
    cases = {
        "The database has no tables yet; run `relay migrate`": without_tables,
        "PostgreSQL refuses the user or password of DATABASE_URL; check the user and password": wrong(
            servers.database_url
        ),
        "PostgreSQL does not answer": NOBODY[1],
    }
    for reason, url in cases.items():
        settings = PersisterSettings(redis_url=servers.redis_url, database_url=url)
        with closing(persister_redis(servers.redis_url)) as client:
            loop = Loop(client, Store(partial(database, url)), 0, settings)
            with pytest.raises(DatabaseUnavailable) as caught:
                loop.step()
            loop.stop()
            loop.run()
        assert why(caught.value) == reason


def test_what_nobody_has_a_sentence_for_is_told_by_whom() -> None:
    assert why(redis.exceptions.TimeoutError("x")) == "Redis: TimeoutError"
    assert why(OSError("x")) == "Redis: OSError"
    assert known(psycopg2.OperationalError("could not connect")) is None
