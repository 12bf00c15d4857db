"""A relay that does as it is told, for faults that the real one does not have on request."""

import contextlib
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

TOKEN = "token-of-the-client-tests"
PATH = "/research-pipeline/events/batch"


@dataclass(frozen=True)
class Reply:
    """What to do with one request."""

    status: int = 204
    problem: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stores: bool | None = None
    """Whether the events are stored; by default if the status is 204."""
    cut: bool = False
    """Close the connection instead of answering."""
    until: threading.Event | None = None
    """Answer only then."""


class Request(NamedTuple):
    """A batch as it came."""

    key: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def items(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.body.splitlines()]


class FakeRelay:
    """Stores batches as the relay does: the same key and payload once, another payload is a conflict."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.stored: list[dict[str, Any]] = []
        self.connections = 0
        self.token = TOKEN
        self.replies: deque[Reply] = deque()
        self.always: Reply | None = None
        self.refuses: Callable[[dict[str, Any]], bool] = lambda item: False
        self.unreadable: Callable[[bytes], bool] = lambda body: False
        self.explains = True
        self.most = 1000
        self._bodies: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def numbers(self, **which: Any) -> list[int]:
        """The numbers of the stored events whose details hold `which`, in order."""
        details = [item["event"].get("details") or {} for item in self.stored]
        return [detail["number"] for detail in details if which.items() <= detail.items()]

    def up(self) -> None:
        """Listens; the second time on the same port as the first."""
        relay = self

        class Handler(_Handler):
            fake = relay

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away is no news here."""

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def down(self) -> None:
        """Refuses connections, and cuts those that there are."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            for handler in list(_Handler.alive):
                with contextlib.suppress(OSError):
                    handler.connection.shutdown(socket.SHUT_RDWR)

    def take(self, request: Request) -> Reply:
        """What to answer; stores the events if they are to be stored."""
        with self._lock:
            self.requests.append(request)
            reply = self.replies.popleft() if self.replies else self.always or self._usual(request)
            stores = reply.status == 204 if reply.stores is None else reply.stores
            if stores and request.key not in self._bodies:
                self._bodies[request.key] = request.body
                self.stored += request.items
            return reply

    def _usual(self, request: Request) -> Reply:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401, {"type": "urn:rp-relay:problem:unauthenticated"})
        if self._bodies.get(request.key, request.body) != request.body:
            return Reply(409, {"type": "urn:rp-relay:problem:idempotency-key-reused"})
        if self.unreadable(request.body):
            return Reply(400, {"type": "urn:rp-relay:problem:invalid-json"})
        if len(request.items) > self.most:
            return Reply(413, {"type": "urn:rp-relay:problem:batch-too-long"})
        bad = [index for index, item in enumerate(request.items) if self.refuses(item)]
        errors = [{"loc": [index, "event"], "msg": "bad", "type": "bad"} for index in bad[:20]]
        problem = {"type": "urn:rp-relay:problem:invalid-event", "errors": errors if self.explains else []}
        return Reply(422 if self.explains else 400, problem) if bad else Reply()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeRelay
    alive: "set[_Handler]" = set()  # noqa: RUF012 - of all servers, so that one can cut them
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.fake.connections += 1
        self.alive.add(self)

    def finish(self) -> None:
        self.alive.discard(self)
        super().finish()

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed meanwhile, and no relay takes half a request
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        assert self.path == PATH
        reply = self.fake.take(Request(headers.get("idempotency-key", ""), headers, body))
        if reply.until is not None:
            reply.until.wait()
        if reply.cut:
            self.close_connection = True
            return
        content = b"" if reply.problem is None else json.dumps(reply.problem).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/problem+json", **reply.headers}.items():
            self.send_header(name, value)
        if reply.status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def fake_relay() -> Iterator[FakeRelay]:
    """One that is up, for as long as the context lasts."""
    relay = FakeRelay()
    relay.up()
    try:
        yield relay
    finally:
        relay.down()
