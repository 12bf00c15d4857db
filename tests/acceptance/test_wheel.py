"""What is released: the wheel, built from the sources without a network, is the product and nothing else."""

import compileall
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from tests.acceptance.running import Relay, a_persister, environment_with, web_worker
from tests.factories import new_run_id, progress
from tests.inventory import everything
from tests.sql import sql

ROOT = Path(__file__).parents[2]
PRODUCT = ("relay", "persister", "migrations")
DATA = {
    "relay/py.typed",
    "relay/stream/functions.lua",
    "relay/traces/full_run.ndjson",
    "relay/traces/paper_generation.ndjson",
    "persister/py.typed",
}
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"

# Runs a program without a file that it could write, without root, and without a way to either.
CONFINED = """
mount -o remount,ro,bind /
exec unshare --map-user=10001 --map-group=10001 setpriv --no-new-privs "$@"
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, from a copy of all that is beside the product: what a build leaves behind goes with it."""
    place = tmp_path_factory.mktemp("wheel")
    sources, unwanted = place / "sources", shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "build")
    shutil.copytree(ROOT, sources, ignore=unwanted)
    subprocess.run([sys.executable, "-c", BUILD, place], cwd=sources, check=True, capture_output=True)
    (wheel,) = place.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(built: Path) -> Path:
    """A directory to import the wheel's content from."""
    place = built.parent / "installed"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(place)
    compileall.compile_dir(place, quiet=1)
    return place


@pytest.fixture(scope="module")
def environment(installed: Path) -> dict[str, str]:
    """What has programs use the wheel, and not the sources that they are started beside."""
    return environment_with(PYTHONPATH=str(installed), PYTHONSAFEPATH="1", PYTHONDONTWRITEBYTECODE="1")


def test_the_wheel_holds_the_product_and_nothing_else(built: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for name in PRODUCT for path in (ROOT / name).rglob("*.py")}
    with zipfile.ZipFile(built) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == modules | DATA


def test_no_failpoint_and_no_clock_of_tests_is_in_the_wheel(built: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        text = b"".join(archive.read(name) for name in names).lower()
    for word in (b"failpoint", b"faketime", b"fakeredis", b"unittest", b"pytest"):
        assert word not in text, word


def test_the_wheel_answers_the_same_paths_as_the_sources(
    environment: dict[str, str], installed: Path
) -> None:
    argv = [sys.executable, str(ROOT / "tests/inventory.py")]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["package"] == str(installed / "relay/__init__.py")
    assert said["inventory"] == everything()


def test_the_wheel_names_the_two_programs(installed: Path) -> None:
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    named = set(entry_points.read_text().split("\n"))
    assert {"relay = relay.cli:main", "persister = persister.__main__:main"} < named


@pytest.fixture
def stores(relay: Relay) -> Iterator[dict[str, str]]:
    """An empty database in each of the running servers."""
    database, elsewhere = "of_the_wheel", f"{relay.redis_url.rpartition('/')[0]}/9"
    with sql(relay.database_url) as cursor:
        cursor.execute(f"CREATE DATABASE {database}")
    url = f"{relay.database_url.rpartition('/')[0]}/{database}"
    yield {"REDIS_URL": elsewhere, "DATABASE_URL": url}
    with closing(redis.Redis.from_url(elsewhere)) as client:
        client.flushdb()
    with sql(relay.database_url) as cursor:
        cursor.execute(f"DROP DATABASE {database} WITH (FORCE)")


@pytest.fixture
def confined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Has this process start its programs so that they have neither a file to write nor a right to use."""
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\n"
        f"exec unshare --map-root-user --mount sh -euc '{CONFINED}' confined {sys.executable} \"$@\"\n"
    )
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    return str(program)


def test_what_is_confined_can_not_write_and_has_no_rights(confined: str, place: Path) -> None:
    look = "import os, pathlib; print(os.getuid(), pathlib.Path('/proc/self/status').read_text())"
    said = subprocess.run([confined, "-c", look], capture_output=True, text=True, check=True).stdout
    assert said.startswith("10001 ")
    assert "CapEff:\t0000000000000000" in said
    assert "NoNewPrivs:\t1" in said
    for path in (ROOT / "a-file", place / "a-file"):
        write = subprocess.run(
            [confined, "-c", f"open({str(path)!r}, 'w')"], capture_output=True, check=False
        )
        assert b"Read-only file system" in write.stderr


@pytest.mark.usefixtures("confined")
def test_the_wheel_is_the_whole_product_without_root_rights_and_a_file_to_write(
    environment: dict[str, str], stores: dict[str, str], relay: Relay, place: Path
) -> None:
    env, run_id = {**environment, **stores}, new_run_id()
    subprocess.run([sys.executable, "-m", "relay", "migrate"], env=env, check=True, capture_output=True)
    with a_persister(place / "persister.log", **env), web_worker(place / "web.log", **env) as (url, process):
        made = Relay(process, {**relay.ready, "url": url})
        made.claim(run_id)
        made.progress(run_id, progress())
        assert [event["run_id"] for event in made.archived(run_id, 1)] == [run_id]
        made.http.close()
