"""The stores' URLs: what no connection could be made with is said at the start, without a word of it."""

import subprocess
import sys
from collections.abc import Sequence

import pytest
from click.testing import CliRunner
from pydantic import AliasChoices, ValidationError

from persister.settings import Settings as PersisterSettings
from relay.addresses import check_postgres, check_redis
from relay.cli import main
from relay.errors import Misconfigured
from relay.settings import PLAIN, Settings, explain

SECRET = "S3CRETPW"


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("foo://u:S3CRETPW@h", "begin with redis://"),
        ("S3CRETPW", "begin with redis://"),
        ("redis://u:S3CRETPW@h:port", "its port"),
        ("redis://u:S3CRETPW@h:99999", "its port"),
        ("redis://u:S3CRETPW/PW@h", "%2F"),
        ("redis://u:1/S3CRETPW@h", "%2F"),
        ("redis://u:1#S3CRETPW@h", "%23"),
        ("redis://u:[S3CRETPW@h", "its port"),
        ("redis://u:S3CRETPW@h/0?nosuch=1", "option"),
        ("redis://u:S3CRETPW@h/0?socket_timeout=S3CRETPW", "option"),
        ("rediss://u:S3CRETPW@h/0?ssl_cert_reqs=S3CRETPW", "option"),
        ("redis+sentinel://u:S3CRETPW@h:99999/main", "its port"),
        ("redis+cluster://u:S3CRETPW@h:1?nosuch=1", "option"),
    ],
)
def test_what_redis_can_not_be_reached_by_is_said_without_what_it_was(url: str, what: str) -> None:
    with pytest.raises(Misconfigured) as said:
        check_redis(url)
    assert str(said.value).startswith("REDIS_URL is not understood")
    assert what in str(said.value)
    assert SECRET not in str(said.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:1/0?socket_timeout=3&max_connections=4",
        "redis://u:a@b@h/0",
        "redis://u:p%2F@[::1]:7/0",
        "rediss://u:p@h/0?ssl_ca_certs=/etc/a@b.pem",
        "unix:///run/redis.sock",
        "unix://u:p@/run/a@b.sock?db=1",
        "redis+sentinel://u:p@a,b:2/main/3?sentinel_password=s%2Fs",
        "rediss+cluster://u:p@a:1,[::1]:2,c?ssl_ca_certs=ca.pem",
    ],
)
def test_what_redis_can_be_reached_by_is_taken(url: str) -> None:
    assert Settings(redis_url=url).redis_url.get_secret_value() == url


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("postgresql+psycopg2://u:S3CRETPW@h/db", "postgresql://"),
        ("mysql://u:S3CRETPW@h/db", "postgresql://"),
        ("postgresql://u:S3CRET%ZZPW@h/db", "%25"),
        ("postgresql://u:S3CRETPW@h:port/db", "its port"),
        ("postgresql://u:S3CRETPW@h:99999/db", "its port"),
        ("postgresql://u:S3CRETPW/1@h/db", "%2F"),
        ("postgresql://u:1@S3CRETPW@h/db", "%40"),
        ("postgresql://u:S3CRETPW@h/db?nosuch=1", "option"),
        ("host=h password='S3CRETPW", "option"),
        ("S3CRETPW", "option"),
        ("postgresql://u:S3CRETPW\udcff@h/db", "option"),
    ],
)
def test_what_postgresql_can_not_be_reached_by_is_said_without_what_it_was(url: str, what: str) -> None:
    with pytest.raises(Misconfigured) as said:
        check_postgres(url)
    assert str(said.value).startswith("DATABASE_URL is not understood")
    assert what in str(said.value)
    assert "S3CRET" not in str(said.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "postgres://u:p@h/db",
        "postgresql://u:p%25@h1:1,[::1]:2/db?sslmode=verify-full&sslrootcert=/etc/a@b.pem",
        "postgresql:///db?host=/var/run/postgresql",
        "postgresql://%2Fvar%2Frun/db",
        "host=/tmp dbname=db password='a b://c@d'",
        "host=@abstract",
        "service=mine",
    ],
)
def test_what_libpq_takes_is_taken(url: str) -> None:
    assert PersisterSettings(database_url=url).database_url.get_secret_value() == url


def test_the_error_of_the_settings_does_not_say_it_either() -> None:
    with pytest.raises(ValidationError) as said:
        Settings(redis_url=f"foo://{SECRET}", database_url=f"foo://{SECRET}")
    assert SECRET not in str(said.value)
    told = explain(said.value)
    assert told.startswith("The settings are not valid: REDIS_URL is not understood: it does not begin with")
    assert "; DATABASE_URL is not understood: it does not begin with" in told


def test_every_variable_without_the_prefix_is_known_as_such() -> None:
    fields = (Settings.model_fields | PersisterSettings.model_fields).values()
    aliases = [field.validation_alias for field in fields if field.validation_alias]
    assert {alias.choices[-1] for alias in aliases if isinstance(alias, AliasChoices)} == set(PLAIN)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RELAY_OPS_LISTEN", "127.0.0.1", "RELAY_OPS_LISTEN: It has to be `host:port`"),
        ("RELAY_WAITAOF", "2", "RELAY_WAITAOF: It has to be `local,replicas`"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "host:4318", "OTEL_EXPORTER_OTLP_ENDPOINT: It has to be http://"),
        ("RELAY_ALLOW_INSECURE", "x,y", "RELAY_ALLOW_INSECURE: Input should be 'secret', 'redis-password'"),
        ("RELAY_EVENT_BYTES", "much", "RELAY_EVENT_BYTES: Input should be a valid integer"),
        ("RELAY_VIEWER_JWKS", "http://keys.example", "RELAY_VIEWER_JWKS: Keys have to come by https"),
    ],
)
def test_a_mistake_is_told_by_the_name_of_its_variable_and_what_that_looks_like(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    told = explain(caught.value)
    assert told.startswith(f"The settings are not valid: {said}")
    assert ";" not in told
    assert "^" not in told


@pytest.mark.parametrize(
    "command", [["serve", "--port", "0"], ["migrate"], ["erase", "run-1"], ["token", "--user", "1"]]
)
@pytest.mark.parametrize("name", ["REDIS_URL", "DATABASE_URL"])
def test_every_command_ends_with_the_sentence(command: Sequence[str], name: str) -> None:
    done = CliRunner(env={name: f"foo://u:{SECRET}@h"}).invoke(main, command)
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: The settings are not valid: {name} is not understood")
    assert SECRET not in done.output


@pytest.mark.parametrize("program", ["relay.cli", "persister.__main__"])
def test_what_a_typed_command_was_not_prepared_for_is_names_and_places(program: str) -> None:
    fails = f"""
import sys
from {program} import main
@main.command()
def fail():
    raise ValueError({SECRET!r})
sys.argv = ["program", "fail"]
main()
"""
    done = subprocess.run([sys.executable, "-c", fails], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nobody was prepared for this | ValueError at" in done.stderr
    assert SECRET not in done.stderr
    assert "Traceback" not in done.stderr
