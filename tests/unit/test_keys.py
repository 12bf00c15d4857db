"""Ids: one identity in two writings, in one order."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.stream import keys
from relay.stream.keys import EPOCH_MS, MAX_EVENT_ID, SEQUENCES, StreamId

stream_ids = st.builds(StreamId, st.integers(EPOCH_MS, EPOCH_MS + 2**41 - 1), st.integers(0, SEQUENCES - 1))
shards = st.integers(0, keys.MAX_SHARDS - 1)


@given(stream_ids, shards)
def test_an_event_id_gives_its_stream_id_and_shard_back(stream_id: StreamId, shard: int) -> None:
    id = keys.event_id(stream_id, shard)
    assert (keys.stream_id(id), keys.shard_of_event(id)) == (stream_id, shard)


@given(st.integers(0, MAX_EVENT_ID))
def test_every_event_id_comes_from_one_stream_id(id: int) -> None:
    assert keys.event_id(keys.stream_id(id), keys.shard_of_event(id)) == id


@given(stream_ids, stream_ids, shards)
def test_event_ids_order_a_shard_as_redis_does(one: StreamId, other: StreamId, shard: int) -> None:
    assert (keys.event_id(one, shard) < keys.event_id(other, shard)) == (one < other)


@given(stream_ids, shards)
def test_browsers_can_hold_an_event_id(stream_id: StreamId, shard: int) -> None:
    id = keys.event_id(stream_id, shard)
    assert int(float(id)) == id < 2**53


@given(stream_ids)
def test_a_stream_id_survives_its_text_and_its_ordinal(stream_id: StreamId) -> None:
    assert StreamId.parse(str(stream_id)) == StreamId.parse(str(stream_id).encode()) == stream_id
    assert StreamId.from_ordinal(stream_id.ordinal) == stream_id


@given(st.integers(EPOCH_MS * SEQUENCES, (EPOCH_MS + 2**41 - 1) * SEQUENCES), shards)
def test_consecutive_ordinals_are_consecutive_events(ordinal: int, shard: int) -> None:
    first = keys.event_id(StreamId.from_ordinal(ordinal), shard)
    second = keys.event_id(StreamId.from_ordinal(ordinal + 1), shard)
    assert first < second


@given(stream_ids, shards, shards)
def test_nothing_reached_the_ordinal_above_an_event(stream_id: StreamId, shard: int, other: int) -> None:
    id = keys.event_id(stream_id, shard)
    above = StreamId.from_ordinal(keys.ordinal_above(id))
    assert keys.event_id(above, other) > id if above.ms < EPOCH_MS + 2**41 else True


@given(stream_ids, shards)
def test_created_at_is_the_millisecond_of_the_id(stream_id: StreamId, shard: int) -> None:
    created_at = datetime.fromisoformat(keys.created_at(keys.event_id(stream_id, shard)))
    epoch = datetime.fromtimestamp(0, UTC)
    assert round((created_at - epoch).total_seconds() * 1000) == stream_id.ms


@pytest.mark.parametrize(
    ("stream_id", "shard"),
    [
        (StreamId(EPOCH_MS - 1, 0), 0),
        (StreamId(EPOCH_MS + 2**41, 0), 0),
        (StreamId(EPOCH_MS, SEQUENCES), 0),
        (StreamId(EPOCH_MS, 0), keys.MAX_SHARDS),
    ],
)
def test_what_does_not_fit_into_an_id_is_refused(stream_id: StreamId, shard: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        keys.event_id(stream_id, shard)


def test_all_keys_of_a_shard_share_its_hash_tag() -> None:
    names = keys.ShardKeys(3)
    made = [
        names.log,
        names.dead_letters,
        names.runs,
        names.run("r"),
        *names.once,
        names.owner("r"),
    ]
    assert len(set(made)) == len(made)
    assert all(name.startswith("relay:{3}:") and name.count("{") == 1 for name in made)
