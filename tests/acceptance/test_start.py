"""What a process starts with, and what it refuses: weaknesses, each by its name, and foreign certificates."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import psycopg2
import pytest
import redis
from click.testing import CliRunner

from persister.settings import Settings as PersisterSettings
from relay.cli import main
from relay.embedded import free_port
from relay.errors import Insecure, Misconfigured
from relay.processes import Part, running
from relay.settings import Settings
from relay.startup import EVERY_CHECK, refuse_insecure, without_user
from tests.acceptance.certificates import Authority, tls_postgres
from tests.acceptance.running import (
    CONVERSATION,
    USER,
    a_persister,
    answers,
    environment_with,
    viewer,
    web_worker,
)
from tests.canaries import TOKEN
from tests.conftest import Servers
from tests.factories import new_run_id, progress
from tests.sql import sql
from tests.waiting import wait_until

PASSWORD = "a-password-of-these-tests"
SECRET = "f3a9c1d84be7250d6a1f98c3e7b04d52"


class Redis(NamedTuple):
    """Debian's, which speaks TLS as well; Valkey's wheel is built without."""

    url: str
    tls_url: str


@pytest.fixture(scope="module")
def authority(directory: Path) -> Authority:
    return Authority(directory / "authority")


@pytest.fixture(scope="module")
def other_authority(directory: Path) -> Authority:
    return Authority(directory / "other-authority")


@pytest.fixture(scope="module")
def debian_redis(directory: Path, authority: Authority) -> Iterator[Redis]:
    place = directory / "redis-tls"
    place.mkdir()
    port, tls_port = str(free_port()), str(free_port())
    argv = [
        "redis-server",
        "--port",
        port,
        "--tls-port",
        tls_port,
        "--bind",
        "127.0.0.1",
        "--dir",
        str(place),
    ]
    argv += ["--tls-cert-file", str(authority.certificate), "--tls-key-file", str(authority.key)]
    argv += ["--tls-auth-clients", "no", "--save", "", "--appendonly", "yes", "--requirepass", PASSWORD]
    made = Redis(
        f"redis://:{PASSWORD}@localhost:{port}/0",
        f"rediss://:{PASSWORD}@localhost:{tls_port}/0?ssl_ca_certs=",
    )

    def ready() -> bool:
        with contextlib.closing(redis.Redis.from_url(made.url)) as client:
            try:
                return bool(client.ping())
            except redis.exceptions.ConnectionError:
                return False

    with running(Part("redis-tls", argv, ready, log=place / "redis.log")):
        yield made


@pytest.fixture
def safe(
    monkeypatch: pytest.MonkeyPatch, debian_redis: Redis, session_servers: Servers
) -> pytest.MonkeyPatch:
    """An environment that nothing is wrong with, but that PostgreSQL is the embedded one."""
    monkeypatch.setenv("REDIS_URL", debian_redis.url)
    monkeypatch.setenv("DATABASE_URL", session_servers.database_url)
    monkeypatch.setenv("TELEMETRY_WEBHOOK_TOKEN", SECRET)
    monkeypatch.setenv("RELAY_VIEWER_SECRET", SECRET)
    monkeypatch.setenv("RELAY_ALLOW_INSECURE", "embedded")
    return monkeypatch


@contextlib.contextmanager
def configured(url: str, **settings: str) -> Iterator[None]:
    """The server at the URL with other settings for a while."""
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        before = {name: str(client.config_get(name)[name]) for name in settings}
        try:
            for name, value in settings.items():
                client.config_set(name, value)
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


@contextlib.contextmanager
def trusting(url: str) -> Iterator[None]:
    """The PostgreSQL at the URL lets everybody in for a while."""
    with sql(url) as cursor:
        cursor.execute("SHOW hba_file")
        ((name,),) = cursor.fetchall()
        hba = Path(name)
        before = hba.read_text()

        def write(text: str, *, trusts: bool) -> None:
            hba.write_text(text)
            cursor.execute("SELECT pg_reload_conf()")
            wait_until(lambda: lets_in_by_trust(url) is trusts, "PostgreSQL to have read it")

        write(f"host all all 127.0.0.1/32 trust\n{before}", trusts=True)
        try:
            yield
        finally:
            write(before, trusts=False)


def lets_in_by_trust(url: str) -> bool:
    parts = urlsplit(url)
    try:
        psycopg2.connect(host=parts.hostname, port=parts.port, user=parts.username, password="wrong").close()
    except psycopg2.OperationalError:
        return False
    return True


def refused() -> str:
    """What the web service is refused for, in the present environment."""
    with pytest.raises(Insecure) as caught:
        refuse_insecure(Settings())
    return str(caught.value)


@pytest.mark.usefixtures("safe")
def test_what_nothing_is_wrong_with_starts() -> None:
    assert refuse_insecure(Settings()) == []
    assert refuse_insecure(PersisterSettings()) == []


@pytest.mark.parametrize("name", ["TELEMETRY_WEBHOOK_TOKEN", "RELAY_VIEWER_SECRET"])
@pytest.mark.parametrize(
    "secret",
    [
        SECRET[:31],
        "0" * 64,
        "example-of-a-token-that-was-never-changed",
        "please-ChangeMe-before-you-use-this-one",
    ],
    ids=["short", "typed", "example", "changeme"],
)
def test_a_short_or_sample_secret_is_refused(safe: pytest.MonkeyPatch, name: str, secret: str) -> None:
    safe.setenv(name, secret)
    message = refused()
    assert message.startswith(name)
    assert "openssl rand -hex 32" in message
    assert secret not in message
    assert message.endswith("set RELAY_ALLOW_INSECURE=secret.")


@pytest.mark.parametrize(
    ("name", "before"),
    [("RELAY_RUN_TOKEN_SECRET", ""), ("RELAY_VIEWER_SECRET", ""), ("RELAY_WEBHOOK_SIGNING_SECRET", "whsec_")],
)
def test_each_of_several_secrets_is_looked_at(safe: pytest.MonkeyPatch, name: str, before: str) -> None:
    safe.setenv(name, f"{before}{SECRET} {before}{SECRET[::-1]}")
    assert refuse_insecure(Settings()) == []
    safe.setenv(name, f"{before}{SECRET} {before}{'0' * 32}")
    assert refused().startswith(f"{name} is a sample")


def test_a_long_secret_does_not_hide_a_short_one(safe: pytest.MonkeyPatch) -> None:
    for secrets in (f"{SECRET} old", f"old {SECRET}", " " * 40):
        safe.setenv("RELAY_RUN_TOKEN_SECRET", secrets)
        assert refused().startswith("RELAY_RUN_TOKEN_SECRET ")


def test_the_secrets_in_the_documents_are_refused(safe: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for name in ("TELEMETRY_WEBHOOK_TOKEN", "RELAY_VIEWER_SECRET"):
        safe.setenv(name, readme.partition(f"export {name}=")[2].partition("\n")[0])
        assert name in refused()
        safe.setenv(name, SECRET)


@pytest.mark.parametrize(
    ("check", "settings", "what_to_do"),
    [
        ("redis-file", {"appendonly": "no"}, "set `appendonly yes`"),
        (
            "redis-eviction",
            {"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"},
            "maxmemory-policy noeviction",
        ),
        ("redis-password", {"requirepass": ""}, "deploy/redis/users.acl"),
    ],
)
def test_a_redis_that_loses_events_or_lets_anyone_in_is_refused(
    safe: pytest.MonkeyPatch, debian_redis: Redis, check: str, settings: dict[str, str], what_to_do: str
) -> None:
    with configured(debian_redis.url, **settings):
        if check == "redis-password":
            safe.setenv("REDIS_URL", without_user(debian_redis.url))
        message = refused()
        assert what_to_do in message
        assert message.endswith(f"set RELAY_ALLOW_INSECURE={check}.")
        safe.setenv("RELAY_ALLOW_INSECURE", f"embedded, {check}")
        refuse_insecure(Settings())


def test_a_postgresql_that_trusts_everybody_is_refused(
    safe: pytest.MonkeyPatch, session_servers: Servers
) -> None:
    with trusting(session_servers.database_url):
        message = refused()
        assert "scram-sha-256" in message
        assert message.endswith("set RELAY_ALLOW_INSECURE=postgres-password.")
        safe.setenv("RELAY_ALLOW_INSECURE", "embedded,postgres-password")
        refuse_insecure(Settings())


def test_embedded_servers_are_refused(safe: pytest.MonkeyPatch, session_servers: Servers) -> None:
    safe.setenv("RELAY_ALLOW_INSECURE", "")
    safe.setenv("REDIS_URL", session_servers.redis_url)
    message = refused()
    assert "REDIS_URL is an embedded Valkey" in message
    assert "DATABASE_URL is an embedded PostgreSQL" in message


def test_all_that_is_wrong_is_said_at_once(safe: pytest.MonkeyPatch, debian_redis: Redis) -> None:
    safe.setenv("TELEMETRY_WEBHOOK_TOKEN", "short")
    with configured(debian_redis.url, appendonly="no"):
        assert refused().endswith("set RELAY_ALLOW_INSECURE=secret,redis-file.")


@pytest.mark.parametrize(
    "words", [["relay", "serve", "--port", "0"], ["persister", "run"]], ids=lambda w: w[0]
)
def test_the_programs_end_with_the_sentence_before_they_take_anything(
    safe: pytest.MonkeyPatch, debian_redis: Redis, words: list[str]
) -> None:
    with configured(debian_redis.url, appendonly="no"):
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Redis keeps no append-only file")
    assert "Traceback" not in done.stderr


def test_stores_that_are_away_do_not_keep_a_process_from_starting(safe: pytest.MonkeyPatch) -> None:
    safe.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    safe.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
    assert refuse_insecure(Settings()) == ["Redis is not there yet.", "PostgreSQL is not there yet."]


def test_a_store_that_comes_later_is_looked_at_then(
    place: Path, safe: pytest.MonkeyPatch, debian_redis: Redis
) -> None:
    port, two_port, redis_port = (str(free_port()) for _ in range(3))
    safe.setenv("REDIS_URL", f"redis://:{PASSWORD}@127.0.0.1:{redis_port}/0")

    def program(name: str, url: str | None, *words: str) -> Part:
        argv, log = [sys.executable, "-m", *words], place / f"{name}.log"
        return Part(
            name, argv, lambda: "not there yet" in log.read_text() and (url is None or answers(url)), log=log
        )

    parts = [
        program("web", f"http://127.0.0.1:{port}", "relay", "serve", "--port", port),
        program(
            "two", f"http://127.0.0.1:{two_port}", "relay", "serve", "--port", two_port, "--workers", "2"
        ),
        program("persister", None, "persister", "run"),
    ]
    argv = ["redis-server", "--port", redis_port, "--bind", "127.0.0.1", "--dir", str(place)]
    argv += ["--save", "", "--requirepass", PASSWORD]
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(running(part)) for part in parts]
        with running(Part("forgetful", argv, lambda: True, log=place / "redis.log")):
            assert [process.wait(20) for process in programs] == [1, 1, 1], "nobody asked for their end"
    for part in parts:
        assert part.log
        assert "Redis keeps no append-only file" in part.log.read_text()


def test_a_name_that_is_no_check_is_a_sentence(safe: pytest.MonkeyPatch) -> None:
    safe.setenv("RELAY_ALLOW_INSECURE", "everything")
    done = CliRunner().invoke(main, ["serve"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: The settings are not valid: RELAY_ALLOW_INSECURE: ")
    assert all(check in done.output for check in EVERY_CHECK)


def test_a_user_who_may_not_ask_is_told_to_be_allowed_to(
    safe: pytest.MonkeyPatch, debian_redis: Redis
) -> None:
    with contextlib.closing(redis.Redis.from_url(debian_redis.url)) as client:
        client.acl_setuser("blind", enabled=True, passwords=["+blind"], commands=["-@all", "+ping"])
        safe.setenv("REDIS_URL", debian_redis.url.replace(f":{PASSWORD}@", "blind:blind@"))
        assert "may not ask INFO" in refused()
        client.acl_deluser("blind")


@pytest.fixture(scope="module")
def tls_database_url(session_servers: Servers, authority: Authority) -> Iterator[str]:
    parts = urlsplit(session_servers.database_url)
    assert parts.port is not None
    with tls_postgres(parts.port, authority) as port:
        user = f"{parts.username}:{parts.password}"
        yield f"postgresql://{user}@localhost:{port}/postgres?sslmode=verify-full&sslrootcert="


def test_over_tls_with_the_right_authority_the_product_works(
    place: Path, debian_redis: Redis, tls_database_url: str, authority: Authority
) -> None:
    env = environment_with(
        RELAY_ALLOW_INSECURE="embedded",
        REDIS_URL=f"{debian_redis.tls_url}{authority.ca}",
        DATABASE_URL=f"{tls_database_url}{authority.ca}",
    )
    run_id = new_run_id()
    with (
        web_worker(place / "web.log", **env) as (url, _),
        a_persister(place / "persister.log", **env),
        httpx.Client(base_url=url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=20) as http,
    ):
        owner = {"conversation_id": CONVERSATION, "user_id": USER}
        http.put(f"/research-pipeline/runs/{run_id}", json=owner).raise_for_status()
        event = {"run_id": run_id, "event": progress(1)}
        http.post("/research-pipeline/events/paper-generation-progress", json=event).raise_for_status()
        history = f"/conversations/{CONVERSATION}/idea/research-run/{run_id}/paper-generation-progress"

        def archived() -> bool:
            answer = http.get(history, headers=viewer())
            return answer.status_code == 200 and bool(answer.json()["events"])

        wait_until(archived, "the event in the archive", 60)


def test_with_another_authority_nothing_starts(
    safe: pytest.MonkeyPatch, debian_redis: Redis, tls_database_url: str, other_authority: Authority
) -> None:
    safe.setenv("DATABASE_URL", f"{tls_database_url}{other_authority.ca}")
    with pytest.raises(Misconfigured, match=r"certificate of PostgreSQL .* `sslrootcert` in DATABASE_URL"):
        refuse_insecure(Settings())
    safe.setenv("REDIS_URL", f"{debian_redis.tls_url}{other_authority.ca}")
    done = subprocess.run(
        [sys.executable, "-m", "relay", "serve", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The certificate of Redis is not trusted.")
    assert PASSWORD not in done.stderr


@pytest.mark.parametrize("store", ["Redis", "PostgreSQL"])
def test_a_certificate_for_another_host_is_not_trusted(
    safe: pytest.MonkeyPatch, debian_redis: Redis, tls_database_url: str, authority: Authority, store: str
) -> None:
    safe.setenv("RELAY_ALLOW_INSECURE", "redis-password,embedded")
    if store == "Redis":
        url = f"{debian_redis.tls_url}{authority.ca}"
        safe.setenv("REDIS_URL", url.replace("@localhost:", "@127.0.0.1:"))
    else:
        url = f"{tls_database_url}{authority.ca}"
        safe.setenv("DATABASE_URL", url.replace("@localhost:", "@127.0.0.1:"))
    with pytest.raises(Misconfigured, match=f"certificate of {store}"):
        refuse_insecure(Settings())
