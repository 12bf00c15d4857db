"""How far persisters have come in a shard log, for tools and for persisters themselves."""

from typing import Any

import redis
import redis.exceptions

from relay.stream.keys import GROUP, StreamId


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
