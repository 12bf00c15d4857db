"""HTTP as no well-behaved client would send it: bytes on a socket, and what came back on it."""

import contextlib
import json
import socket
import time
from http.client import HTTPResponse
from typing import Any, NamedTuple

import httpx

from tests.acceptance.running import Relay
from tests.canaries import TOKEN

PROBLEM = "application/problem+json"

EVERYWHERE = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""The headers of all that viewers get."""


class Answer(NamedTuple):
    """An answer, and whether the server ended the connection after it."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def problem(self) -> str:
        """The last part of the problem's `type`."""
        body: dict[str, Any] = json.loads(self.text)
        assert body["status"] == self.status
        assert isinstance(body["detail"], str)
        return str(body["type"]).removeprefix("urn:rp-relay:problem:")


def connect(relay: Relay) -> socket.socket:
    url = httpx.URL(relay.url)
    return socket.create_connection((url.host, url.port or 80), timeout=30)


def head(method: str, path: str, *lines: str, host: str = "host: relay") -> bytes:
    """A request's head. The webhook token is in it, since without it nothing is looked at."""
    given = [f"{method} {path} HTTP/1.1", *([host] if host else []), f"authorization: Bearer {TOKEN}", *lines]
    return ("\r\n".join(given) + "\r\n\r\n").encode()


def exchange(relay: Relay, *pieces: bytes) -> Answer:
    """Sends the pieces, as far as they are taken, and reads one answer."""
    with connect(relay) as connection:
        with contextlib.suppress(OSError):  # refused early: the answer says why
            for piece in pieces:
                connection.sendall(piece)
        response = HTTPResponse(connection)
        response.begin()
        text = response.read().decode()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, text)


def closed(connection: socket.socket, timeout_s: float = 20) -> tuple[bytes, float]:
    """All that still comes until the server ends the connection, and after how many seconds it did."""
    began, received = time.monotonic(), b""
    connection.settimeout(timeout_s)
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received, time.monotonic() - began
