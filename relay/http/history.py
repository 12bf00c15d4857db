"""The history endpoints: what the archive holds of a run, streamed page by page."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from relay.auth import Run
from relay.errors import DatabaseUnavailable, RelayError
from relay.events.kinds import PaperGenerationProgress
from relay.events.registry import TABLES
from relay.history import PAGE, History, Page
from relay.http.access import Access
from relay.http.asgi import PIECE_BYTES, Piece, Streamed
from relay.http.document import CONVERSATION_PARAMETER, RUN_PARAMETER
from relay.http.problems import problem
from relay.http.shown import RunAsAWhole, history_of, paper_history_of
from relay.settings import Settings
from relay.stream.keys import MAX_EVENT_ID, START
from relay.stream.replay import Replay

RUN = "/conversations/{conversation_id}/idea/research-run/{run_id}"
PAPER = f"/{PaperGenerationProgress.history_path}"

Conversation = Annotated[str, Path(json_schema_extra=CONVERSATION_PARAMETER)]
RunPath = Annotated[str, Path(json_schema_extra=RUN_PARAMETER)]
After = Annotated[int, Query(ge=START, le=MAX_EVENT_ID, description="Only events with a higher id")]
Limit = Annotated[int | None, Query(ge=1, le=PAGE, description="At most this many events")]


def router(
    history: Callable[[], History], replay: Callable[[], Replay], access: Access, settings: Settings
) -> APIRouter:
    """The routes of the readers' side."""
    routes = APIRouter(tags=["history"])

    async def permitted(request: Request, conversation_id: Conversation, run_id: RunPath) -> Run:
        return await _permitted(access, request.scope, conversation_id, run_id)

    def of_table(table: str) -> Callable[..., Awaitable[Response]]:
        async def events(
            run: Annotated[Run, Depends(permitted)], after: After = START, limit: Limit = None
        ) -> Response:
            page = await history().page(table, run.run_id, after, MAX_EVENT_ID + 1, limit or PAGE)
            more = limit is None and page.rows == PAGE
            upto = await history().newest(run.run_id) if more else page.last
            return await _document(history(), table, run.run_id, page, upto, b"}")

        return events

    @routes.get(
        RUN + PAPER,
        summary="The paper generation of a run, from the archive",
        responses={200: {"model": paper_history_of(PaperGenerationProgress.table)}},
    )
    async def paper_generation_progress(
        run: Annotated[Run, Depends(permitted)], after: After = START, limit: Limit = None
    ) -> Response:
        return await _paper(history(), run.run_id, after, limit)

    for table, kind in TABLES.items():
        if kind is not PaperGenerationProgress:
            path = f"{RUN}/{kind.history_path}"
            routes.add_api_route(
                path,
                of_table(table),
                summary=f"The {kind.history_path} of a run, from the archive",
                responses={200: {"model": history_of(table)}},
                name=path,
            )

    @routes.get(
        RUN,
        summary="A run with all that happened in it, and the id that this is exact at",
        responses={200: {"model": RunAsAWhole}},
    )
    async def everything(request: Request, run: Annotated[Run, Depends(permitted)]) -> Response:
        snapshot = await replay().snapshot(run.run_id, request.scope["user"])
        head = b'{"id":%d,"run":%b,' % (
            snapshot.position,
            to_json(run.shown(snapshot.changes, snapshot.newest, settings.stale_after_s)),
        )
        return await _streamed(_around(head, snapshot.lists, b"}"))

    return routes


def whole_paper(history: Callable[[], History], access: Access) -> ASGIApp:
    """The history of a run's paper where no parameter asks for a part of it: an ASGI application, for the
    fast lane."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path_params"]
        try:
            run = await _permitted(access, scope, path["conversation_id"], path["run_id"])
            response = await _paper(history(), run.run_id, START, None)
        except RelayError as error:
            response = problem(error)
        await response(scope, receive, send)

    return answer


async def _permitted(access: Access, scope: Scope, conversation_id: str, run_id: str) -> Run:
    run = await access.check(scope, conversation_id, run_id)
    if run is None:
        raise DatabaseUnavailable  # it was away a moment ago: no second wait for it
    return run


async def _paper(archive: History, run_id: str, after: int, limit: int | None) -> Response:
    page, latest = await archive.paper(run_id, after, limit or PAGE)
    tail = b',"latest_step":%b,"overall_progress":%b}' % (
        to_json(latest.step if latest else None),
        to_json(latest.progress if latest else 0.0),
    )
    upto = latest.id if latest and limit is None else page.last
    return await _document(archive, PaperGenerationProgress.table, run_id, page, upto, tail)


async def _document(
    archive: History, table: str, run_id: str, first: Page, upto: int, tail: bytes
) -> Response:
    """A page, and the events behind it up to an id: what comes in while this is written is left out, so that
    it ends."""

    async def payloads(page: Page) -> AsyncIterator[bytes]:
        yield page.payloads
        while page.rows == PAGE and page.last < upto:
            page = await archive.page(table, run_id, page.last, upto + 1)
            if page.rows:
                yield b"," + page.payloads

    head = b'{"run_id":%b,"events":[' % to_json(run_id)
    return await _streamed(_around(head, payloads(first), b"]" + tail))


async def _around(head: bytes, middle: AsyncIterator[bytes], tail: bytes) -> AsyncIterator[Piece]:
    """Pieces of a good size: the head with the first one, the tail with the last one."""
    waiting = head
    async for part in middle:
        if len(waiting) > PIECE_BYTES:
            yield waiting, True
            waiting = b""
        waiting += part
    yield waiting + tail, False


async def _streamed(pieces: AsyncIterator[Piece]) -> Response:
    """A JSON answer, as it is read. What fails before the first piece is an error like any other."""
    return Streamed(await anext(pieces), pieces)
