"""`relay tail` where the relay is away."""

import socket
from collections.abc import Iterator
from functools import partial

import httpx
import pytest
from click.testing import CliRunner, Result

from relay import watch
from relay.cli import main

STREAM = {"content-type": "text/event-stream"}


def tail(url: str = "http://someone:secret@relay") -> Result:
    return CliRunner().invoke(main, ["tail", "1", "run-1", "--url", url, "--token", "any"])


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[httpx.Response | None]]:
    """What is answered, one after the other; None: nobody listens. All of it is asked for."""
    left: list[httpx.Response | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        found = left.pop(0)
        if found is None:
            raise httpx.ConnectError("Connection refused")
        return found

    monkeypatch.setattr(watch, "RECONNECT_S", 0)
    monkeypatch.setattr(httpx, "Client", partial(httpx.Client, transport=httpx.MockTransport(answer)))
    yield left
    assert not left


def test_that_the_relay_is_away_is_said_once_each_time(answers: list[httpx.Response | None]) -> None:
    block = 'id: 7\ndata: {"type": "initial", "data": {}}\n\n'
    page = httpx.Response(200, headers={"content-type": "text/html"}, text="of a proxy")
    answers += [None, page, None, httpx.Response(200, headers=STREAM, text=block)]
    answers += [httpx.Response(503), None, httpx.Response(204)]
    shown = tail()
    assert shown.exit_code == 0
    assert shown.stdout == '{"type": "initial", "data": {}}\n'
    assert shown.stderr.splitlines() == [
        "Can not watch at relay: Connection refused; trying again ...",
        "relay answers 503; trying again ...",
    ]


def test_what_is_no_relay_is_not_asked_again(answers: list[httpx.Response | None]) -> None:
    answers.append(httpx.Response(404, html="<h1>Nothing here</h1>"))
    refused = tail()
    assert refused.exit_code == 1
    assert "The answer is 404, and not from a relay" in refused.stderr


def test_a_token_that_no_header_can_hold_is_not_quoted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        words = ["tail", "1", "run-1", "--url", url, "--token", "SECRET\r"]
        refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 1
    assert refused.stderr == "Error: The token holds a character that no token has.\n"


def test_one_who_finds_no_room_asks_again(answers: list[httpx.Response | None]) -> None:
    answers += [httpx.Response(429), httpx.Response(204)]
    shown = tail()
    assert shown.exit_code == 0
    assert shown.stderr == "relay answers 429; trying again ...\n"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("relay.example.org", "The address must begin with http:// or https://."),
        ("http://relay.example.org:port", "The address is none; check what follows http:// or https://."),
    ],
)
def test_what_is_no_address_is_not_asked_again(url: str, said: str) -> None:
    refused = tail(url)
    assert refused.exit_code == 1
    assert refused.stderr == f"Error: {said}\n"
