"""The gate, with stores that only count."""

from typing import Any

import pytest

from relay.auth import mint_viewer_token
from relay.auth.viewers import Caller, Viewers
from relay.errors import RateLimited, Unauthenticated
from relay.http.access import TICKETS_PER_S, Access
from relay.settings import Settings

SECRET = "a-secret-of-at-least-32-bytes-for-hs256"


class Tickets:
    """Gives out numbers."""

    def __init__(self) -> None:
        self.given = 0

    async def issue(self, caller: Caller) -> str:
        self.given += 1
        return str(self.given)


def asked_by(user: int) -> dict[str, Any]:
    token = mint_viewer_token(SECRET, user, 60).encode()
    return {"headers": [(b"authorization", b"Bearer " + token)], "query_string": b""}


async def test_nobody_fills_the_store_with_tickets_or_keeps_others_from_them() -> None:
    settings, tickets = Settings(viewer_secret=SECRET), Tickets()
    giving: Any = tickets
    access = Access(settings, Viewers(settings), lambda: giving, lambda: giving)

    async def flood() -> None:
        for _ in range(100 * TICKETS_PER_S):
            await access.ticket(asked_by(7))

    with pytest.raises(RateLimited):
        await flood()
    assert TICKETS_PER_S <= tickets.given < 50 * TICKETS_PER_S
    before = tickets.given
    await access.ticket(asked_by(8))
    assert tickets.given == before + 1
    with pytest.raises(Unauthenticated):
        await access.ticket({"headers": [], "query_string": b"ticket=1"})
