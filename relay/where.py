"""Where the primary of a shard is. Pure: what to ask of whom, and how the answer is read.

A plain URL says it once and for all. The others name some who know, and these are asked whenever a
connection is made, since another server may have taken over meanwhile:

* `redis+sentinel://host:port,host:port/service/0` is a primary that sentinels watch;
* `redis+cluster://host:port,host:port` is a cluster. A shard's keys have one hash tag, so they are in one
  slot, and a shard has one primary.

With `rediss` for TLS. User, password and options are those of the servers that hold the data, and of whoever
is asked; sentinels have a user and password of their own, as `sentinel_username` and `sentinel_password`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

import redis.exceptions
from redis.crc import key_slot

from relay.errors import Misconfigured
from relay.stream.keys import ShardKeys

_URL = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>sentinel|cluster)://((?P<user>[^@/]*)@)?(?P<hosts>[^@/?]+)"
    r"(/(?P<path>[^?]*))?(\?(?P<query>.*))?"
)
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:,\[\]]+)(:(?P<port>[0-9]{1,5}))?")
_PORTS = {"sentinel": 26379, "cluster": 6379}

ELSEWHERE = (
    redis.exceptions.AskError,  # and so MovedError
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.BusyLoadingError,
)
"""What a server answers that is not the primary (any more), or may not be. It has done nothing then."""

Address = tuple[str, int]
"""Host and port."""


class Where(NamedTuple):
    """How to find the primary of a shard."""

    url: str
    """A plain URL of it, but for the address."""
    knowing: Sequence[str]
    """Who can be asked, as plain URLs."""
    question: Sequence[str | int]
    read: Callable[[Any], Address | None]
    """The address in an answer; None where the one who was asked does not know."""


def where(url: str, shard: int) -> Where | None:
    """How to find the primary of a shard; None where the URL says it. Raises Misconfigured."""
    if "+" not in url.partition("://")[0]:
        return None
    found = _URL.fullmatch(url)
    hosts = [_HOST.fullmatch(host) for host in found["hosts"].split(",")] if found else []
    if found is None or None in hosts:
        raise _not_understood()
    scheme, kind, path = found["scheme"], found["kind"], (found["path"] or "").strip("/")
    addresses = [f"{host['host']}:{host['port'] or _PORTS[kind]}" for host in hosts if host]
    options = dict(parse_qsl(found["query"] or ""))
    asking = [options.pop(name, "") for name in ("sentinel_username", "sentinel_password")]
    user = f"{found['user']}@" if found["user"] else ""
    if kind == "cluster":
        if path not in ("", "0"):
            raise _not_understood()
        urls = [_plain(scheme, user, address, "", options) for address in addresses]
        slot = key_slot(ShardKeys(shard).log.encode())
        return Where(urls[0], urls, ("CLUSTER", "SLOTS"), lambda reply: _of_slot(reply, slot))
    service, _, database = path.partition("/")
    if not service:
        raise _not_understood()
    sentinel = f"{quote(asking[0], safe='')}:{quote(asking[1], safe='')}@" if any(asking) else ""
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    return Where(
        _plain(scheme, user, addresses[0], database, options),
        [_plain(scheme, sentinel, address, "", tls) for address in addresses],
        ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", unquote(service)),
        _of_sentinel,
    )


def spreads(url: str) -> bool:
    """Whether shards are on servers of their own."""
    return "+cluster://" in url


def _plain(scheme: str, user: str, address: str, database: str, options: Mapping[str, str]) -> str:
    return f"{scheme}://{user}{address}/{database}" + (f"?{urlencode(options)}" if options else "")


def _of_sentinel(reply: Any) -> Address | None:
    return (reply[0].decode(), int(reply[1])) if reply else None


def _of_slot(reply: Any, slot: int) -> Address | None:
    for first, last, primary, *_ in reply:
        if first <= slot <= last and primary[0]:  # a node that does not know its own name says nothing
            return primary[0].decode(), int(primary[1])
    return None


def _not_understood() -> Misconfigured:
    return Misconfigured(
        "REDIS_URL is not understood. Write redis://host:port/0, or unix:///path, for one server, "
        "redis+sentinel://host:port,host:port/service/0 for one that sentinels watch, or "
        "redis+cluster://host:port,host:port for a cluster; rediss for TLS."
    )
