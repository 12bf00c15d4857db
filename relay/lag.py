"""How far everybody is behind in a shard: asked of Redis, when somebody wants to know.

Ages are by the server's clock, which also gave the entries their ids.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import redis.exceptions

from relay.link import SharedLink
from relay.stream.group import parsed
from relay.stream.keys import GROUP, ShardKeys, StreamId


class Lag(NamedTuple):
    """One shard, as it is now."""

    entries: int
    """In the shard log, archived or not."""
    top: StreamId
    newest_age_s: float
    """Since the newest event; 0 where there is none."""
    pending: int
    """With a persister, and not settled yet."""
    waiting: int | None
    """With no persister yet; None where the server does not know."""
    oldest_age_s: float
    """Of the oldest event that is not archived; 0 where all are."""
    dead_letters: int


async def look(link: SharedLink, shard: int) -> Lag | None:
    """The shard's state; None where it has no log yet. Raises a redis error."""
    try:
        return await _look(link, ShardKeys(shard))
    except redis.exceptions.ResponseError as error:
        if "no such key" in str(error):
            return None
        raise


async def _look(link: SharedLink, keys: ShardKeys) -> Lag | None:
    info = _pairs(await link.ask("XINFO", "STREAM", keys.log))
    groups = [_pairs(group) for group in await link.ask("XINFO", "GROUPS", keys.log)]
    group = next((group for group in groups if group[b"name"] == GROUP.encode()), None)
    if group is None:
        return None
    claims = parsed(_pairs(await link.ask("HGETALL", keys.claims)))
    archived = min([StreamId.parse(group[b"last-delivered-id"]), *(claim.position for claim in claims)])
    oldest = await link.ask("XRANGE", keys.log, f"({archived}", "+", "COUNT", 1)
    seconds, micros = await link.ask("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    top = StreamId.parse(info[b"last-generated-id"])
    return Lag(
        entries=info[b"length"],
        top=top,
        newest_age_s=_age_s(top, now_ms) if info[b"length"] else 0.0,
        pending=sum(claim.entries for claim in claims),
        waiting=group.get(b"lag"),
        oldest_age_s=_age_s(StreamId.parse(oldest[0][0]), now_ms) if oldest else 0.0,
        dead_letters=await link.ask("XLEN", keys.dead_letters),
    )


def _age_s(id: StreamId, now_ms: int) -> float:
    return max(0.0, (now_ms - id.ms) / 1000)


def _pairs(reply: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))
