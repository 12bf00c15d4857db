"""Real browsers on a page of a real server: no driver between them and the test.

The page and the relay share one origin, as behind the reverse proxy of a front end, so that the viewer's
cookie goes along. The server notes what browsers ask the relay for, and the page tells it what it shows.
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import psutil

from relay.auth import mint_viewer_token
from tests.acceptance.running import USER, Relay
from tests.canaries import SECRET
from tests.waiting import wait_until

PAGE = Path(__file__).with_name("page.html")

PATIENCE_S = 40
"""For a browser that starts on a busy machine, or comes back as late as it may."""

_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_RETRY = re.compile(rb"retry: ([0-9]+)\n")


@dataclass
class StreamRequest:
    """One request of a browser for a run's stream, and what the relay said to it."""

    last_event_id: str | None
    upstream: socket.socket = field(repr=False)
    status: int | None = None
    retry_s: float | None = None
    """When the browser shall come back, as it was told last."""

    def note(self, data: bytes) -> None:
        if self.status is None and (status := _STATUS.match(data)):
            self.status = int(status[1])
        if told := _RETRY.findall(data):
            self.retry_s = int(told[-1]) / 1000


class _Handler(BaseHTTPRequestHandler):
    """The page, its reports, and the way through to the relay."""

    server: "Site"
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # browsers and relays are killed here: that is the point
            super().handle()

    def do_GET(self) -> None:
        if self.path.startswith("/conversations/"):
            self._pass_through()
        else:
            self._send_page()

    def do_POST(self) -> None:
        self.server.view = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """What matters is in `Site.requests`."""

    def _send_page(self) -> None:
        """Signs the user in, too: the page's own code never sees the token."""
        body = self.server.html.encode()
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.send_header("set-cookie", f"relay_token={self.server.token}; Path=/; HttpOnly; SameSite=Strict")
        self.end_headers()
        self.wfile.write(body)

    def _pass_through(self) -> None:
        """Hands on bytes as they come: a response that breaks off here breaks off in the browser, too."""
        self.close_connection = True
        self.server.reachable.wait()
        with socket.create_connection(self.server.relay) as upstream:
            request = StreamRequest(self.headers["last-event-id"], upstream)
            self.server.requests.append(request)
            upstream.sendall(self._head())
            for data in _received(upstream, self.connection):
                request.note(data)
                self.connection.sendall(data)

    def _head(self) -> bytes:
        """The browser's own request, except that the connection serves no second one."""
        headers = [line for line in self.headers.items() if line[0].lower() != "connection"]
        lines = [f"{name}: {value}\r\n" for name, value in [*headers, ("connection", "close")]]
        return f"{self.requestline}\r\n{''.join(lines)}\r\n".encode("latin-1")


def _received(upstream: socket.socket, downstream: socket.socket) -> Iterator[bytes]:
    """What comes from upstream, until one side has gone. The browser has nothing more to say, so anything
    to be read from it is its end."""
    while True:
        ready, _, _ = select.select([upstream, downstream], [], [])
        if downstream in ready or not (data := upstream.recv(65536)):
            return
        yield data


class Site(ThreadingHTTPServer):
    """A front end's origin. `view` is what the page reported last, `requests` all that went to the relay."""

    daemon_threads = False  # so that closing waits for the handlers, and no socket outlives the test

    def __init__(self, relay: Relay, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        address = urlsplit(relay.url)
        self.relay = (address.hostname, address.port)
        self.token = mint_viewer_token(SECRET, USER, 3600)
        self.html = PAGE.read_text()
        self.reachable = threading.Event()
        self.reachable.set()
        self.requests: list[StreamRequest] = []
        self.view: dict[str, Any] = {"failure": None, "readyState": None, "shown": []}

    def page(self, reader: str, stream: str) -> str:
        """The URL of a page that watches a stream with one of its readers."""
        asked = {"reader": reader, "stream": stream}
        return f"http://127.0.0.1:{self.server_port}/?{urlencode(asked)}"

    def wait(self, predicate: Callable[[dict[str, Any]], object], what: str) -> dict[str, Any]:
        """The page's view, once it is as wanted."""

        def wanted() -> dict[str, Any] | None:
            view = self.view
            assert view["failure"] is None, view
            return view if predicate(view) else None

        return wait_until(wanted, f"a page with {what}", PATIENCE_S) or {}

    def shown(self, count: int) -> list[str]:
        """The events on the page, once there are that many."""
        shown: list[str] = self.wait(lambda view: len(view["shown"]) >= count, f"{count} events")["shown"]
        return shown

    @contextlib.contextmanager
    def keeping_away(self) -> Iterator[None]:
        """Lets no new request through to the relay, so that the browser has something to miss."""
        self.reachable.clear()
        try:
            yield
        finally:
            self.reachable.set()

    def cut(self) -> None:
        """Loses the connection of the newest request, as networks do."""
        self.requests[-1].upstream.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def site_for(relay: Relay, port: int = 0) -> Iterator[Site]:
    """Serves the page; browsers have to be ended before the context is."""
    with Site(relay, port) as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()


def _chromium(home: Path) -> list[str]:
    """Runs as root and in small containers, and talks to nobody but us."""
    return [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--no-proxy-server",
        "--disable-background-networking",
        "--disable-breakpad",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={home / 'profile'}",
    ]


_FIREFOX_PREFERENCES: Mapping[str, bool | int | str] = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.aboutwelcome.enabled": False,
    "browser.region.update.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "datareporting.healthreport.uploadEnabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.push.connection.enabled": False,
    "extensions.update.enabled": False,
    "media.gmp-manager.updateEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.proxy.type": 0,
    "services.settings.server": "data:,",
    "startup.homepage_welcome_url": "",
    "termsofuse.bypassNotification": True,
    "toolkit.telemetry.enabled": False,
    "toolkit.telemetry.unified": False,
}
"""No first-run pages, and nobody to talk to but us."""


def _firefox(home: Path) -> list[str]:
    profile = home / "profile"
    profile.mkdir()
    lines = [
        f"user_pref({json.dumps(name)}, {json.dumps(value)});\n"
        for name, value in _FIREFOX_PREFERENCES.items()
    ]
    (profile / "user.js").write_text("".join(lines))
    return ["--headless", "--no-remote", "--profile", str(profile)]


_OPTIONS: Mapping[str, Callable[[Path], list[str]]] = {"chromium": _chromium, "firefox-esr": _firefox}

PROGRAMS = tuple(_OPTIONS)


@contextlib.contextmanager
def browser(program: str, url: str) -> Iterator[None]:
    """Runs a browser on a page, with a profile of its own; ends all of its processes afterwards."""
    path = shutil.which(program)
    assert path is not None, f"{program} is not installed: tests/debian-packages does that"
    with tempfile.TemporaryDirectory(prefix="browser-") as home:
        argv = [path, *_OPTIONS[program](Path(home)), url]
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HOME": home, "TMPDIR": home},
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            wait_until(lambda: not _alive(process.pid), "the browser's processes to end")


def _alive(session: int) -> list[int]:
    """The processes that a browser left. Those in groups of their own are still of its session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found
