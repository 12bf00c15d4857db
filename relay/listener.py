"""The private listener: what operators ask of one process, at an address that users do not have.

It has a thread of its own, so that it answers also while the process is busy, and says so. Web workers and
persisters have the same one, with other pages.
"""

import contextlib
import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from relay.headers import PRIVATE

log = logging.getLogger(__name__)

PORTS = 100
"""How many ports are tried: several processes that are given the same address take one after the other."""

REQUEST_S = 10.0
"""How long a client may take to ask."""

POLL_S = 0.25
"""How long the end may take."""

ADDRESS = r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}"


class Page(NamedTuple):
    """An answer."""

    status: int
    media_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Page]]
"""What makes the page at each path, in whichever thread."""


def document(status: int, content: Mapping[str, Any]) -> Page:
    """A page of JSON."""
    return Page(status, "application/json", json.dumps(content).encode())


_NOTHING = document(404, {"status": "there is nothing at this path"})
_REFUSED = {"status": "this is no request that is answered here"}
_BROKEN = document(500, {"status": "this page could not be made; the reason is in the log"})


@contextlib.contextmanager
def listening(address: str | None, pages: Pages) -> Iterator[str | None]:
    """Serves the pages for as long as the context lasts; answers their URL. None: nothing was asked for, or
    no port was free. Work must not stop for want of figures, so that is only logged."""
    listener = _bound(address) if address else None
    if listener is None:
        yield None
        return
    with _Server(listener, pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=[POLL_S], name="private", daemon=True)
        thread.start()
        log.info("health and figures of process %d are at %s", os.getpid(), server.url)
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def _bound(address: str) -> socket.socket | None:
    """A socket that listens at the address, or at the next port that is free."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in range(int(port), min(int(port) + PORTS, 1 << 16)):
        try:
            return socket.create_server((host, number), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                log.error("health and figures can not be had at %s: %s", address, error.strerror)
                return None
    log.error("no port is free for health and figures at %s and above", address)
    return None


class _Server(ThreadingHTTPServer):
    """The server of a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, pages: Pages) -> None:
        host, port, *_ = listener.getsockname()
        super().__init__((host, port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.pages = pages
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked has left. The library would print a stack."""


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_S
    server: _Server

    def do_GET(self) -> None:
        make = self.server.pages.get(self.path.partition("?")[0])
        try:
            page = make() if make else _NOTHING
        except Exception as error:
            log.error("a page of the private listener failed: %s", type(error).__name__, exc_info=error)
            page = _BROKEN
        self._send(page)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library has to say repeats what was asked."""
        self._send(document(code, _REFUSED))

    def _send(self, page: Page) -> None:
        self.send_response(page.status)
        self.send_header("content-type", page.media_type)
        self.send_header("content-length", str(len(page.body)))
        for name, value in PRIVATE:
            self.send_header(name.decode(), value.decode())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def version_string(self) -> str:
        return "rp-relay"

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads who asked, and a path may hold what should not be kept."""
