"""Keeps the shard log short: what is archived goes, after a while."""

from datetime import timedelta
from typing import Any

import redis

from relay.stream.group import claims, last_delivered
from relay.stream.keys import ShardKeys, StreamId

INTERVAL = timedelta(seconds=5)


def limit(archived: StreamId, retained_from: StreamId) -> StreamId:
    """The first entry that has to stay: the first one that is not archived, or the oldest one in the
    retention window, whichever is older. `archived`: up to where everything is."""
    return min(StreamId(archived.ms, archived.sequence + 1), retained_from)


def trim(client: redis.Redis, shard: int, retention: timedelta) -> int:
    """Removes archived entries that are older than `retention`; answers how many: none where no persister has
    come to the log yet. The window is by the server's clock, which also gave the entries their ids."""
    keys = ShardKeys(shard)
    # In this order: what is claimed in between is then above the limit, not unseen below it.
    delivered = last_delivered(client, keys.log)
    if delivered is None:
        return 0
    archived = min([delivered, *(claim.position for claim in claims(client, keys))])
    now: Any = client.time()
    retained_from = StreamId(int((now[0] - retention.total_seconds()) * 1000), 0)
    removed: Any = client.xtrim(keys.log, minid=str(limit(archived, retained_from)), approximate=True)
    return int(removed)
