"""The gate, with stores that only count."""

from pathlib import Path
from typing import Any, cast

import pytest

from relay.auth import Run, mint_viewer_token
from relay.auth.viewers import Caller, Viewers
from relay.errors import RateLimited, Unauthenticated
from relay.http.access import TICKETS_PER_S, Access
from relay.settings import Settings
from tests.unit.test_viewers import EC, encode, published

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


class Owners:
    """Everything is everybody's."""

    async def check(self, caller: Caller, conversation: int, run_id: str) -> None:
        return

    async def runs(self, caller: Caller, conversation: int) -> list[Run]:
        return []


@pytest.mark.parametrize("runs", [None, ["run-1"]])
async def test_an_open_stream_is_asked_about_the_key_of_its_token(tmp_path: Path, runs: Any) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(published("ec"))
    settings, owners = Settings(viewer_jwks=str(keys)), cast("Any", Owners())
    viewers = Viewers(settings)
    access = Access(settings, viewers, lambda: owners, lambda: owners)
    assert viewers.source
    await viewers.source.open()
    caller = await viewers.check(encode(EC, "ES256", runs=runs))
    await access.still(caller, 1, "run-1")
    await access.runs(caller, 1)
    keys.write_text(published("rsa"))
    await viewers.source.read()
    with pytest.raises(Unauthenticated):
        await access.still(caller, 1, "run-1")
    with pytest.raises(Unauthenticated):
        await access.runs(caller, 1)
