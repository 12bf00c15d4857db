"""Who may see a run, from the request: the checks of the contract, in its order."""

import re
from collections.abc import Callable

from starlette.requests import cookie_parser
from starlette.types import Scope

from relay import auth
from relay.auth import Ownership, Run
from relay.errors import BadRequest, InvalidEvent
from relay.http.asgi import header
from relay.settings import Settings
from relay.stream.keys import RUN_ID

COOKIE = "relay_token"

_INTEGER = re.compile(r"-?[0-9]{1,30}")
_RUN_ID = re.compile(RUN_ID)


class Access:
    """The gate of everything that viewers ask for."""

    def __init__(self, settings: Settings, ownership: Callable[[], Ownership]) -> None:
        self._settings = settings
        self._ownership = ownership

    async def check(self, scope: Scope, conversation_id: str | int, run_id: str) -> Run | None:
        """The run, where the caller may see it; None where the database could not be asked but the caller
        is known to own it. Raises a RelayError."""
        conversation, user_id = self._caller(scope, conversation_id)
        # No run has the empty name, so what can not be a run's name is not found, in its turn.
        known = run_id if _RUN_ID.fullmatch(run_id) else ""
        return await self._ownership().check(user_id, conversation, known)

    async def runs(self, scope: Scope, conversation_id: str | int) -> list[Run]:
        """All runs of a conversation, where the caller may see it. Raises a RelayError."""
        conversation, user_id = self._caller(scope, conversation_id)
        return await self._ownership().runs(user_id, conversation)

    def _caller(self, scope: Scope, conversation_id: str | int) -> tuple[int, int]:
        """The conversation that is asked for, and the user who asks, whom the scope then names."""
        if not _INTEGER.fullmatch(str(conversation_id)):
            found = {
                "loc": ["path", "conversation_id"],
                "msg": "Input should be an integer",
                "type": "int_parsing",
            }
            raise InvalidEvent([found], "conversation_id must be an integer")  # type: ignore[list-item]
        if int(conversation_id) <= 0:
            raise BadRequest("conversation_id must be positive")
        user_id = scope["user"] = auth.viewer(self._settings.viewer_secret, _token(scope))
        return int(conversation_id), user_id


def _token(scope: Scope) -> str | None:
    """The bearer token, or else the cookie's."""
    scheme, _, token = (header(scope, b"authorization") or b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return token.decode("latin-1").strip()
    # As browsers write them: the standard library's parser drops all after the first one it does not like.
    return cookie_parser((header(scope, b"cookie") or b"").decode("latin-1")).get(COOKIE)
