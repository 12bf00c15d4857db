"""nginx and Caddy with the configurations that we ship, in front of web workers, and curl as their client."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from relay.embedded import free_port
from relay.processes import Part, running
from tests.acceptance.certificates import Authority
from tests.acceptance.running import Relay, answers, environment_with, viewer
from tests.waiting import wait_until

SHIPPED = Path(__file__).parents[2] / "deploy"

ALONE = "proxy_ignore_headers X-Accel-Buffering;\n"
"""The file alone has to turn buffering off, without the relay's own header."""


def worker(relay: Relay, port: int, place: Path) -> Part:
    """A web worker of its own at this port, on the stores of a running product."""
    argv = [sys.executable, "-m", "relay", "serve", "--host", "127.0.0.1", "--port", str(port)]
    env = environment_with(REDIS_URL=relay.redis_url, DATABASE_URL=relay.database_url)
    ready = f"http://127.0.0.1:{port}"
    return Part(f"web-{port}", argv, lambda: answers(ready), env=env, log=place / f"web-{port}.log")


class Balancer:
    """One that runs. Its name is localhost, and its certificate that of a test's own authority."""

    def __init__(self, place: Path, log: str) -> None:
        place.mkdir(exist_ok=True)
        self.port = free_port()
        self.authority = Authority(place / "authority")
        self.url = f"https://localhost:{self.port}"
        self.access_log = place / log

    @property
    def log(self) -> str:
        return self.access_log.read_text()

    def is_ready(self) -> bool:
        argv = self.curl("/livez", "--output", "/dev/null")
        return subprocess.run(argv, capture_output=True, timeout=20, check=False).returncode == 0

    def curl(self, path: str, *words: str) -> list[str]:
        """The command that sends a request through it."""
        return ["curl", "-sSN", "--cacert", str(self.authority.ca), *words, self.url + path]

    def ask(self, path: str, *words: str) -> tuple[str, str, str]:
        """Status, version of HTTP, and body of an answer."""
        argv = self.curl(path, "--write-out", r"\n%{http_code} %{http_version}", *words)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
        body, _, last = done.stdout.rpartition("\n")
        status, version = last.split()
        return status, version, body


@contextlib.contextmanager
def nginx(place: Path, ports: Sequence[int]) -> Iterator[Balancer]:
    """nginx in front of the upstreams at these ports, as deploy/nginx/relay.conf has it."""
    balancer = Balancer(place, "access.log")
    changes = {
        "10.0.0.11:8000": f"127.0.0.1:{ports[0]}",
        "10.0.0.12:8000": f"127.0.0.1:{ports[1]}",
        "listen 443 ": f"listen 127.0.0.1:{balancer.port} ",
        "relay.example.com": "localhost",
        "/etc/relay/cert.pem": str(balancer.authority.certificate),
        "/etc/relay/key.pem": str(balancer.authority.key),
        "/var/log/nginx/relay.log": str(balancer.access_log),
    }
    (place / "relay.conf").write_text(adapted("nginx/relay.conf", changes))
    temporary = "".join(
        f"{kind}_temp_path {place}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (place / "nginx.conf").write_text(
        f"{'user root;' if os.geteuid() == 0 else ''}\ndaemon off;\npid {place}/pid;\n"
        "worker_shutdown_timeout 1s;\nevents {}\n"
        f"http {{\n{temporary}{ALONE}include {place}/relay.conf;\n}}\n"
    )
    argv = ["/usr/sbin/nginx", "-e", str(place / "nginx.log"), "-c", str(place / "nginx.conf")]
    with running(Part("nginx", argv, balancer.is_ready, log=place / "nginx.log")):
        yield balancer


@contextlib.contextmanager
def caddy(place: Path, ports: Sequence[int]) -> Iterator[Balancer]:
    """Caddy in front of them, as deploy/caddy/Caddyfile has it; but it asks nobody for a certificate, and
    opens no other port."""
    balancer = Balancer(place, "caddy.log")
    given = f"tls {balancer.authority.certificate} {balancer.authority.key}"
    changes = {
        "10.0.0.11:8000": f"127.0.0.1:{ports[0]}",
        "10.0.0.12:8000": f"127.0.0.1:{ports[1]}",
        "relay.example.com {": f"https://localhost:{balancer.port} {{\n\tbind 127.0.0.1\n\t{given}",
        "{\n\tservers {": "{\n\tadmin off\n\tauto_https disable_redirects\n\tservers {",
    }
    config = place / "Caddyfile"
    config.write_text(adapted("caddy/Caddyfile", changes))
    argv = ["caddy", "run", "--adapter", "caddyfile", "--config", str(config)]
    own = {name: str(place) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    with running(Part("caddy", argv, balancer.is_ready, env=own, log=balancer.access_log)):
        yield balancer


def adapted(path: str, changes: Mapping[str, str]) -> str:
    """A shipped file with what it says is meant to be changed. Each of these is really in it."""
    text = (SHIPPED / path).read_text()
    for shipped, ours in changes.items():
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, ours)
    return text


class CurlViewer:
    """Follows a run through the balancer, with the version of HTTP that is asked for."""

    def __init__(self, balancer: Balancer, path: str, version: str, position: int | None = None) -> None:
        self.balancer = balancer
        self.version = version
        self.position = position
        self.messages: list[dict[str, Any]] = []
        words = [f"--http{version}", "--header", f"authorization: {viewer()['authorization']}"]
        words += ["--header", f"last-event-id: {position}"] if position is not None else []
        argv = balancer.curl(f"{path}?resume=true", *words)
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            field, _, value = line.rstrip("\n").partition(": ")
            if field == "id":
                self.position = int(value)
            elif field == "data":
                self.messages.append(json.loads(value))

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def numbers(self) -> list[int]:
        """The numbers of the events that it saw, in order."""
        seen: list[int] = []
        for message in self.messages:
            if message["type"] == "initial":
                seen += [event["details"]["number"] for event in message["data"]["paper_generation_progress"]]
            elif message["type"] == "paper_generation_progress":
                seen.append(message["data"]["details"]["number"])
        return seen

    def wait(self, *numbers: int, timeout_s: float = 10) -> None:
        """Until it has seen exactly these: sooner than a keep-alive could push them through a buffer."""
        wait_until(lambda: len(self.numbers()) >= len(numbers), f"events {numbers}", timeout_s)
        assert self.numbers() == list(numbers)

    def close(self) -> None:
        if not self.ended:
            self._process.terminate()
        self._process.wait(20)
        self._thread.join(20)
        if self._process.stdout is not None:
            self._process.stdout.close()
