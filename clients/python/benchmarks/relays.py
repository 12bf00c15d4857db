"""Relays for the benchmarks: the real one, as `relay up`, and a slow one."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

TOKEN = "token-of-the-benchmarks"


class Running(NamedTuple):
    """A `relay up`, and the line that it printed when it was ready."""

    process: "subprocess.Popen[str]"
    ready: dict[str, Any]


@contextlib.contextmanager
def relay_up() -> Iterator[Running]:
    """The real relay with its embedded servers, in a temporary directory."""
    with tempfile.TemporaryDirectory() as directory:
        argv = [sys.executable, "-m", "relay", "up", "--port", "0", "--data-dir", f"{directory}/data"]
        env = {**os.environ, "TELEMETRY_WEBHOOK_TOKEN": TOKEN}
        with (Path(directory) / "log").open("wb") as log:
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, env=env, text=True)
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line, (Path(directory) / "log").read_text()
                yield Running(process, json.loads(line))
            finally:
                process.terminate()
                process.communicate(timeout=60)


@contextlib.contextmanager
def slow_relay(pause_s: float) -> Iterator[str]:
    """The URL of a relay that takes its time over each batch, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=[there, pause_s], daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.kill()
        process.join()


def _serve(pipe: Any, pause_s: float) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(pause_s)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()
