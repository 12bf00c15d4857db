"""Why appends to a shard fail, for whoever runs the service: logged once, and known until one succeeds.

In words of ours only: those of a server may quote what it was sent.
"""

import logging
import time
from collections.abc import Mapping

import redis.exceptions

from relay.errors import DatabaseUnavailable, Misconfigured, NotStored, RelayError
from relay.reasons import why

log = logging.getLogger(__name__)

QUIET_S = 60.0
"""How long the same reason is not logged again, however often appends fail and succeed in turn."""

NOT_YET = "the event log was not opened yet"


class NoFunctions(NotStored):
    """The server has no functions, and its user may not load them."""


class Trouble:
    """What is wrong with the appends to a shard, by the last one that was tried."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._said: dict[str, float] = {}
        self.reason: str | None = NOT_YET
        """Why the last one failed; None where it did not."""
        self.ever_stored = False
        """Whether one succeeded since the process started."""

    def failed(self, error: BaseException) -> None:
        """An append failed."""
        reason, now = reason_of(error), time.monotonic()
        if reason != self.reason and now - self._said.get(reason, -QUIET_S) >= QUIET_S:
            self._said[reason] = now
            log.error("shard %d: events can not be stored: %s", self._shard, reason)
        self.reason = reason

    def tried(self) -> None:
        """One without an event succeeded, which does not show that writes would be let in, or be kept."""
        if not self.ever_stored or self.reason not in _BY_WRITES:
            self.over()

    def over(self) -> None:
        """One succeeded."""
        if self.reason in self._said:
            log.info("shard %d: events are stored again", self._shard)
        self.reason, self.ever_stored = None, True


def reason_of(error: BaseException) -> str:
    """What an append ended in, in our words: by the first that is known of the error and its causes."""
    cause: BaseException | None = error
    while cause is not None:
        if found := _known(cause):
            return found
        cause = cause.__cause__
    return _DEFAULT if isinstance(error, RelayError) else f"{type(error).__name__}, which nobody foresaw"


def _known(error: BaseException) -> str | None:
    if isinstance(error, (Misconfigured, DatabaseUnavailable)):
        return f"a log has to be made, above all ids that the archive has: {why(error)}"
    if isinstance(error, redis.exceptions.AuthenticationError):
        return why(error)
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, redis.exceptions.ResponseError):
        return next((reason for word, reason in _WORDS.items() if word in str(error)), _REFUSED)
    return None


_REFUSED = "Redis refuses to append, for a reason that only its own log may have"
_DEFAULT = "an append was not in as many files in time as RELAY_WAITAOF asks for"
"""The one that has no other cause."""

_REASONS: Mapping[type[BaseException], str] = {
    NoFunctions: "Redis lacks this version's functions, which this user may not load; run `relay migrate`",
    redis.exceptions.OutOfMemoryError: "the memory of Redis is full (`maxmemory`)",
    redis.exceptions.ReadOnlyError: "Redis is a replica, which only lets read",
    redis.exceptions.NoPermissionError: "the user of REDIS_URL may not append; see deploy/redis/users.acl",
    redis.exceptions.BusyLoadingError: "Redis is still reading its file",
    redis.exceptions.AskError: "the shard is at another node of the cluster",
    redis.exceptions.ClusterDownError: "the cluster has no primary for the shard",
    redis.exceptions.TimeoutError: "Redis did not answer in time",
    redis.exceptions.ConnectionError: "Redis does not answer",
    TimeoutError: "Redis did not answer in time",
    OSError: "Redis does not answer",
}
"""By class; the more special one of two comes first."""

_WORDS: Mapping[str, str] = {
    "MISCONF": "Redis can not write its file: its disk is full, or broken",
    "NOREPLICAS": "Redis has fewer replicas than `min-replicas-to-write` asks for",
    "ACL failure": "the user of REDIS_URL may not append; see deploy/redis/users.acl",
    "WRONGTYPE": "a key of the relay in Redis holds something else; see who else writes to `relay:*`",
}
"""By what the answer of a server has in it."""

_BY_WRITES = {
    _DEFAULT,
    _REASONS[redis.exceptions.NoPermissionError],
    _WORDS["ACL failure"],
    _WORDS["WRONGTYPE"],
}
"""What is found only where something is written."""
