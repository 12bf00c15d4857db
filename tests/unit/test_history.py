"""A run's paper as an ASGI answer, from an archive that says what the test wants."""

import json
from collections.abc import Sequence
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from relay.auth import Run
from relay.errors import DatabaseUnavailable
from relay.history import PAGE, Page, Progress
from relay.http.asgi import PIECE_BYTES
from relay.http.history import router, whole_paper
from relay.settings import Settings
from relay.stream.keys import START

SCOPE = {"type": "http", "path_params": {"conversation_id": "7", "run_id": "run-1"}}
LARGE = "x" * (PIECE_BYTES // PAGE)


class Access:
    """Everybody may see every run."""

    async def check(self, scope: Any, conversation_id: str, run_id: str) -> Run:
        return Run(run_id, int(conversation_id), "running", None, "2026-01-01T00:00:00+00:00", None, None)


class Archive:
    """So many rows, with ids from 1 on. `away_after`: how many questions it answers."""

    def __init__(self, rows: int, text: str = "", away_after: int = 100) -> None:
        self.rows = [{"id": id, "text": text} for id in range(1, rows + 1)]
        self.left = away_after

    async def paper(self, run_id: str, after: int, limit: int = PAGE) -> tuple[Page, Progress | None]:
        latest = Progress(len(self.rows), "paper_review", 0.75) if self.rows else None
        return self._page(self.rows[after:][:limit]), latest

    async def page(self, table: str, run_id: str, after: int, before: int, limit: int = PAGE) -> Page:
        return self._page(self.rows[after : before - 1][:limit])

    async def newest(self, run_id: str) -> int:
        return len(self.rows)

    def _page(self, rows: Sequence[dict[str, Any]]) -> Page:
        if not self.left:
            raise DatabaseUnavailable
        self.left -= 1
        payloads = ",".join(json.dumps(row) for row in rows).encode()
        return Page(payloads, rows[-1]["id"] if rows else START, len(rows))


async def answered(archive: Archive, sent: list[Any] | None = None) -> tuple[int, list[bytes]]:
    """The status, and the pieces of the body. `sent` gets all messages."""
    sent = [] if sent is None else sent

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("a GET has no body")

    access: Any = Access()
    history: Any = archive
    await whole_paper(lambda: history, access)(SCOPE, receive, send)
    start, *pieces = sent
    assert [piece.get("more_body", False) for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    return start["status"], [piece["body"] for piece in pieces]


@pytest.mark.parametrize("rows", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 1])
async def test_however_many_rows_there_are_they_come_once_and_in_order(rows: int) -> None:
    status, pieces = await answered(Archive(rows))
    document = json.loads(b"".join(pieces))
    assert status == 200
    assert [event["id"] for event in document["events"]] == list(range(1, rows + 1))
    assert (document["latest_step"], document["overall_progress"]) == (
        ("paper_review", 0.75) if rows else (None, 0.0)
    )


@pytest.mark.parametrize("rows", [0, 1, PAGE, PAGE + 1, 2 * PAGE + 1])
@pytest.mark.parametrize("limit", [None, 1, PAGE])
async def test_so_do_those_of_other_lists_as_many_as_are_asked_for(rows: int, limit: int | None) -> None:
    history, access, nobody = cast("Any", Archive(rows)), cast("Any", Access()), cast("Any", None)
    app = FastAPI()
    app.include_router(router(lambda: history, nobody, access, Settings()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://relay") as client:
        query = {} if limit is None else {"limit": limit}
        found = await client.get("/conversations/7/idea/research-run/run-1/logs", params=query)
    wanted = rows if limit is None else min(rows, limit)
    assert found.json() == {"run_id": "run-1", "events": Archive(wanted).rows}


async def test_what_one_question_answers_is_sent_in_one_piece() -> None:
    archive = Archive(PAGE, LARGE, away_after=1)
    _, pieces = await answered(archive)
    assert len(pieces) == 1


async def test_a_long_history_is_sent_page_by_page() -> None:
    _, pieces = await answered(Archive(3 * PAGE, LARGE))
    assert len(pieces) == 3


async def test_an_archive_that_goes_away_before_anything_was_sent_is_an_error_like_any_other() -> None:
    status, (body,) = await answered(Archive(2 * PAGE, LARGE, away_after=1))
    assert status == 503
    assert json.loads(body)["title"]


async def test_an_answer_that_was_begun_and_can_not_be_ended_is_not_ended() -> None:
    sent: list[Any] = []
    with pytest.raises(DatabaseUnavailable):
        await answered(Archive(3 * PAGE, LARGE, away_after=2), sent)
    assert [message.get("more_body") for message in sent] == [None, True]
