"""The live endpoints as routes, so that the API document has them; the work is theirs."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from starlette.types import ASGIApp

from relay.http import document
from relay.http.asgi import HandOff
from relay.http.history import RUN
from relay.sse import CONTENT_TYPE

POSITIONS = r"^[0-9]{1,16}(\.[0-9]{1,16})*$"

_STREAM: dict[str, Any] = {"content": {CONTENT_TYPE: {}}}


def router(live: ASGIApp, conversation: ASGIApp) -> APIRouter:
    """The routes of a run's stream and of a conversation's."""
    routes = APIRouter(tags=["live"])

    @routes.api_route(
        f"{RUN}/events",
        methods=["GET", "HEAD"],
        summary="A run as it happens",
        response_class=Response,
        responses={200: _STREAM, 204: {"description": "The run is over"}},
    )
    async def events(
        conversation_id: Annotated[str, Path(json_schema_extra=document.CONVERSATION_PARAMETER)],
        run_id: Annotated[str, Path(json_schema_extra=document.RUN_PARAMETER)],
        resume: Annotated[bool, Query(description="Blocks carry ids")] = False,
        last_event_id: Annotated[
            str | None,
            Query(description="Go on after this event", json_schema_extra={"pattern": "^[0-9]{1,16}$"}),
        ] = None,
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
        conversation_id: Annotated[str, Path(json_schema_extra=document.CONVERSATION_PARAMETER)],
        last_event_id: Annotated[
            str | None,
            Query(description="Go on after this position", json_schema_extra={"pattern": POSITIONS}),
        ] = None,
    ) -> Response:
        return HandOff(conversation)

    return routes
