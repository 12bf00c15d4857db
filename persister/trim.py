"""Keeps the shard log short: what is archived goes, after a while."""

from datetime import timedelta
from typing import Any

import redis

from relay.stream.keys import GROUP, ShardKeys, StreamId

INTERVAL = timedelta(seconds=5)


def limit(oldest_pending: StreamId | None, last_delivered: StreamId, retained_from: StreamId) -> StreamId:
    """The first entry that has to stay: the oldest one not acknowledged, or the oldest one in the retention
    window, whichever is older."""
    first_unarchived = oldest_pending or StreamId(last_delivered.ms, last_delivered.sequence + 1)
    return min(first_unarchived, retained_from)


def trim(client: redis.Redis, shard: int, retention: timedelta) -> int:
    """Removes archived entries that are older than `retention`; answers how many. The window is by the
    server's clock, which also gave the entries their ids."""
    log = ShardKeys(shard).log
    # In this order: what is delivered in between is then above the limit, not pending unseen below it.
    groups: Any = client.xinfo_groups(log)
    delivered = next(group["last-delivered-id"] for group in groups if group["name"] == GROUP.encode())
    pending: Any = client.xpending(log, GROUP)
    now: Any = client.time()
    stays = limit(
        StreamId.parse(pending["min"]) if pending["min"] else None,
        StreamId.parse(delivered),
        StreamId(int((now[0] - retention.total_seconds()) * 1000), 0),
    )
    removed: Any = client.xtrim(log, minid=str(stays), approximate=True)
    return int(removed)
