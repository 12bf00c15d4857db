"""The processes of a deployment, each of which can be killed, frozen, stopped and started again by itself."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import psutil

from relay import embedded
from relay.processes import Part, start
from relay.startup import EVERY_CHECK
from tests.acceptance.running import CLIENT, environment_with
from tests.waiting import T, until

INSECURE = {"RELAY_ALLOW_INSECURE": ",".join(EVERY_CHECK)}
"""The stores here are embedded ones. (A soak is no session of pytest, which would say so for all.)"""

ROOT = Path(__file__).parents[2]
START_S = 120.0
"""The tests run beside others, at low priority."""


class Server:
    """One process, with its port and directory the same over all its lives."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.process: subprocess.Popen[bytes] | None = None
        self._sessions: set[int] = set()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def output(self) -> str:
        """All that it ever wrote to its log."""
        assert self.part.log is not None
        return self.part.log.read_text(errors="replace")

    def launch(self) -> None:
        """Starts it, without waiting. From the main thread: its death would end the process otherwise."""
        self.process = start(self.part)
        self._sessions.add(self.pid)

    async def start(self) -> None:
        self.launch()
        await self.ready()

    async def ready(self) -> None:
        def is_ready() -> bool:
            assert self.alive, f"{self.part.name} ended while starting:\n{self.output[-2000:]}"
            return self.part.ready()

        await until_in_thread(is_ready, f"{self.part.name} to be ready", START_S)

    def send(self, how: signal.Signals) -> None:
        os.kill(self.pid, how)

    def freeze(self) -> None:
        """Stops it, with its children, so that it neither works nor answers."""
        for pid in self._family():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._family():
            os.kill(pid, signal.SIGCONT)

    def _family(self) -> list[int]:
        return [self.pid, *(child.pid for child in psutil.Process(self.pid).children(recursive=True))]

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> int:
        """Asks it to stop; its exit code."""
        self.send(self.part.stop_signal)
        return await self.ended()

    async def ended(self, timeout_s: float = START_S) -> int:
        process = self.process
        assert process is not None
        await until(lambda: process.poll() is not None, f"the end of {self.part.name}", timeout_s)
        assert process.returncode is not None
        return process.returncode

    def wrap(self, *before: str, **env: str) -> None:
        """Runs it by way of another program, or in another environment, from the next start on. A program in
        between has to end with it: what is asked to stop is that program."""
        self.part = replace(self.part, argv=[*before, *self.part.argv], env={**self.part.env, **env})

    def set_clock(self, offset: str) -> None:
        """Has its wall clock off by that much, from the next start on. Not by way of the program `faketime`,
        which would stay between us and the server, and leave it behind when it is asked to stop."""
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
        self.wrap(LD_PRELOAD=str(library), FAKETIME=offset, FAKETIME_DONT_FAKE_MONOTONIC="1")

    async def clear(self) -> None:
        """Ends it, whatever state it is in, and fails if anything else of it was still there."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                self.thaw()
                self.send(self.part.stop_signal)
            with contextlib.suppress(AssertionError):
                await self.ended(20)
        if self.alive:
            await self.kill()
        left = self._left_behind()
        names = [process.name() for process in left]
        for process in left:
            process.kill()
        psutil.wait_procs(left)
        assert not left, f"{self.part.name} left behind: {', '.join(names)}"

    def _left_behind(self) -> list[psutil.Process]:
        """What still runs of all that was ever started here: each start is a session of its own."""
        return [process for process in psutil.process_iter() if _session(process) in self._sessions]


class Valkey(Server):
    """Valkey with an append-only file, as `relay up` runs it."""

    def __init__(self, directory: Path, *lines: str) -> None:
        part, self.url = embedded.valkey(directory)
        self.directory = directory
        self.port = int(self.url.rpartition(":")[2].partition("/")[0])
        with (directory / "valkey.conf").open("a") as config:
            config.writelines(f"{line}\n" for line in lines)
        super().__init__(part)

    def url_by(self, port: int) -> str:
        """Its URL by way of a proxy."""
        return self.url.replace(f":{self.port}/", f":{port}/")


class Postgres(Server):
    """A PostgreSQL of its own, for rows that break it."""

    def __init__(self, directory: Path) -> None:
        part, self.url = embedded.postgres(directory)
        super().__init__(part)


class Web(Server):
    """A web worker on a port of its own."""

    def __init__(
        self, place: Path, name: str, launcher: Sequence[str], stores: dict[str, str], **env: str
    ) -> None:
        self.port = embedded.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        argv = [*program("relay", launcher), "serve", "--port", str(self.port)]
        quick = {
            **INSECURE,
            "RELAY_KEEP_ALIVE_S": "1",
            "RELAY_VIEWERS_PER_USER": "2000",
            "PYTHONPATH": str(ROOT),
        }
        environment = environment_with(**stores, **{**quick, **env})
        super().__init__(Part(name, argv, self._answers, env=environment, log=place / f"{name}.log"))

    def _answers(self) -> bool:
        try:
            return CLIENT.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


class Persister(Server):
    """A persister that takes over from a silent peer after two seconds."""

    def __init__(
        self, place: Path, name: str, launcher: Sequence[str], stores: dict[str, str], **env: str
    ) -> None:
        argv = [*program("persister", launcher), "run", "--name", name]
        quick = {"RELAY_PERSISTER_CLAIM_S": "2", "PYTHONPATH": str(ROOT)}
        environment = environment_with(**stores, **{**INSECURE, **quick, **env})
        super().__init__(Part(name, argv, lambda: True, env=environment, log=place / f"{name}.log"))


def program(name: str, launcher: Sequence[str]) -> list[str]:
    """How to run a program of the product: as it is, or by way of a launcher of ours, `failing POINT`."""
    return [sys.executable, "-m", *((f"tests.faults.{launcher[0]}", *launcher[1:]) if launcher else ()), name]


def _session(process: psutil.Process) -> int | None:
    """None: it is gone, or as good as gone."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


async def until_in_thread(predicate: Callable[[], T], what: str, timeout_s: float) -> T:
    """The same for a predicate that asks servers, without stopping the event loop meanwhile."""

    def asked() -> Awaitable[T]:
        return asyncio.to_thread(predicate)

    return await until(asked, what, timeout_s)
