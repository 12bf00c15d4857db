"""The product as its users run it: real processes, spoken to over HTTP only."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import httpx
import psutil

from relay.auth import mint_viewer_token
from relay.processes import Part, running
from relay.server import listen
from tests.canaries import RUN_SECRET, SECRET, TOKEN
from tests.waiting import wait_until

SECRETS = {
    "TELEMETRY_WEBHOOK_TOKEN": TOKEN,
    "RELAY_VIEWER_SECRET": SECRET,
    "RELAY_RUN_TOKEN_SECRET": RUN_SECRET,
}
CONVERSATION, USER = 7, 42
EVENTS = "/research-pipeline/events"

CLIENT = httpx.Client(timeout=20, limits=httpx.Limits(max_keepalive_connections=0))
"""Nobody in particular, on a new connection each time. (To make a client takes longer than most requests.)"""


class Relay:
    """A running `relay up`."""

    def __init__(self, process: subprocess.Popen[Any], ready: Mapping[str, Any]) -> None:
        self.process = process
        self.ready = ready
        self.url: str = ready["url"]
        self.redis_url: str = ready["redis_url"]
        self.database_url: str = ready["database_url"]
        self.http = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=20)

    def claim(self, run_id: str, conversation: int = CONVERSATION, user: int = USER) -> None:
        owner = {"conversation_id": conversation, "user_id": user}
        self.http.put(f"/research-pipeline/runs/{run_id}", json=owner).raise_for_status()

    def post(self, path: str, body: Mapping[str, Any], **headers: str) -> httpx.Response:
        return self.http.post(EVENTS + path, json=body, headers=headers)

    def progress(self, run_id: str, event: Mapping[str, Any]) -> None:
        response = self.post("/paper-generation-progress", {"run_id": run_id, "event": event})
        assert response.status_code == 204, response.text

    def finish(self, run_id: str, *, success: bool = True) -> None:
        assert self.post("/run-finished", {"run_id": run_id, "success": success}).status_code == 204

    def run_url(self, run_id: str) -> str:
        return f"{self.url}/conversations/{CONVERSATION}/idea/research-run/{run_id}"

    def history(self, run_id: str, **params: Any) -> httpx.Response:
        return CLIENT.get(
            f"{self.run_url(run_id)}/paper-generation-progress", params=params, headers=viewer()
        )

    def archived(self, run_id: str, count: int) -> list[dict[str, Any]]:
        """The history, once it has that many events."""

        def complete() -> list[dict[str, Any]] | None:
            response = self.history(run_id)
            events: list[dict[str, Any]] = response.json()["events"] if response.status_code == 200 else []
            return events if len(events) >= count else None

        return wait_until(complete, f"{count} archived events", 60) or []

    def ops(self, path: str, of: str = "ops_url") -> httpx.Response:
        """What a private listener answers. (Of the persister's, nobody has waited that it is up.)"""

        def answer() -> httpx.Response | None:
            with contextlib.suppress(httpx.ConnectError):
                return CLIENT.get(self.ready[of] + path)
            return None

        found = wait_until(answer, "the private listener")
        assert found is not None
        return found

    def pids(self, *words: str) -> list[int]:
        """The processes below this one whose command line has all these words; a program's name is one."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                words_of = " ".join(child.cmdline()).split()  # some servers rewrite theirs into one
                if set(words) <= {Path(word).name for word in words_of}:
                    found.append(child.pid)
        return found

    def kill(self, *words: str, how: signal.Signals = signal.SIGKILL) -> int:
        """Sends a signal to the first of these processes; answers its id."""
        pid = self.pids(*words)[0]
        os.kill(pid, how)
        return pid


def viewer(user: int = USER, **headers: str) -> dict[str, str]:
    """The headers of a signed-in user."""
    return {"authorization": f"Bearer {mint_viewer_token(SECRET, user, 3600)}", **headers}


def environment_with(**env: str) -> dict[str, str]:
    """This process's environment, with the tests' secrets and without any stores but those given."""
    kept = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "DATABASE_URL")}
    return {**kept, **SECRETS, **env}


@contextlib.contextmanager
def relay_up(data_dir: Path, *options: str, **env: str) -> Iterator[Relay]:
    """Runs `relay up` until the context ends, and checks that it takes all of its processes along."""
    argv = [sys.executable, "-m", "relay", "up", "--port", "0", "--data-dir", str(data_dir), *options]
    environment = environment_with(**env)
    with (data_dir.parent / f"{data_dir.name}.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, (data_dir.parent / f"{data_dir.name}.log").read_text()
            relay = Relay(process, json.loads(line))
            yield relay
            relay.http.close()
        finally:
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            process.wait(60)
            process.stdout.close()
            wait_until(lambda: not any(child.is_running() for child in family), "all processes to end")


def answers(url: str) -> bool:
    try:
        return CLIENT.get(f"{url}/livez").status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def web_worker(log: Path, *program: str, **env: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A web worker by itself, ready: its URL and its process. `program`: what stands for the relay."""
    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        argv = [sys.executable, "-m", *(program or ["relay"]), "serve", "--fd", str(listener.fileno())]
        fds = [listener.fileno()]
        with running(Part("web", argv, lambda: answers(url), env=env, pass_fds=fds, log=log)) as process:
            yield url, process


def a_persister(log: Path, *program: str, **env: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A persister by itself, with the name of the first of `relay up`. `program`: what stands for it."""
    argv = [sys.executable, "-m", *(program or ["persister"]), "run", "--name", "persister-1"]
    return running(Part("persister", argv, lambda: True, env=env, log=log))


class Viewer:
    """A viewer that follows a run in a thread and keeps every block as it came."""

    def __init__(
        self,
        relay: Relay,
        run_id: str,
        *,
        resume: bool = True,
        position: int | None = None,
        query: str = "",
        url: str | None = None,
    ) -> None:
        self.messages: list[tuple[int | None, dict[str, Any]]] = []
        self.raw: list[str] = []
        self.clean_end = False
        self.status: int | None = None
        self.position = position
        address = httpx.URL(url or f"{relay.run_url(run_id)}/events")
        self._path = f"{address.path}?{'resume=true' if resume else ''}{query}"
        self._connection = HTTPConnection(address.host, address.port, timeout=60)
        self._connection.connect()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        headers = viewer()
        if self.position is not None:
            headers["last-event-id"] = str(self.position)
        with contextlib.suppress(HTTPException, OSError):
            self._connection.request("GET", self._path, headers=headers)
            with self._connection.getresponse() as response:
                self.status = response.status
                block: list[str] = []
                while line := response.readline():
                    if line != b"\n":
                        block.append(line.decode().rstrip("\n"))
                        continue
                    self._take(block)
                    block = []
                self.clean_end = response.isclosed()
        self._connection.close()

    def _take(self, block: list[str]) -> None:
        self.raw.append("\n".join(block))
        fields = dict(line.split(": ", 1) for line in block)
        if "data" in fields:
            self.position = int(fields["id"]) if "id" in fields else None
            self.messages.append((self.position, json.loads(fields["data"])))

    def cut(self) -> int | None:
        """Drops the connection; answers the last id."""
        with contextlib.suppress(OSError, AttributeError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        return self.position

    def connected(self) -> "Viewer":
        wait_until(lambda: self.status is not None and (self.raw or self.status != 200), "a connection")
        return self

    def wait(self, count: int, timeout_s: float = 30) -> list[dict[str, Any]]:
        """The messages, once there are that many."""
        wait_until(lambda: len(self.messages) >= count, f"{count} messages", timeout_s)
        return [message for _, message in self.messages]

    def ended(self, timeout_s: float = 30) -> list[dict[str, Any]]:
        """The messages, once the server has ended the stream."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the stream did not end"
        return [message for _, message in self.messages]

    def events(self) -> list[dict[str, Any]]:
        """The paper's events, in the order in which they were seen: the initial ones, then the live ones."""
        seen: list[dict[str, Any]] = []
        for _, message in self.messages:
            if message["type"] == "initial":
                seen = list(message["data"]["paper_generation_progress"])
            elif message["type"] == "paper_generation_progress":
                seen.append(message["data"])
        return seen
