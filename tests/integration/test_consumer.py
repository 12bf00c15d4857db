"""A persister's side of the consumer group, on a real server, with a connection that ends at a bad moment."""

import json
from typing import Any

import pytest
import redis

from persister.consumer import Consumer, Settlement
from persister.settings import Settings
from relay.stream.entry import NewEvent
from relay.stream.keys import GROUP, ShardKeys
from relay.stream.publish import Publisher
from tests.factories import progress

KEYS = ShardKeys(0)


class Cut(Consumer):
    """Its connection ends after the first command of each round trip."""

    def _exchange(self, *commands: bytes) -> list[Any]:
        super()._exchange(commands[0])
        raise redis.exceptions.ConnectionError("cut")


def events(run_id: str, count: int) -> list[NewEvent]:
    text = json.dumps(progress()).encode()
    return [NewEvent(run_id, "paper_generation_progress", text) for _ in range(count)]


async def test_a_run_log_gets_its_expiry_also_where_its_persister_was_cut_while_it_acknowledged(
    publisher: Publisher, client: redis.Redis
) -> None:
    await publisher.append(events("a", 3) + events("b", 2))
    cut, back = (kind(client, 0, Settings(persister_name="p"), lambda: 0) for kind in (Cut, Consumer))
    ids = [stream_id for stream_id, _ in cut.claim()]
    newest = {"a": ids[2].decode(), "b": ids[4].decode()}
    with pytest.raises(redis.exceptions.ConnectionError):
        cut.settle(Settlement(ids, newest))
    assert [client.pttl(KEYS.run(run_id)) for run_id in newest] == [-1, -1]
    again = [stream_id for stream_id, _ in back.claim()]
    assert again == [ids[2], ids[4]], "the newest of each run, and no more"
    back.settle(Settlement(again, newest))
    assert min(client.pttl(KEYS.run(run_id)) for run_id in newest) > 0
    pending: Any = client.xpending(KEYS.log, GROUP)
    assert pending["pending"] == 0
