"""What Valkey and PostgreSQL hold, asked past the product."""

import contextlib
import json
from typing import Any

import redis

from relay.connect import persister_redis
from relay.stream.entry import FIELD, run_of
from relay.stream.group import claims
from relay.stream.keys import GROUP, ShardKeys, StreamId, event_id
from tests import sql
from tests.faults.clients import mark_of
from tests.faults.oracle import Seen
from tests.faults.servers import Valkey


class Stores:
    """The stores of a deployment, wherever they are by now."""

    def __init__(self, database_url: str) -> None:
        self.database_url = database_url
        self.valkey: Valkey
        self.shards = 1
        self.failover_url: str | None = None
        """Of several servers that stand in for one Valkey."""

    @property
    def redis_url(self) -> str:
        return self.failover_url or self.valkey.url

    def redis(self, shard: int = 0) -> redis.Redis:
        return persister_redis(self.redis_url, shard)

    def ask(self, *words: Any) -> Any:
        """One command to Valkey, on a connection of its own."""
        with contextlib.closing(self.redis()) as client:
            return client.execute_command(*words)  # type: ignore[no-untyped-call]

    def query(self, statement: str) -> list[Any]:
        return sql.query(self.database_url, statement)

    def archive(self) -> list[Seen]:
        """All rows, run by run."""
        rows = self.query("SELECT id, run_id, details FROM rp_paper_generation_events ORDER BY run_id, id")
        return [Seen(id, mark_of(run_id, details)) for id, run_id, details in rows]

    def archived(self) -> int:
        """How many rows there are: all that is asked again and again while a deployment settles."""
        ((count,),) = self.query("SELECT count(*) FROM rp_paper_generation_events")
        return int(count)

    def entries(self, shard: int, key: str) -> list[Seen]:
        """All of a log."""
        with contextlib.closing(self.redis(shard)) as client:
            entries: Any = client.xrange(key)
        return [seen(id, fields, shard) for id, fields in entries]

    def dead(self) -> list[Seen]:
        """All dead letters."""
        found = []
        for keys in map(ShardKeys, range(self.shards)):
            with contextlib.closing(self.redis(keys.shard)) as client:
                letters: Any = client.xrange(keys.dead_letters)
            found += [seen(fields[b"id"], fields, keys.shard) for _, fields in letters]
        return found

    def group(self) -> tuple[int, int]:
        """How many entries are pending, and not delivered, by our own count."""
        pending, behind = 0, 0
        for keys in map(ShardKeys, range(self.shards)):
            with contextlib.closing(self.redis(keys.shard)) as client:
                groups: Any = client.xinfo_groups(keys.log)
                group = next(group for group in groups if group["name"] == GROUP.encode())
                later: Any = client.xrange(keys.log, f"({group['last-delivered-id'].decode()}")
                pending += sum(claim.entries for claim in claims(client, keys))
            behind += len(later)
        return pending, behind


def seen(stream_id: bytes, fields: dict[bytes, bytes], shard: int = 0) -> Seen:
    """What an entry holds, whatever its seal says."""
    sealed = fields[FIELD]
    details = json.loads(sealed[sealed.index(b"{") : sealed.rindex(b"}") + 1])["details"]
    return Seen(event_id(StreamId.parse(stream_id), shard), mark_of(run_of(sealed), details))
