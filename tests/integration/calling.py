"""The server-side functions that write the logs, called with plain words."""

from typing import Any

import redis

from relay.stream import functions
from relay.stream.keys import EPOCH_MS, GROUP, ShardKeys, StreamId

KEYS = ShardKeys(0)
FLOOR = StreamId(EPOCH_MS, 0).ordinal
REMEMBER_MS = 60_000


def open_log(store: redis.Redis, floor: int = FLOOR) -> int:
    answer: Any = store.fcall(functions.OPEN, 1, KEYS.log, GROUP, floor)
    return int(answer)


Group = tuple[str | None, str, list[tuple[str, str]]]
"""(idempotency key, digest, [(run, text)])."""


def append(store: redis.Redis, *groups: Group, quota: int = 1000, known_keys: int = 1000) -> list[int]:
    runs = list(dict.fromkeys(run for _, _, events in groups for run, _ in events))
    args: list[Any] = [REMEMBER_MS, FLOOR, quota, known_keys]
    for key, digest, events in groups:
        args += [key or "", digest, len(events)]
        for run, text in events:
            args += [runs.index(run) + 1, text]
    keys = [KEYS.log, *map(KEYS.run, runs), *KEYS.once, KEYS.runs]
    answer: Any = store.fcall(functions.APPEND, len(keys), *keys, *args)
    return list(answer)


def entries(store: redis.Redis, key: str) -> list[tuple[int, str]]:
    """A stream as (ordinal, entry)."""
    found: Any = store.xrange(key)
    return [(StreamId.parse(id).ordinal, fields[b"e"].decode()) for id, fields in found]


def everything(store: redis.Redis) -> dict[bytes, bytes | None]:
    """All that the server holds, to see that nothing changed."""
    found: Any = store.keys()
    return {key: store.dump(key) for key in sorted(found)}
