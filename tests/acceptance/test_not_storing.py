"""A worker that can reach both stores and store nothing says so, and why: on the way from an empty pair of
stores to a full one."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import redis

from relay import embedded, migrate
from relay.processes import running
from tests.acceptance.running import CLIENT, CONVERSATION, EVENTS, USER, environment_with, viewer, web_worker
from tests.canaries import TOKEN
from tests.conftest import Servers
from tests.sql import sql
from tests.waiting import wait_until

ACL = Path(__file__).parents[2] / "deploy/redis/users.acl"
PIPELINE = {"authorization": f"Bearer {TOKEN}"}
RUN = f"/conversations/{CONVERSATION}/idea/research-run/run-1"
NO_TABLES = (
    "a log has to be made, above all ids that the archive has: "
    "The database has no tables yet; run `relay migrate`"
)
NO_FUNCTIONS = "Redis lacks this version's functions, which this user may not load; run `relay migrate`"
FULL = "the memory of Redis is full (`maxmemory`)"


class Worker(NamedTuple):
    """A web worker under its own user, with stores of its own, which may be empty."""

    url: str
    log: Path
    client: redis.Redis
    redis_pid: int
    stores: tuple[str, str]

    def post(self) -> httpx.Response:
        return CLIENT.post(f"{self.url}{EVENTS}/heartbeat", json={"run_id": "run-1"}, headers=PIPELINE)

    def newcomer(self) -> int:
        """What a viewer is answered who has not been there before."""
        with CLIENT.stream("GET", f"{self.url}{RUN}/events", headers=viewer()) as answer:
            return answer.status_code

    def ticket(self) -> int:
        return CLIENT.post(f"{self.url}/tickets", headers=viewer()).status_code

    def becomes(self, code: int, status: str, append: str) -> None:
        def ready() -> bool:
            answer = CLIENT.get(f"{self.url}/readyz")
            said = answer.json()
            return (answer.status_code, said["status"], said["checks"]["append"]) == (code, status, append)

        wait_until(ready, f"/readyz to say {append}")

    def said(self) -> list[str]:
        """What the log has of errors."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line["message"] for line in lines if line["level"].lower() == "error"]


@pytest.fixture
def worker(place: Path, session_servers: Servers) -> Iterator[Worker]:
    valkey, redis_url = embedded.valkey(place / "valkey")
    database_url = session_servers.database_url.rpartition("/")[0] + "/empty"
    (rules,) = (line for line in ACL.read_text().splitlines() if line.startswith("user relay_web "))
    with sql(session_servers.database_url) as cursor, running(valkey) as process:
        cursor.execute("CREATE DATABASE empty")
        with closing(redis.Redis.from_url(redis_url)) as client:
            client.execute_command("ACL", "SETUSER", *rules.split()[1:])  # type: ignore[no-untyped-call]
            mine = f"redis://relay_web:WEB_PASSWORD@{redis_url.rpartition('@')[2]}"
            env = environment_with(REDIS_URL=mine, DATABASE_URL=database_url, RELAY_ALLOW_INSECURE="embedded")
            with web_worker(place / "web.log", **env) as (url, _):
                yield Worker(url, place / "web.log", client, process.pid, (redis_url, database_url))
        cursor.execute("DROP DATABASE empty WITH (FORCE)")


def test_a_worker_that_can_not_store_says_why_until_it_can(worker: Worker) -> None:
    worker.becomes(503, "unavailable", NO_FUNCTIONS)  # nobody has sent anything yet
    assert worker.post().status_code == 503
    redis_url, database_url = worker.stores
    migrate.upgrade(database_url)
    for _ in range(3):
        assert worker.post().json()["type"].endswith(":not-stored")
    migrate.load_functions(redis_url)
    worker.becomes(200, "ok", "ok")  # without an event
    assert worker.post().status_code == 204

    owner = {"conversation_id": CONVERSATION, "user_id": USER}
    CLIENT.put(f"{worker.url}/research-pipeline/runs/run-1", json=owner, headers=PIPELINE).raise_for_status()
    worker.client.config_set("maxmemory", "1")
    for _ in range(3):
        assert worker.post().json()["type"].endswith(":not-stored")
    worker.becomes(200, "degraded", FULL)  # its viewers lose nothing by it
    assert (worker.newcomer(), worker.ticket()) == (200, 503)
    worker.client.config_set("maxmemory", "0")

    worker.client.flushall()
    worker.client.function_flush()
    assert worker.post().json()["type"].endswith(":not-stored")
    worker.becomes(200, "degraded", NO_FUNCTIONS)
    assert worker.said() == [
        f"shard 0: events can not be stored: {reason}" for reason in (NO_TABLES, NO_FUNCTIONS, FULL)
    ], "each once, also where one comes again within a minute"

    os.kill(worker.redis_pid, signal.SIGKILL)
    assert (worker.newcomer(), worker.ticket(), worker.post().status_code) == (503, 503, 503)
    history = f"{worker.url}{RUN}/paper-generation-progress"
    assert CLIENT.get(history, headers=viewer()).status_code == 200
