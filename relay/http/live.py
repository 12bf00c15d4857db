"""The live endpoints as routes, so that the API document has them; the work is theirs."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.types import ASGIApp

from relay.auth.tickets import TTL_S
from relay.headers import PRIVATE
from relay.http.access import Access
from relay.http.asgi import HandOff
from relay.http.history import RUN, Conversation, RunPath
from relay.sse import CONTENT_TYPE

POSITIONS = r"^[0-9]{1,16}(\.[0-9]{1,16})*$"

TicketParameter = Annotated[str | None, Query(description="Opens one stream, instead of a token")]

_STREAM: dict[str, Any] = {"content": {CONTENT_TYPE: {}}}


class Ticket(BaseModel):
    """What opens one stream, as `?ticket=`, within `expires_in` seconds."""

    ticket: str
    expires_in: int


def router(live: ASGIApp, conversation: ASGIApp, access: Access) -> APIRouter:
    """The routes of a run's stream and of a conversation's, and of the tickets for them."""
    routes = APIRouter(tags=["live"])

    @routes.api_route(
        f"{RUN}/events",
        methods=["GET", "HEAD"],
        summary="A run as it happens",
        response_class=Response,
        responses={200: _STREAM, 204: {"description": "The run is over"}},
    )
    async def events(
        conversation_id: Conversation,
        run_id: RunPath,
        resume: Annotated[bool, Query(description="Blocks carry ids")] = False,
        last_event_id: Annotated[
            str | None,
            Query(description="Go on after this event", json_schema_extra={"pattern": "^[0-9]{1,16}$"}),
        ] = None,
        ticket: TicketParameter = None,
    ) -> Response:
        return HandOff(live)

    @routes.api_route(
        "/conversations/{conversation_id}/events",
        methods=["GET", "HEAD"],
        summary="All runs of a conversation as they happen",
        response_class=Response,
        responses={200: _STREAM},
    )
    async def conversation_events(
        conversation_id: Conversation,
        last_event_id: Annotated[
            str | None,
            Query(description="Go on after this position", json_schema_extra={"pattern": POSITIONS}),
        ] = None,
        ticket: TicketParameter = None,
    ) -> Response:
        return HandOff(conversation)

    @routes.post("/tickets", status_code=201, summary="A ticket for one stream, for pages without headers")
    async def tickets(request: Request, response: Response) -> Ticket:
        response.raw_headers.extend(PRIVATE)
        return Ticket(ticket=await access.ticket(request.scope), expires_in=TTL_S)

    return routes
