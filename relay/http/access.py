"""Who may see a run, from the request: the checks of the contract, in its order."""

import re
from collections.abc import Callable

from starlette.requests import cookie_parser
from starlette.types import Scope

from relay.auth import Ownership, Run
from relay.auth.tickets import Tickets
from relay.auth.viewers import Caller, Viewers
from relay.errors import BadRequest, FieldError, Forbidden, InvalidEvent
from relay.http.asgi import header, query
from relay.http.rate import Rates
from relay.settings import Settings
from relay.stream.keys import RUN_ID

COOKIE = "relay_token"
TICKETS_PER_S = 100
"""For one user at one worker: each is a key in Redis for half a minute."""


_INTEGER = re.compile(r"-?[0-9]{1,30}")
_RUN_ID = re.compile(RUN_ID)


class Access:
    """The gate of everything that viewers ask for."""

    def __init__(
        self,
        settings: Settings,
        viewers: Viewers,
        tickets: Callable[[], Tickets],
        ownership: Callable[[], Ownership],
    ) -> None:
        self._origins = settings.allowed_origins
        self._viewers = viewers
        self._tickets = tickets
        self._ownership = ownership
        self._rates = Rates(TICKETS_PER_S)

    async def enter(self, scope: Scope, conversation_id: str, *, ticket: bool = False) -> tuple[Caller, int]:
        """Who asks, which `scope["user"]` then says as well, and for which conversation. `ticket`: a ticket
        does as well. Raises a RelayError."""
        conversation = _conversation(conversation_id)
        caller = await self._caller(scope, ticket=ticket)
        scope["user"] = caller.user_id
        return caller, conversation

    async def check(self, scope: Scope, conversation_id: str, run_id: str) -> Run | None:
        """Both steps at once, without tickets."""
        return await self.run(*await self.enter(scope, conversation_id), run_id)

    async def run(self, caller: Caller, conversation: int, run_id: str) -> Run | None:
        """The run, where the caller may see it; None where the database could not be asked but the caller
        is known to own it. Raises a RelayError."""
        # No run has the empty name, so what can not be a run's name is not found, in its turn.
        known = run_id if _RUN_ID.fullmatch(run_id) else ""
        return await self._ownership().check(caller, conversation, known)

    async def still(self, caller: Caller, conversation: int, run_id: str) -> None:
        """Raises a RelayError where the caller, who was let in, may not see the run any more; a Refused says
        that it is so, any other one that it could not be found out."""
        await self._viewers.check_key(caller)
        if caller.runs is None:  # or its token says it all
            await self.run(caller, conversation, run_id)

    async def runs(self, caller: Caller, conversation: int) -> list[Run]:
        """All runs of a conversation, where the caller may see it. Raises a RelayError."""
        await self._viewers.check_key(caller)
        return await self._ownership().runs(caller, conversation)

    async def ticket(self, scope: Scope) -> str:
        """A ticket for one stream of whoever asks. Raises a RelayError."""
        caller = await self._caller(scope)
        self._rates.take(caller.user_id)
        return await self._tickets().issue(caller)

    async def _caller(self, scope: Scope, *, ticket: bool = False) -> Caller:
        """By the bearer token, the ticket, or the cookie: by the first of them that there is."""
        scheme, _, token = (header(scope, b"authorization") or b"").partition(b" ")
        if scheme.lower() == b"bearer":
            return await self._viewers.check(token.decode("latin-1").strip())
        tickets = query(scope, "ticket") if ticket else ()
        if tickets:
            known = self._tickets()
            look = known.look if scope["method"] == "HEAD" else known.redeem
            return await look(tickets[-1])
        # As browsers write them: the standard library's parser drops all after one that it does not like.
        cookie = cookie_parser((header(scope, b"cookie") or b"").decode("latin-1")).get(COOKIE)
        if cookie is not None:
            self._check_origin(scope)
        return await self._viewers.check(cookie)

    def _check_origin(self, scope: Scope) -> None:
        """Raises Forbidden where another site's page makes the browser send the cookie."""
        origin = header(scope, b"origin")
        if origin is None:
            # Also pictures and the like come without an origin; of those new browsers say where they are.
            foreign = header(scope, b"sec-fetch-site") in (b"cross-site", b"same-site")
        else:
            text = origin.decode("latin-1")
            scheme, _, host = text.partition("://")
            own = (header(scope, b"host") or b"").decode("latin-1").lower()
            foreign = text not in self._origins and (scheme not in ("http", "https") or host != own)
        if foreign:
            raise Forbidden(
                "The cookie is not taken from a page of another origin; see RELAY_ALLOWED_ORIGINS."
            )


def _conversation(conversation_id: str) -> int:
    if not _INTEGER.fullmatch(conversation_id):
        found: FieldError = {
            "loc": ["path", "conversation_id"],
            "msg": "Input should be an integer",
            "type": "int_parsing",
        }
        raise InvalidEvent([found], "conversation_id must be an integer")
    if int(conversation_id) <= 0:
        raise BadRequest("conversation_id must be positive")
    return int(conversation_id)
