"""The history endpoints: what the archive holds of a run, streamed page by page."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import Response, StreamingResponse

from relay.errors import DatabaseUnavailable
from relay.events.kinds import PaperGenerationProgress
from relay.history import PAGE, History, Page, Progress
from relay.http.access import Access
from relay.stream.keys import MAX_EVENT_ID, START

RUN = "/conversations/{conversation_id}/idea/research-run/{run_id}"

_TABLE = PaperGenerationProgress.table


class PaperGenerationEventModel(BaseModel):
    """One event of the paper generation."""

    id: int
    run_id: str
    step: str
    substep: str | None
    progress: float
    step_progress: float
    details: dict[str, Any] | None
    created_at: str


class PaperGenerationHistory(BaseModel):
    """The events of a run, oldest first, and where the newest one of the run stands."""

    run_id: str
    events: list[PaperGenerationEventModel]
    latest_step: str | None
    overall_progress: float


def router(history: Callable[[], History], access: Access) -> APIRouter:
    """The routes of the readers' side."""
    routes = APIRouter(tags=["history"])

    @routes.get(
        f"{RUN}/paper-generation-progress",
        summary="The paper generation of a run, from the archive",
        responses={200: {"model": PaperGenerationHistory}},
    )
    async def paper_generation_progress(
        request: Request,
        conversation_id: Annotated[int, Path()],
        run_id: Annotated[str, Path()],
        after: Annotated[
            int, Query(ge=START, le=MAX_EVENT_ID, description="Only events with a higher id")
        ] = START,
        limit: Annotated[int | None, Query(ge=1, le=PAGE, description="At most this many events")] = None,
    ) -> Response:
        if await access.check(request.scope, conversation_id, run_id) is None:
            raise DatabaseUnavailable  # it was away a moment ago: no second wait for it
        archive = history()
        latest = await archive.latest(run_id)
        # Rows that come in while this is written are left out, so that it ends, and ends with the latest.
        before = latest.id + 1 if latest else START
        first = await archive.page(_TABLE, run_id, after, before, limit or PAGE)
        return StreamingResponse(
            _document(archive, run_id, first, latest, before, everything=limit is None),
            media_type="application/json",
            headers={"cache-control": "no-store", "x-content-type-options": "nosniff"},
        )

    return routes


async def _document(
    archive: History, run_id: str, page: Page, latest: Progress | None, before: int, *, everything: bool
) -> AsyncIterator[bytes]:
    yield b'{"run_id":%b,"events":[%b' % (to_json(run_id), page.payloads)
    while everything and page.rows == PAGE:
        page = await archive.page(_TABLE, run_id, page.last, before)
        if page.rows:
            yield b"," + page.payloads
    yield b'],"latest_step":%b,"overall_progress":%b}' % (
        to_json(latest.step if latest else None),
        to_json(latest.progress if latest else 0.0),
    )
