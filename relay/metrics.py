"""The figures of a web worker, each named once.

They are plain numbers, which a scrape reads: so counting is an addition, without a lock or a library. Labels
have few values, known beforehand: a kind of event, a reason. There is none for a run, a user or a token.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from relay.events.registry import REGISTRY

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class Count:
    """How often something happened."""

    __slots__ = ("name", "text", "value")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.value = 0


class Counts(dict[str, int]):
    """How often, by the value of a label. What never happened is 0, so that a first time is an increase."""

    def __init__(self, name: str, text: str, label: str, values: Iterable[str]) -> None:
        super().__init__(dict.fromkeys(values, 0))
        self.name = name
        self.text = text
        self.label = label

    def __missing__(self, value: str) -> int:
        return 0


class Histogram:
    """How many of what size: the number in each bucket up to a bound, and beyond the last."""

    __slots__ = ("bounds", "counts", "name", "sum", "text")

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.text = text
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, size: float) -> None:
        self.counts[bisect_left(self.bounds, size)] += 1
        self.sum += size


EVENTS = Counts("relay_events", "Events stored, without repeats, by kind", "kind", REGISTRY)
REPEATS = Count("relay_repeats", "Requests whose idempotency key showed that they were stored before")
UNKNOWN_FIELDS = Counts(
    "relay_unknown_fields",
    "Events that came with fields that nobody knows, left out, by kind",
    "kind",
    REGISTRY,
)
REFUSALS = Counts("relay_refusals", "Requests that were answered with a problem, by its type", "problem", ())
APPEND_SECONDS = Histogram(
    "relay_append_seconds", "From a request's arrival at the log's queue until its events were kept", SECONDS
)
CALL_EVENTS = Histogram("relay_call_events", "Events in one call of the function that stores them", SIZES)
SHORTFALLS = Count("relay_waitaof_shortfalls", "Calls that too few files held in time, see RELAY_WAITAOF")
CONNECTIONS = Count("relay_redis_connections", "Connections made to Redis; more than a few are reconnects")

FRAMES = Count("relay_frames", "Events that were handed to viewers, whatever their number")
DELIVERIES = Count("relay_deliveries", "Events that were handed to viewers, times their number")
CONNECTS = Count("relay_viewer_connects", "Streams that began, each with a replay of what it missed")
CLOSES = Counts(
    "relay_viewer_closes",
    "Streams that ended: the run was over, the client went, the worker stopped, the client did not read, the "
    "token expired, what it showed is another's now, a store was away",
    "reason",
    ("ended", "gone", "drained", "slow", "expired", "forbidden", "unavailable"),
)
CATCH_UPS = Count("relay_catch_ups", "Times that a viewer fell behind the news and read the log again")

BACKGROUND_FAILURES = Counts(
    "relay_background_failures",
    "Times that work in the background ended by a mistake of ours, and was started again, by what it does",
    "work",
    ("tailer", "keep_alive", "recheck", "reread", "sweep"),
)

ALL: Sequence[Count | Counts | Histogram] = (
    EVENTS,
    REPEATS,
    UNKNOWN_FIELDS,
    REFUSALS,
    APPEND_SECONDS,
    CALL_EVENTS,
    SHORTFALLS,
    CONNECTIONS,
    FRAMES,
    DELIVERIES,
    CONNECTS,
    CLOSES,
    CATCH_UPS,
    BACKGROUND_FAILURES,
)
