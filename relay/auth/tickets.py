"""Stream tickets, for pages that can send neither a header nor a cookie with an `EventSource`.

A ticket opens one stream, within half a minute, so that what may end up in the log of a proxy is worth
nothing any more. It is kept in Redis, under its digest, so that any worker can redeem it.
"""

import secrets
from typing import Literal

import redis.exceptions
from pydantic import TypeAdapter

from relay.auth.viewers import Caller
from relay.errors import Unauthenticated, Unavailable
from relay.link import SharedLink
from relay.stream.keys import ShardKeys

TTL_S = 30

_CALLER = TypeAdapter(Caller)
SHARD = 0
"""Where tickets are kept: they belong to no run."""

_KEYS = ShardKeys(SHARD)


class Tickets:
    """Gives tickets out, and takes each once."""

    def __init__(self, link: SharedLink) -> None:
        self._redis = link
        self._redeeming: set[str] = set()

    async def issue(self, caller: Caller) -> str:
        """A ticket that stands for the caller. Raises Unavailable."""
        ticket = secrets.token_urlsafe(32)
        await self._ask("SET", _KEYS.ticket(ticket), _CALLER.dump_json(caller).decode(), "EX", TTL_S)
        return ticket

    async def redeem(self, ticket: str) -> Caller:
        """Whom it stands for. Raises Unauthenticated for one that is used or too old, or Unavailable."""
        key = _KEYS.ticket(ticket)
        if key in self._redeeming:  # the shared link would ask once, and answer both
            raise _not_valid()
        self._redeeming.add(key)
        try:
            return await self._find("GETDEL", key)
        finally:
            self._redeeming.discard(key)

    async def look(self, ticket: str) -> Caller:
        """The same, for who opens no stream: the ticket can still be used."""
        return await self._find("GET", _KEYS.ticket(ticket))

    async def _find(self, how: Literal["GET", "GETDEL"], key: str) -> Caller:
        kept = await self._ask(how, key)
        if not isinstance(kept, bytes):
            raise _not_valid()
        return _CALLER.validate_json(kept)

    async def _ask(self, *words: str | int) -> object:
        try:
            return await self._redis.ask(*words)
        except (redis.exceptions.RedisError, OSError) as error:
            raise Unavailable from error


def _not_valid() -> Unauthenticated:
    return Unauthenticated(
        "The ticket is used, expired or not valid; ask for another one with POST /tickets, for each stream."
    )
