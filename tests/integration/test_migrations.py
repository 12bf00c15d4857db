"""The schema: what the registry declares, made safely, and unmade."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command

import migrations
from relay import migrate
from relay.events.registry import TABLES
from tests.conftest import Servers
from tests.sql import query, sql

FIXED = {
    "id": "bigint",
    "run_id": "text",
    "occurred_at": "timestamp with time zone",
    "created_at": "timestamp with time zone",
}
COLUMNS = "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = '{}'"
INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = '{}'"
ADDS = r"CREATE (TABLE|INDEX) |ALTER TABLE \w+ ADD COLUMN [^,]*$"
"""What a statement of an upgrade may do: older versions neither need it nor are in its way."""

OWN = {"alembic_version", "conversations", "research_pipeline_runs"}


@pytest.fixture
def empty_database(session_servers: Servers) -> Iterator[str]:
    """A database without any table."""
    with sql(session_servers.database_url) as cursor:
        cursor.execute("CREATE DATABASE empty")
        yield session_servers.database_url.rsplit("/", 1)[0] + "/empty"
        cursor.execute("DROP DATABASE empty WITH (FORCE)")


def tables(url: str) -> set[str]:
    return {name for (name,) in query(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def test_an_empty_database_gets_what_the_registry_declares(empty_database: str) -> None:
    migrate.upgrade(empty_database)
    assert tables(empty_database) == OWN | TABLES.keys()
    for table, kind in TABLES.items():
        assert dict(query(empty_database, COLUMNS.format(table))) == FIXED | dict(kind.columns)
        indexes = query(empty_database, INDEXES.format(table))
        found = {name: definition.rpartition("btree ")[2] for name, definition in indexes}
        assert found == {
            f"{table}_pkey": "(id)",
            f"idx_{table}_run_id": "(run_id, id)",
            f"idx_{table}_created_at": "(created_at)",
        }


def test_processes_that_start_at_once_migrate_once(empty_database: str) -> None:
    environment = {**os.environ, "DATABASE_URL": empty_database}
    argv = [sys.executable, "-m", "relay", "migrate"]
    processes = [subprocess.Popen(argv, env=environment) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert query(empty_database, "SELECT count(*) FROM alembic_version") == [(1,)]
    assert tables(empty_database) == OWN | TABLES.keys()


def test_every_migration_can_be_taken_back(empty_database: str) -> None:
    migrate.upgrade(empty_database)
    whole = tables(empty_database)
    command.downgrade(migrate.config(empty_database), "base")
    assert tables(empty_database) == {"alembic_version"}
    migrate.upgrade(empty_database)
    assert tables(empty_database) == whole


def test_migrations_are_numbered_without_a_hole_and_say_what_they_do() -> None:
    found = sorted((Path(migrations.__file__).parent / "versions").glob("[0-9]*.py"))
    for number, path in enumerate(found, 1):
        assert re.fullmatch(rf"{number:04}_[a-z0-9_]+\.py", path.name)
        text = path.read_text()
        assert f'revision = "{number:04}"' in text
        assert "down_revision = " + (f'"{number - 1:04}"' if number > 1 else "None") in text


def test_migrations_only_add_so_that_older_versions_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("alembic.op.execute", said.append)
    for path in sorted((Path(migrations.__file__).parent / "versions").glob("[0-9]*.py")):
        runpy.run_path(str(path))["upgrade"]()
    statements = [part.strip() for text in said for part in text.split(";") if part.strip()]
    assert len(statements) > 10
    for statement in statements:
        assert re.match(ADDS, statement), statement
        assert not re.search(r"ADD COLUMN (?!.*DEFAULT).*NOT NULL", statement), statement


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE runs",
        "ALTER TABLE runs DROP COLUMN a",
        "ALTER TABLE runs ALTER COLUMN a TYPE text",
        "ALTER TABLE runs RENAME COLUMN a TO b",
        "ALTER TABLE runs ADD COLUMN a text, DROP COLUMN b",
        "ALTER TABLE runs ADD CONSTRAINT c CHECK (a > 0)",
        "CREATE UNIQUE INDEX i ON runs (a)",
        "UPDATE runs SET a = 1",
    ],
)
def test_what_takes_or_changes_is_not_taken_for_adding(statement: str) -> None:
    assert not re.match(ADDS, statement)
