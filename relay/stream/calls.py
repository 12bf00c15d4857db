"""The call of the append function, as it goes over the wire. Pure: no I/O.

Packed here and not word by word by the driver: what comes again from call to call is in bytes already, also
what the entries of a run and kind begin with, and that leaves a look-up and a format for each event.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

from relay.link import bulk
from relay.stream import functions
from relay.stream.entry import CLOSE, SEAL_BYTES, NewEvent, head_of, names_in, untraced
from relay.stream.keys import ShardKeys

word = lru_cache(maxsize=4096)(bulk)
"""A word that comes again: a count, the place of a run."""

_NO_KEY = bulk(b"") + bulk(b"")


class AppendCall:
    """Calls for one shard. Their words are described in functions.lua."""

    def __init__(self, keys: ShardKeys, remember_ms: int, live_runs: int, known_keys: int) -> None:
        self._function = bulk("FCALL") + bulk(functions.APPEND)
        self._log = bulk(keys.log)
        self._tables = b"".join(map(bulk, (*keys.once, keys.runs)))
        self._run_log = lru_cache(maxsize=4096)(lambda run_id: bulk(keys.run(run_id)))
        self._remember_ms = bulk(remember_ms)
        self._bounds = bulk(live_runs) + bulk(known_keys)

    def packed(self, groups: Iterable[tuple[Sequence[NewEvent], str | None]], highest: int) -> bytes:
        """A call that appends groups of events, each with its idempotency key; `highest` is the highest
        ordinal that is known to be taken."""
        runs: dict[str, int] = {}
        names: dict[tuple[str, str], tuple[bytes, bytes, int]] = {}
        words: list[bytes] = []
        count = 11
        for events, key in groups:
            if key is None:
                words.append(_NO_KEY)
            else:
                words.append(bulk(once_name(key)) + bulk(_digest(events)))
            words.append(word(len(events)))
            count += 3 + 2 * len(events)
            for run_id, kind, text in events:
                known = names.get((run_id, kind))
                if known is None:
                    place = runs.setdefault(run_id, len(runs) + 1)
                    known = names[run_id, kind] = word(place), *_head(run_id, kind)
                run, head, seal = known
                size = len(head) + len(text) + SEAL_BYTES
                words.append(b"%b$%d\r\n%b%b%08x\r\n" % (run, size, head, text, crc32(text, seal)))
        return b"".join(
            [
                b"*%d\r\n" % (count + len(runs)),
                self._function,
                word(len(runs) + 4),
                self._log,
                *map(self._run_log, runs),
                self._tables,
                self._remember_ms,
                bulk(highest),
                self._bounds,
                *words,
            ]
        )


def once_name(idempotency_key: str) -> bytes:
    """By what the key is known in Redis. Hashed: it is input of any length and alphabet."""
    return blake2b(idempotency_key.encode(), digest_size=16).digest()


@lru_cache(maxsize=4096)
def _head(run_id: str, kind: str) -> tuple[bytes, int]:
    """What the entries begin with, and where the checksum of a text starts."""
    head = head_of(run_id, kind)
    return head, names_in(head).seal


def _digest(events: Sequence[NewEvent]) -> str:
    digest = blake2b(digest_size=16)
    for run_id, kind, text in events:
        # What comes again comes with a trace of its own.
        bare = text if text[-1] == CLOSE else untraced(text)
        run, name = run_id.encode(), kind.encode()
        sizes = len(run).to_bytes(4), len(name).to_bytes(4), len(bare).to_bytes(4)
        digest.update(b"%b%b%b%b%b%b" % (sizes[0], run, sizes[1], name, sizes[2], bare))
    return digest.hexdigest()
