"""The names of everything in Redis, and the arithmetic of ids. Pure: no I/O.

An event has one identity, written in two ways:

* in Redis, a stream id `<milliseconds>-<sequence>` within a shard;
* everywhere else, an integer below 2^53: 41 bits of milliseconds since 2025-01-01, 4 bits of
  shard, 8 bits of sequence.

Both order events the same way within a shard, and each gives back the other. In between lies the
*ordinal*, `milliseconds * 256 + sequence`, in which consecutive ids of a shard are consecutive
numbers: the server-side function counts in ordinals.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

EPOCH_MS = 1_735_689_600_000  # 2025-01-01T00:00:00Z
TIME_BITS, SHARD_BITS, SEQUENCE_BITS = 41, 4, 8
MAX_SHARDS = 1 << SHARD_BITS
SEQUENCES = 1 << SEQUENCE_BITS
TIMES, BELOW_TIME = 1 << TIME_BITS, SHARD_BITS + SEQUENCE_BITS
"""How many milliseconds there are, and how many bits are behind them."""
MAX_EVENT_ID = (TIMES << BELOW_TIME) - 1

LONGEST_NAME = 128
RUN_ID = rf"[A-Za-z0-9._:-]{{1,{LONGEST_NAME}}}"
"""What a run may be called. No braces: a name can not steer a key into another cluster slot."""

GROUP = "persister"
ERASURE = b"erasure "
"""What distinguishes, among what was erased, the note that something was from the ids."""

START = 0
"""The position before the first event of any run."""


class StreamId(NamedTuple):
    """A Redis stream id, ordered as Redis orders it."""

    ms: int
    sequence: int

    @classmethod
    def parse(cls, text: bytes | str) -> "StreamId":
        ms, _, sequence = (text.decode() if isinstance(text, bytes) else text).partition("-")
        return cls(int(ms), int(sequence))

    @classmethod
    def from_ordinal(cls, ordinal: int) -> "StreamId":
        return cls(ordinal >> SEQUENCE_BITS, ordinal & (SEQUENCES - 1))

    @property
    def ordinal(self) -> int:
        return (self.ms << SEQUENCE_BITS) | self.sequence

    def __str__(self) -> str:
        return f"{self.ms}-{self.sequence}"


def top_of(info: Sequence[Any]) -> StreamId:
    """The highest id that a stream ever held, from the server's answer to XINFO STREAM."""
    return StreamId.parse(info[info.index(b"last-generated-id") + 1])


def event_id(stream_id: tuple[int, int], shard: int) -> int:
    """The integer identity of the entry `stream_id` of `shard`.

    Raises ValueError for a stream id that the relay's function can not have made.
    """
    ms, sequence = stream_id
    since = ms - EPOCH_MS
    if not (0 <= since < TIMES and 0 <= sequence < SEQUENCES and 0 <= shard < MAX_SHARDS):
        raise ValueError("the stream id or the shard is outside of what an event id can hold")
    return (since << BELOW_TIME) | (shard << SEQUENCE_BITS) | sequence


def id_of(stream_id: bytes, shard: int) -> int:
    """The same, from a stream id as the server writes it."""
    ms, _, sequence = stream_id.partition(b"-")
    return event_id((int(ms), int(sequence)), shard)


def stream_id(event_id: int) -> StreamId:
    """The stream id of an event; its shard is `shard_of_event`."""
    return StreamId((event_id >> BELOW_TIME) + EPOCH_MS, event_id & (SEQUENCES - 1))


def ordinal_above(event_id: int) -> int:
    """An ordinal that no event up to `event_id`, of whichever shard, has reached."""
    return StreamId(stream_id(event_id).ms + 1, 0).ordinal


def shard_of_event(event_id: int) -> int:
    return (event_id >> SEQUENCE_BITS) & (MAX_SHARDS - 1)


def shard_of_run(run_id: str, shards: int) -> int:
    return crc32(run_id.encode()) % shards


def created_at(event_id: int) -> str:
    """When the event was accepted, in ISO 8601 with milliseconds: part of the id, so the same everywhere."""
    return _moment((event_id >> BELOW_TIME) + EPOCH_MS)


@lru_cache(maxsize=4096)
def _moment(ms: int) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{_second(seconds)}.{ms:03d}+00:00"


@lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


class ShardKeys:
    """The Redis keys of one shard. The hash tag keeps them in one cluster slot."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self._prefix = f"relay:{{{shard}}}:"
        self.log = self._prefix + "log"
        self.claims = self._prefix + "claims"
        """The batches that persisters are at: see claim in functions.lua."""
        self.dead_letters = self._prefix + "dead"
        self.once = self._prefix + "once:young", self._prefix + "once:old"
        """What idempotency keys were used for."""
        self.runs = self._prefix + "runs"
        """The run logs that there are, by when to look whether they still exist."""
        self.erased = self._prefix + "erased"
        """The ids of entries that were erased, for a while: nobody has lost them. And a note each time."""

    def run(self, run_id: str) -> str:
        """The run log."""
        return f"{self._prefix}run:{run_id}"

    def owner(self, run_id: str) -> str:
        """Whose run it is, as last seen in the database."""
        return f"{self._prefix}owner:{run_id}"

    def ticket(self, ticket: str) -> str:
        """Whom a stream ticket stands for. Hashed, so that who reads keys has no tickets."""
        return f"{self._prefix}ticket:{blake2b(ticket.encode(), digest_size=16).hexdigest()}"
