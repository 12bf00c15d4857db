"""Keeps the shard log short, and its group: what is archived goes, after a while, and so do names that are
not heard of any more."""

import logging
from datetime import timedelta
from typing import Any

import redis
import redis.exceptions

from relay.stream import functions
from relay.stream.group import last_delivered
from relay.stream.keys import GROUP, ShardKeys, StreamId

log = logging.getLogger(__name__)

INTERVAL = timedelta(seconds=5)

FORGET_INTERVAL = timedelta(minutes=10)

UNHEARD_OF = timedelta(hours=1)
"""A persister that is alive reads every second, however little there is to do."""


def limit(oldest_pending: StreamId | None, last_delivered: StreamId, retained_from: StreamId) -> StreamId:
    """The first entry that has to stay: the oldest one not acknowledged, or the oldest one in the retention
    window, whichever is older."""
    first_unarchived = oldest_pending or StreamId(last_delivered.ms, last_delivered.sequence + 1)
    return min(first_unarchived, retained_from)


def trim(client: redis.Redis, shard: int, retention: timedelta) -> int:
    """Removes archived entries that are older than `retention`; answers how many: none where no persister has
    come to the log yet. The window is by the server's clock, which also gave the entries their ids."""
    log = ShardKeys(shard).log
    # In this order: what is delivered in between is then above the limit, not pending unseen below it.
    delivered = last_delivered(client, log)
    if delivered is None:
        return 0
    pending: Any = client.xpending(log, GROUP)
    now: Any = client.time()
    stays = limit(
        StreamId.parse(pending["min"]) if pending["min"] else None,
        delivered,
        StreamId(int((now[0] - retention.total_seconds()) * 1000), 0),
    )
    removed: Any = client.xtrim(log, minid=str(stays), approximate=True)
    return int(removed)


def forget(client: redis.Redis, shard: int, unheard_of: timedelta) -> int:
    """Removes names from the group that no persister has used for so long, and that hold nothing; answers how
    many. Where the functions are not loaded, or persisters have not come to the log: none, this time. Where
    the server refuses, mostly since the user may not, the log says so and no more: nothing depends on it."""
    idle_ms = int(unheard_of.total_seconds() * 1000)
    try:
        removed: Any = client.fcall(functions.FORGET, 1, ShardKeys(shard).log, GROUP, str(idle_ms))
    except redis.exceptions.ResponseError as error:
        if not any(reason in str(error) for reason in (functions.MISSING, "NOGROUP", "no such key")):
            words = (
                "names that no persister uses stay in the group (%s); its user needs what users.acl gives it"
            )
            log.warning(words, type(error).__name__)
        return 0
    return int(removed)
