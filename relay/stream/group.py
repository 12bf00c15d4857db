"""How far persisters have come in a shard log: for themselves, for tools, and for the figures of web workers.

The group has the position up to which entries were given to persisters. Which batches they are still at is
in the claims, a field for each: what is not in one of them, up to that position, is archived. (The group's
own list of pending entries is not used: it costs the server ten times as much for an entry as reading it.)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import redis
import redis.exceptions

from relay.stream.keys import GROUP, ShardKeys, StreamId


class Claim(NamedTuple):
    """A batch with a persister: the entries after `position`, up to `last`."""

    position: StreamId
    last: StreamId
    since_ms: int
    """When the persister got it, by the server's clock."""
    entries: int
    persister: str


def last_delivered(client: redis.Redis, log: str) -> StreamId | None:
    """The highest id that any persister was ever given; None where there is no log, or none has come to it
    yet. Raises redis errors."""
    try:
        groups: Any = client.xinfo_groups(log)
    except redis.exceptions.ResponseError as error:
        if "no such key" not in str(error):
            raise
        return None
    ours = (group["last-delivered-id"] for group in groups if group["name"] == GROUP.encode())
    return next(map(StreamId.parse, ours), None)


def claims(client: redis.Redis, keys: ShardKeys) -> list[Claim]:
    """What persisters are at, the oldest first. Raises redis errors."""
    found: Any = client.hgetall(keys.claims)
    return parsed(found)


def parsed(fields: Mapping[bytes, bytes]) -> list[Claim]:
    """The claims of a shard from the fields that stand for them, the oldest first."""
    found = []
    for position, words in fields.items():
        last, since_ms, entries, persister = words.split(b" ", 3)
        claim = Claim(
            StreamId.parse(position), StreamId.parse(last), int(since_ms), int(entries), persister.decode()
        )
        found.append(claim)
    return sorted(found)
