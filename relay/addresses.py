"""Whether a connection could be made with what the stores' URLs say: looked at before one is, since drivers
quote in their errors what they do not understand, and so a password. Pure: nothing is opened."""

import re
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import redis.exceptions
from psycopg2.extensions import parse_dsn
from redis.connection import Connection, parse_url

from relay.errors import Misconfigured
from relay.where import where

_REDIS_SCHEMES = ("redis", "rediss", "unix")
_POSTGRES_SCHEMES = ("postgresql", "postgres")
_NOT_ENCODED = re.compile(r"%(?![0-9A-Fa-f]{2})")

_ENCODE = "Where the password holds what ends it, such as / ? # or @, write %2F %3F %23 or %40 for it."

_REDIS = (
    "REDIS_URL is not understood: {} Write redis://user:password@host:6379/0; rediss for TLS. "
    "Or unix://user:password@/path?db=0 for a socket."
)

_POSTGRES = "DATABASE_URL is not understood: {} Write postgresql://user:password@host:5432/database."


def check_redis(url: str) -> None:
    """Raises Misconfigured, which says what is wrong and not with what."""
    place = where(url, 0)
    for each in [place.url, *place.knowing] if place else [url]:
        if wrong := _wrong_for_redis(each):
            raise Misconfigured(_REDIS.format(wrong))


def check_postgres(url: str) -> None:
    """The same for what libpq takes: a URL, or `host=... dbname=...`."""
    if wrong := _wrong_for_postgres(url):
        raise Misconfigured(_POSTGRES.format(wrong))


def _wrong_for_redis(url: str) -> str | None:
    scheme, _, rest = url.partition("://")
    if scheme not in _REDIS_SCHEMES:
        return "it does not begin with redis:// or rediss://."
    try:
        parts = urlsplit(url)
        if scheme != "unix":
            parts.port  # noqa: B018 - raises where it is none
            if "@" in rest and "@" not in parts.netloc:
                return f"its host ends before the @. {_ENCODE}"
    except ValueError:
        return f"its port is no number up to 65535. {_ENCODE}"
    try:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        options.pop("max_connections", None)  # of the pool
        options.pop("connection_class", Connection)(**options)
    except (ValueError, TypeError, redis.exceptions.RedisError):
        return "after its ? is an option that the driver does not know, or a value that it can not have."
    return None


def _wrong_for_postgres(url: str) -> str | None:
    scheme, separator, _ = url.partition("://")
    is_url = bool(separator) and "=" not in scheme
    if is_url and scheme not in _POSTGRES_SCHEMES:
        return "it does not begin with postgresql://, and nothing between, such as the name of a driver."
    try:
        parts = parse_dsn(url)
    except (psycopg2.Error, ValueError):
        if is_url and _NOT_ENCODED.search(url):
            return "it holds a % that two hexadecimal digits do not follow. Write %25 for it."
        return f"libpq finds something in it that is neither its part nor an option. {_ENCODE}"
    if any(port and not _is_port(port) for port in parts.get("port", "").split(",")):
        return f"its port is no number from 1 to 65535. {_ENCODE}"
    if any("@" in host[1:] for host in parts.get("host", "").split(",")):  # a socket may begin with one
        return f"there is a second @ before its host. {_ENCODE}"
    return None


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text) <= 65535
