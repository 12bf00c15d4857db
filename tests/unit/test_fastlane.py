"""The fast lane, with applications that fail."""

import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from relay import metrics
from relay.http.fastlane import FastLane
from relay.http.origins import CrossOrigin

ORIGIN = "https://app.example.com"
PATHS = ["/conversations/1/idea/research-run/a/events", "/conversations/1/idea/research-run/a/paper"]


class Unforeseen(Exception):
    """Nobody catches it."""


def failing(*before: Message) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in before:
            await send(message)
        raise Unforeseen("a secret")

    return app


async def call(app: Any, path: str, method: str = "GET", **headers: str) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    class Hook:
        shortcut = None

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, send)

    hooks: Any = {"/hook": Hook()}
    lane = FastLane(
        failing(),
        hooks,
        live={"/events": app},
        plain={"/paper": app},
        crossing=lambda app: CrossOrigin(app, [ORIGIN]),
    )
    sent_along = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": sent_along}
    await lane(scope, Any, send)  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize(("method", "path"), [("POST", "/hook"), *(("GET", path) for path in PATHS)])
async def test_what_nobody_foresaw_is_a_problem_is_counted_and_is_logged(
    method: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = metrics.REFUSALS["internal"]
    start, body = await call(failing(), path, method)
    assert start["status"] == json.loads(body["body"])["status"] == 500
    assert (b"content-type", b"application/problem+json") in start["headers"]
    assert b"secret" not in body["body"]
    assert metrics.REFUSALS["internal"] == before + 1
    assert "Unforeseen" in caplog.text


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_of_a_listed_origin_may_read_that_something_went_wrong(path: str) -> None:
    permission = (b"access-control-allow-origin", ORIGIN.encode())
    listed, _ = await call(failing(), path, origin=ORIGIN)
    assert (listed["status"], listed["headers"].count(permission)) == (500, 1)
    other, _ = await call(failing(), path, origin=f"{ORIGIN}.evil.example")
    assert (other["status"], permission in other["headers"]) == (500, False)


async def test_an_answer_that_has_begun_is_left_to_the_server_to_end() -> None:
    with pytest.raises(Unforeseen):
        await call(failing({"type": "http.response.start", "status": 200, "headers": []}), PATHS[0])
