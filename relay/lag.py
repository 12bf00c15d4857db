"""How far everybody is behind in a shard: asked of Redis, when somebody wants to know.

Ages are by the server's clock, which also gave the entries their ids.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import redis.exceptions

from relay.link import SharedLink
from relay.stream.keys import GROUP, ShardKeys, StreamId


class Lag(NamedTuple):
    """One shard, as it is now."""

    entries: int
    """In the shard log, archived or not."""
    top: StreamId
    newest_age_s: float
    """Since the newest event; 0 where there is none."""
    pending: int
    """With a persister, and not archived yet."""
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
        if "no such key" in str(error) or "NOGROUP" in str(error):
            return None
        raise


async def _look(link: SharedLink, keys: ShardKeys) -> Lag:
    info = _pairs(await link.ask("XINFO", "STREAM", keys.log))
    pending = await link.ask("XPENDING", keys.log, GROUP)
    groups = [_pairs(group) for group in await link.ask("XINFO", "GROUPS", keys.log)]
    (group,) = [group for group in groups if group[b"name"] == GROUP.encode()]
    oldest = await _oldest(link, keys, pending, group[b"last-delivered-id"])
    seconds, micros = await link.ask("TIME")
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    top = StreamId.parse(info[b"last-generated-id"])
    return Lag(
        entries=info[b"length"],
        top=top,
        newest_age_s=_age_s(top, now_ms) if info[b"length"] else 0.0,
        pending=pending[0],
        waiting=group.get(b"lag"),
        oldest_age_s=_age_s(oldest, now_ms) if oldest else 0.0,
        dead_letters=await link.ask("XLEN", keys.dead_letters),
    )


async def _oldest(link: SharedLink, keys: ShardKeys, pending: Any, delivered: bytes) -> StreamId | None:
    """The oldest entry that is not archived: with a persister, or else with nobody yet."""
    if pending[0]:
        return StreamId.parse(pending[1])
    waiting = await link.ask("XRANGE", keys.log, f"({delivered.decode()}", "+", "COUNT", 1)
    return StreamId.parse(waiting[0][0]) if waiting else None


def _age_s(id: StreamId, now_ms: int) -> float:
    return max(0.0, (now_ms - id.ms) / 1000)


def _pairs(reply: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))
