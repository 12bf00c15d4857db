"""What an operator types, on a cluster: it reaches the shards on every node, as the user that is shipped."""

import json
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import psycopg2
import pytest
import redis
from click.testing import CliRunner

from persister.__main__ import main as persister_command
from persister.loop import Loop
from persister.settings import Settings
from persister.store import Store
from relay import connect
from relay.cli import main as relay_command
from relay.connect import Database
from relay.history import History
from relay.stream.entry import NewEvent, run_of
from relay.stream.keys import EPOCH_MS, MAX_SHARDS, ShardKeys, shard_of_run
from relay.stream.publish import Publisher
from tests.conftest import Servers
from tests.factories import entry, progress
from tests.faults.failover import Cluster, ask

SHARDS = 8
RUNS = [f"run-{number}" for number in range(16)]
"""In all shards, and some share theirs."""

PROGRESS = "paper_generation_progress"
ACL = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"
OPERATOR = "relay_operator"

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def clients(cluster: Cluster) -> Iterator[Sequence[redis.Redis]]:
    """Of each shard that there can be."""
    opened = connect.persister_clients(cluster.url)
    yield opened
    for client in opened:
        client.close()


@pytest.fixture
async def publisher(cluster: Cluster, database: Database) -> AsyncIterator[Publisher]:
    made = Publisher(
        lambda shard: connect.append_link(cluster.url, shard=shard),
        History(database).highest,
        shards=SHARDS,
        deadline_s=20,
        remember_ms=60_000,
    )
    yield made
    await made.close()


@pytest.fixture
def operator(cluster: Cluster, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of an operator, who is given no number of shards."""
    (rules,) = re.findall(f"^user {OPERATOR} (.*)$", ACL.read_text(), re.MULTILINE)
    words = rules.replace("OPERATOR_PASSWORD", cluster.password).split()
    for node in cluster.nodes:
        ask(node, "ACL", "SETUSER", OPERATOR, "reset", *words)
    monkeypatch.setenv("REDIS_URL", cluster.url.replace("//:", f"//{OPERATOR}:"))
    monkeypatch.setenv("DATABASE_URL", servers.database_url)


def typed(program: click.Command, words: str, exit_code: int = 0) -> list[str]:
    """The lines that a command prints."""
    done = CliRunner().invoke(program, words.split())
    assert done.exit_code == exit_code, done.output
    return done.output.splitlines()


def event(run_id: str, kind: str = PROGRESS) -> NewEvent:
    return NewEvent(run_id, kind, json.dumps(progress()).encode())


def archived(servers: Servers) -> list[str]:
    """The runs of the rows."""
    connection = psycopg2.connect(servers.database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT run_id FROM rp_paper_generation_events ORDER BY id")
        found = [run_id for (run_id,) in cursor.fetchall()]
    connection.close()
    return found


def in_redis(cluster: Cluster) -> set[tuple[str, str]]:
    """What all nodes have of runs, each with its run: keys called after it, and entries of streams."""
    found: set[tuple[str, str]] = set()
    for node in cluster.nodes:
        with closing(redis.Redis.from_url(node.url, protocol=2, decode_responses=True)) as client:
            keys: Any = client.keys("*")
            found |= {(key, key.rpartition(":")[2]) for key in keys if "run-" in key}
            for key in client.scan_iter(_type="STREAM"):
                entries: Any = client.xrange(key)
                found |= {
                    (f"{key} {id}", run_of(fields["e"].encode())) for id, fields in entries if "e" in fields
                }
    return found


def persist(cluster: Cluster, servers: Servers) -> None:
    """One batch of every shard, which is all there is."""
    for shard in range(SHARDS):
        client = connect.persister_redis(cluster.url, shard)
        store = Store(lambda: connect.database(servers.database_url))
        assert Loop(client, store, shard, Settings(persister_name="p")).step()
        store.close()
        client.close()


async def test_a_run_is_erased_from_its_shard_wherever_that_is(
    cluster: Cluster, servers: Servers, clients: Sequence[redis.Redis], publisher: Publisher, operator: None
) -> None:
    await publisher.append([event(run_id, kind) for run_id in RUNS for kind in (PROGRESS, "unheard_of")])
    for run_id in RUNS:
        shard = shard_of_run(run_id, SHARDS)
        clients[shard].set(ShardKeys(shard).owner(run_id), "7:42")
    persist(cluster, servers)
    assert sorted(archived(servers)) == sorted(RUNS)
    go = {cluster.primary(shard_of_run(run_id, SHARDS)).port: run_id for run_id in RUNS}.values()
    assert len(go) == len(cluster.nodes)
    stays = {trace for trace in in_redis(cluster) if trace[1] not in go}

    await publisher.append([event(run_id) for run_id in go])
    for run_id in go:
        assert typed(relay_command, f"erase {run_id}") == ["Erased: 3 entries, 1 rows, 1 dead letters."]
    assert sorted(archived(servers)) == sorted(set(RUNS) - set(go))
    assert in_redis(cluster) == stays
    assert {run_id for _, run_id in stays} == set(RUNS) - set(go)


def bury(client: redis.Redis, shard: int, kind: str, ago_h: int = 0) -> str:
    """Makes a dead letter of that age; answers its key."""
    ms = int(time.time() * 1000) - ago_h * 3_600_000
    stream_id, keys = f"{EPOCH_MS + shard}-0", ShardKeys(shard)
    letter: dict[Any, Any] = {
        "id": stream_id,
        "reason": "why",
        **entry(event(f"run-{shard}")._replace(kind=kind)),
    }
    id: Any = client.xadd(keys.dead_letters, letter, id=f"{ms}-{shard}")
    return f"{shard}/{id.decode()}"


def test_dead_letters_of_all_shards_are_listed_shown_and_stored(
    servers: Servers, clients: Sequence[redis.Redis], operator: None
) -> None:
    kinds = [PROGRESS if shard != 2 else "unheard_of" for shard in range(MAX_SHARDS)]
    keys = [bury(clients[shard], shard, kind) for shard, kind in enumerate(kinds)]
    listed = [line.split("\t") for line in typed(persister_command, "dead-letters list")]
    assert [line[:2] for line in listed] == [[key, f"run-{shard}"] for shard, key in enumerate(keys)]
    for shard in (0, MAX_SHARDS - 1):
        shown = json.loads("\n".join(typed(persister_command, f"dead-letters show {keys[shard]}")))
        assert (shown["run_id"], shown["id"]) == (f"run-{shard}", f"{EPOCH_MS + shard}-0")

    assert typed(persister_command, f"dead-letters requeue {keys[5]}") == [f"{keys[5]}\tstored"]
    assert archived(servers) == ["run-5"]
    said = typed(persister_command, "dead-letters requeue --all", exit_code=1)
    assert len(said) == MAX_SHARDS - 1
    assert [line for line in said if not line.endswith("\tstored")] == [
        f"{keys[2]}\tthis version can not read it"
    ]
    assert archived(servers) == [f"run-{shard}" for shard in range(MAX_SHARDS) if shard != 2]
    assert [line.split("\t")[0] for line in typed(persister_command, "dead-letters list")] == [keys[2]]


def test_what_is_old_goes_from_all_shards(
    servers: Servers, clients: Sequence[redis.Redis], operator: None
) -> None:
    for shard, client in enumerate(clients):
        bury(client, shard, "unheard_of", ago_h=50)
        bury(client, shard, "unheard_of", ago_h=47)
    assert typed(persister_command, "prune --older-than 48h")[-1] == f"dead letters\t{MAX_SHARDS}"
    left = typed(persister_command, "dead-letters list")
    assert [line.partition("/")[0] for line in left] == [str(shard) for shard in range(MAX_SHARDS)]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        *((persister_command, f"dead-letters {words}") for words in ("list", "show 0/1-1", "requeue --all")),
        (persister_command, "prune --older-than 48h"),
        (relay_command, "erase run-1"),
        (relay_command, "migrate"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_where_nobody_answers_it_ends_with_a_sentence(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, program: click.Command, words: str
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis+cluster://127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", servers.database_url)
    said = typed(program, words, exit_code=1)[-1]
    assert said.startswith("Error: ")
    assert said.endswith("Redis: ConnectionError; run the same again.")
