"""What could not be archived: to be looked at, and stored after the cause is gone."""

import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import redis
from pydantic_core import from_json

from persister.store import Store
from relay.events.registry import REGISTRY
from relay.stream.entry import FIELD, Entry, MalformedEntry, decode, without_trace
from relay.stream.keys import ShardKeys

if TYPE_CHECKING:
    from relay.spans import Spans

PAGE = 500


class DeadLetter(NamedTuple):
    """An entry that was not archived. `entry` is None where it is not one that this version can read.
    `raw` is what the log had, with its trace: fields and values in turn."""

    key: str
    shard: int
    stream_id: bytes
    reason: str
    entry: Entry | None
    raw: Sequence[bytes]

    def shown(self) -> dict[str, Any]:
        """What it says, for people, without its trace; where it can not be read, its fields as they are."""
        if self.entry is not None:
            return {"run_id": self.entry.run_id, "kind": self.entry.kind, "event": _read(self.entry.text)}
        fields = dict(zip(self.raw[::2], self.raw[1::2], strict=True))
        if FIELD in fields:
            fields[FIELD] = without_trace(fields[FIELD])
        return {_text(name): _text(value) for name, value in fields.items()}


class DeadLetters:
    """The dead letters of all shards. A key names one: `<shard>/<id>`."""

    def __init__(self, clients: Sequence[redis.Redis]) -> None:
        """`clients`: of each shard."""
        self._clients = clients
        self._keys = [ShardKeys(shard) for shard in range(len(clients))]

    def __iter__(self) -> Iterator[DeadLetter]:
        for keys in self._keys:
            start = "-"
            while page := self._page(keys, start):
                for id, fields in page:
                    yield _dead_letter(keys.shard, id, fields)
                start = f"({page[-1][0].decode()}"

    def _page(self, keys: ShardKeys, start: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        page: Any = self._clients[keys.shard].xrange(keys.dead_letters, start, "+", PAGE)
        return list(page)

    def get(self, key: str) -> DeadLetter | None:
        return next((letter for letter in self if letter.key == key), None)

    def requeue(self, letter: DeadLetter, store: Store, spans: "Spans | None" = None) -> str | None:
        """Archives it under its own id and as part of its trace, and removes it. Answers why not, where it
        still can not be stored. Raises DatabaseUnavailable."""
        if letter.entry is None or letter.entry.kind not in REGISTRY:
            return "this version can not read it"
        began = time.monotonic()
        rejected = store.insert([letter.entry])
        if spans:
            spans.archived([(letter.raw, not rejected)], time.monotonic() - began, time.time_ns())
        if rejected:
            return rejected[0].reason
        self._clients[letter.shard].xdel(self._keys[letter.shard].dead_letters, letter.key.partition("/")[2])
        return None


def _dead_letter(shard: int, id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    parts = dict(fields)
    stream_id, reason = parts.pop(b"id"), parts.pop(b"reason").decode()
    raw = [part for pair in parts.items() for part in pair]
    try:
        entry = decode(stream_id, raw, shard)
    except MalformedEntry:
        entry = None
    return DeadLetter(f"{shard}/{id.decode()}", shard, stream_id, reason, entry, raw)


def _read(text: bytes) -> Any:
    """The event, or its text where that is no JSON, or would be another number: why it was refused, maybe."""
    try:
        event = from_json(text)
        json.dumps(event, allow_nan=False)
    except ValueError:
        return _text(text)
    return event


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
