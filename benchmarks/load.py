"""The load generator, load.c, as Python sees it: a plan of requests, and commands with checked answers."""

import hashlib
import json
import struct
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MARK = b'"mark":"' + b"0" * 28 + b'"'
"""Where an event carries its producer, number and time; load.c fills the digits in."""

SETTLE_S = 0.5
"""nchan asks Redis for a channel's news only after it has answered the viewer."""

_SOURCES = Path(__file__).parent
_BUILD = Path(tempfile.gettempdir()) / "rp-relay-benchmarks"


class WentWrong(Exception):
    """An event was lost, repeated or out of order, or a request was refused: the figure is worth nothing."""


@dataclass(frozen=True)
class Service(ABC):
    """Something that takes POSTs and feeds viewers. `ready` is what a new viewer reads before it has all up
    to now; `to_blank`: and the rest of that block."""

    name: str
    port: int
    ready: bytes
    to_blank: bool

    @abstractmethod
    def post(self, run: str, events: int) -> bytes:
        """A whole POST of so many events to a run, each with a mark."""

    def claim(self, runs: Sequence[str]) -> None:  # noqa: B027 - most need not
        """Makes the runs known, where viewers need that."""

    @abstractmethod
    def view(self, run: str) -> bytes:
        """A GET of the run's stream, but for the empty line at its end."""


@dataclass(frozen=True)
class Answer:
    """What came of a command. Latencies are from the moment a POST was due to the read of the frame."""

    seconds: float
    posting_s: float
    posts: int
    refused: int
    deliveries: int
    missing: int
    repeated: int
    gaps: int
    closed: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_s: float

    @property
    def deliveries_per_s(self) -> float:
        return self.deliveries / self.seconds

    def check(self, what: str) -> Self:
        """Raises WentWrong unless every event came to every viewer once and in order."""
        wrong = {
            name: value
            for name in ("refused", "missing", "repeated", "gaps", "closed")
            if (value := getattr(self, name))
        }
        if wrong:
            raise WentWrong(f"{what}: {wrong}")
        return self


class Load:
    """Producers and viewers of one service, on the cores given."""

    def __init__(
        self,
        service: Service,
        runs: Sequence[str],
        *,
        producers: int = 1,
        viewers: int = 0,
        batch: int = 1,
        cores: str = "1",
        ids: bool = False,
    ) -> None:
        self._what = service.name
        self._plan = tempfile.NamedTemporaryFile(prefix="plan-")  # noqa: SIM115 - closed by __exit__
        write = self._plan.write
        write(struct.pack("=5I", producers, len(runs), viewers, service.to_blank, ids))
        write(_text(service.ready))
        for run in runs:
            write(_text(service.post(run, batch)))
        for viewer in range(viewers):
            write(struct.pack("=I", viewer % len(runs)) + _text(service.view(runs[viewer % len(runs)])))
        self._plan.flush()
        argv = [
            "taskset",
            "-c",
            cores,
            str(compiled("load")),
            "127.0.0.1",
            str(service.port),
            self._plan.name,
        ]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def connect(self) -> Answer:
        """All viewers, until each has read all up to now."""
        answer = self._command("connect").check(f"{self._what}, connect")
        time.sleep(SETTLE_S)
        return answer

    def post(self, seconds: float = 0, count: int = 0, rate: float = 0, *, watched: bool = True) -> Answer:
        """POSTs, `rate` a second or as fast as answers come. `watched`: until all viewers have them all."""
        answer = self._command(f"post {seconds} {count} {rate}")
        if not watched:
            answer = Answer(**{**vars(answer), "missing": 0})
        return answer.check(f"{self._what}, post")

    def expect(self, count: int) -> Answer:
        return self._command(f"expect {count}").check(f"{self._what}, expect")

    def drop(self) -> None:
        self._command("drop")

    def resume(self) -> Answer:
        return self._command("resume").check(f"{self._what}, resume")

    def _command(self, line: str) -> Answer:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("the pipes were asked for")
        stdin.write(line + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise WentWrong(f"{self._what}: the load generator gave up")
        fields: dict[str, Any] = json.loads(answer)
        return Answer(**fields)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()
        self._plan.close()


def compiled(name: str) -> Path:
    """A C program of this directory, compiled where its source is new."""
    source = _SOURCES / f"{name}.c"
    program = _BUILD / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        _BUILD.mkdir(exist_ok=True)
        subprocess.run(["gcc", "-O2", "-Wall", "-o", str(program), str(source)], check=True)
    return program


def _text(data: bytes) -> bytes:
    return struct.pack("=I", len(data)) + data
