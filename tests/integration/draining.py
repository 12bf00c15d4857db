"""A persister that is stepped through a log, and what it still has in its hands."""

import redis

from persister.loop import Loop
from relay.stream.group import claims
from relay.stream.keys import ShardKeys

KEYS = ShardKeys(0)


def drain(loop: Loop) -> int:
    """Steps until nothing is pending and nothing new; answers how many entries there were."""
    total = 0
    while count := loop.step():
        total += count
    return total


def pending(client: redis.Redis) -> int:
    return sum(claim.entries for claim in claims(client, KEYS))
