"""What could not be archived: to be looked at, and stored after the cause is gone."""

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
    `raw` is what the log had, with its trace; `shown` what it says, for people, or the fields as they are."""

    key: str
    shard: int
    stream_id: bytes
    reason: str
    entry: Entry | None
    shown: dict[str, Any]
    raw: Sequence[bytes]


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
    shown = _read(entry) if entry else _as_they_are(parts)
    return DeadLetter(f"{shard}/{id.decode()}", shard, stream_id, reason, entry, shown, raw)


def _read(entry: Entry) -> dict[str, Any]:
    """What it says; its text where that is no JSON, which may be why PostgreSQL refused it."""
    try:
        event = from_json(entry.text)
    except ValueError:
        event = entry.text.decode(errors="replace")
    return {"run_id": entry.run_id, "kind": entry.kind, "event": event}


def _as_they_are(fields: dict[bytes, bytes]) -> dict[str, Any]:
    if FIELD in fields:
        fields = {**fields, FIELD: without_trace(fields[FIELD])}
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
