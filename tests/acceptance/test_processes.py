"""The commands as processes: what they print, how they stop, and that nothing of them stays behind."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from uvicorn.config import STARTUP_FAILURE

from relay.stream.entry import NewEvent
from tests.acceptance.running import (
    CLIENT,
    CONVERSATION,
    USER,
    Relay,
    environment_with,
    relay_up,
    viewer,
    web_worker,
)
from tests.canaries import SECRET, TOKEN
from tests.factories import entry, new_run_id, progress
from tests.waiting import wait_until


def command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", *words]
    done = subprocess.run(
        argv, env=environment_with(**env), capture_output=True, text=True, timeout=60, check=False
    )
    assert TOKEN not in done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    return done


def stores(relay: Relay) -> dict[str, str]:
    return {"REDIS_URL": relay.redis_url, "DATABASE_URL": relay.database_url}


def private_listeners(log: Path, count: int) -> list[tuple[int, str]]:
    """The processes that say where theirs is, and where, once there are that many."""
    found = re.findall(r"figures of process (\d+) are at (http[^\s\"]+)", log.read_text())
    return [(int(pid), url) for pid, url in found] if len(found) == count else []


@pytest.fixture(scope="module")
def stopped(directory: Path) -> tuple[Path, dict[str, Any]]:
    """A directory with the data of products that were stopped, and what is in there of each of their runs."""
    return directory / "stopped", {}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_is_stopped_nothing_stays_behind_and_the_data_does(
    stopped: tuple[Path, dict[str, Any]], how: signal.Signals
) -> None:
    data, kept = stopped
    run_id = new_run_id()
    log = data.with_suffix(".log")
    with relay_up(data, "--workers", "2") as relay:
        for earlier, events in kept.items():
            assert relay.archived(earlier, 1) == events
        relay.claim(run_id)
        relay.progress(run_id, progress())
        kept[run_id] = relay.archived(run_id, 1)
        family = psutil.Process(relay.process.pid).children(recursive=True)
        assert {"valkey-server", "postgres"} <= {child.name() for child in family}
        private = wait_until(lambda: private_listeners(log, 3), "private listeners")
        assert {pid for pid, _ in private} == {
            *relay.pids("--multiprocessing-fork"),
            *relay.pids("persister"),
        }
        assert [CLIENT.get(f"{url}/livez").status_code for _, url in private] == [200] * 3
        relay.process.send_signal(how)
        relay.process.wait(30)
        wait_until(lambda: not [child for child in family if child.is_running()], "all of them to end")
    if how is signal.SIGKILL:
        with relay_up(data) as again:
            assert all(again.archived(its, 1) == events for its, events in kept.items())


def test_the_ready_line_says_where_everything_is(relay: Relay) -> None:
    assert relay.ready["ready"] is True
    assert {"url", "redis_url", "database_url"} <= relay.ready.keys()
    assert relay.http.get("/readyz").status_code == 200


def test_the_log_of_the_embedded_valkey_is_synced_before_each_answer(relay: Relay) -> None:
    client = redis.Redis.from_url(relay.redis_url)
    settings = client.config_get("append*")
    client.close()
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "always")


@pytest.mark.usefixtures("relay")
def test_nobody_else_on_the_machine_can_read_what_the_embedded_servers_keep(directory: Path) -> None:
    kept = directory / "relay"
    for path in (
        kept / "valkey",
        kept / "postgres" / "data",
        *kept.glob("*/password"),
        kept / "secrets.json",
    ):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_token_from_the_command_lets_its_user_in(relay: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    done = command("relay", "token", "--user", str(USER))
    headers = {"authorization": f"Bearer {done.stdout.strip()}"}
    assert relay.http.head(f"{relay.run_url(run_id)}/events", headers=headers).status_code == 200


def test_tail_shows_a_run_until_it_is_over(relay: Relay) -> None:
    run_id = new_run_id()
    relay.claim(run_id)
    relay.progress(run_id, progress(1))
    token = viewer()["authorization"].removeprefix("Bearer ")
    argv = [sys.executable, "-m", "relay", "tail", str(CONVERSATION), run_id, "--url", relay.url]
    env = environment_with(RELAY_TOKEN=token, PYTHONUNBUFFERED="1")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env, text=True) as tail:
        assert tail.stdout is not None
        assert json.loads(tail.stdout.readline())["type"] == "initial"
        relay.progress(run_id, progress(2))
        assert json.loads(tail.stdout.readline())["data"]["details"] == {"number": 2}
        relay.finish(run_id)
        assert json.loads(tail.stdout.readline())["type"] == "complete"
    assert tail.returncode == 0


def test_tail_says_why_it_is_not_let_in(relay: Relay) -> None:
    done = command("relay", "tail", "1", "nothing", "--url", relay.url, "--token", "wrong")
    assert done.returncode == 1
    assert "token is missing, expired or not valid" in done.stderr
    assert "Traceback" not in done.stderr


def test_dead_letters_are_listed_shown_and_requeued(relay: Relay) -> None:
    client = redis.Redis.from_url(relay.redis_url)
    unheard_of = NewEvent("run-1", "unheard_of", '{"text":"π"}'.encode())
    client.xadd("relay:{0}:log", entry(unheard_of))
    client.close()

    def listed() -> list[str]:
        return command("persister", "dead-letters", "list", **stores(relay)).stdout.splitlines()

    line = wait_until(listed, "the dead letter")[-1]
    key, run_id, kind, reason = line.split("\t")
    assert (run_id, kind, reason) == ("run-1", "unheard_of", "its kind is not known to this version")
    shown = command("persister", "dead-letters", "show", key, **stores(relay))
    said = json.loads(shown.stdout)
    assert (said["run_id"], said["kind"], said["event"]) == ("run-1", "unheard_of", {"text": "π"})
    assert said["reason"] == reason
    requeued = command("persister", "dead-letters", "requeue", "--all", **stores(relay))
    assert (requeued.returncode, requeued.stdout) == (1, f"{key}\tthis version can not read it\n")
    gone = command("persister", "dead-letters", "requeue", "0/1-1", **stores(relay))
    assert gone.returncode == 1
    assert gone.stdout.startswith("0/1-1\tthere is no such dead letter; where it was stored before")
    unknown = command("persister", "dead-letters", "show", "0/1-1", **stores(relay))
    assert unknown.returncode == 1
    assert "dead-letters list" in unknown.stderr


def test_a_directory_is_for_one_at_a_time(relay: Relay, directory: Path) -> None:
    log = directory / "relay" / "valkey" / "valkey.log"
    before = log.read_text()
    done = command("relay", "up", "--port", "0", "--data-dir", str(directory / "relay"))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Another `relay up` (or `relay demo`) is using ")
    assert log.read_text() == before, "nothing was opened"
    assert relay.http.get("/livez").status_code == 200


def test_the_demo_counts_what_arrived(place: Path) -> None:
    done = command("relay", "demo", "--speed", "2000", "--data-dir", str(place))
    assert done.returncode == 0, done.stderr
    figures = dict(re.findall(r"│ (\S[^│]*?) +│ ([^│]*?) +│", done.stdout))
    counted = {name: figures[name] for name in ("sent", "seen live", "archived", "lost", "doubled")}
    assert counted == {"sent": "40", "seen live": "40", "archived": "40", "lost": "0", "doubled": "0"}
    assert "INFO" not in done.stderr, "what goes well is not logged into the middle of it"


def test_a_wrong_trace_or_setting_is_a_sentence_not_a_traceback() -> None:
    for words, env in (
        (["relay", "demo", "--trace", "no-such-file"], {}),
        (["relay", "serve"], {"RELAY_SHARDS": "99"}),
        (["persister", "run"], {"RELAY_PERSISTER_BATCH": "0"}),
    ):
        done = command(*words, **env)
        assert done.returncode == 1, words
        assert done.stderr.startswith("Error: ")
        assert "Traceback" not in done.stderr


def test_where_a_worker_can_not_start_the_service_ends_and_says_so(place: Path) -> None:
    script = "from relay import server; server.serve(server.listen('127.0.0.1', 0), workers=2)"
    tokens = place / "tokens.json"
    tokens.write_text("no tokens")  # which `relay serve` itself would have found
    env = environment_with(RELAY_WEBHOOK_TOKENS=str(tokens))
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, "RELAY_WEBHOOK_TOKENS names can not be used" in done.stderr) == (3, True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"RELAY_SHARDS": "99"}, "The settings are not valid"), ({"PYTHONPATH": "{place}"}, "ImportError")],
    ids=["setting", "package"],
)
def test_a_worker_that_has_no_application_ends_with_the_code_by_which_the_service_does(
    place: Path, wrong: dict[str, str], said: str
) -> None:
    """What changed since the service started: with any other code the worker would be replaced for ever."""
    (place / "standardwebhooks.py").touch()  # in place of the package that is installed
    env = environment_with(**{name: value.format(place=place) for name, value in wrong.items()})
    argv = [sys.executable, "-c", "from relay import server; server.worker()"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert f"A worker can not start, so the service ends: {said}" in done.stderr
    assert (done.returncode, "Traceback" in done.stderr) == (STARTUP_FAILURE, False)


def test_without_a_token_configured_webhooks_say_so(relay: Relay, place: Path) -> None:
    with web_worker(place / "log", **stores(relay)) as (url, _):
        answer = relay.http.post(f"{url}/research-pipeline/events/run-finished", json={})
        assert (answer.status_code, answer.json()["type"]) == (500, "urn:rp-relay:problem:misconfigured")
        assert "TELEMETRY_WEBHOOK_TOKEN" in answer.json()["detail"]
        assert relay.http.get(f"{url}/conversations/1/idea/research-run/r/events").status_code == 500
