"""The processes of a measurement, each on its cores: the stores, our web workers, and nginx with nchan."""

import contextlib
import os
import resource
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg2
import redis
from psycopg2.extensions import connection as Connection  # noqa: N812

from benchmarks.load import MARK, WentWrong
from benchmarks.nchan import Nchan, configuration, installed
from benchmarks.ours import SECRET, TOKEN, Relay, relay
from relay import embedded, migrate
from relay.events.registry import TABLES
from relay.processes import Part, running
from relay.server import listen
from relay.startup import EVERY_CHECK
from relay.stream.entry import run_of
from relay.stream.keys import ShardKeys

WEB, REST = "0", "1"
"""The core of the web process under test, and that of the stores and the load."""

LOG = ShardKeys(0).log


class Lab:
    """Valkey and PostgreSQL, and what is started beside them."""

    def __init__(self, directory: Path, redis_url: str, database_url: str) -> None:
        self.directory = directory
        self.redis_url = redis_url
        self.database_url = database_url
        self.stores: list[psutil.Process] = []
        self._names = 0

    def clear(self) -> None:
        """Empties both stores, as nobody uses them."""
        with self.redis() as client:
            client.flushall()
        with self.database() as connection, connection.cursor() as cursor:
            for table in TABLES:
                cursor.execute(f"TRUNCATE {table}")
            cursor.execute("CHECKPOINT")

    def runs(self, count: int) -> list[str]:
        """Names of runs that were never used before."""
        self._names += 1
        return [f"run-{self._names}-{number}" for number in range(count)]

    @contextlib.contextmanager
    def redis(self) -> Iterator[Any]:
        with contextlib.closing(redis.Redis.from_url(self.redis_url, protocol=2)) as client:
            for command in ("XRANGE", "XREVRANGE"):  # as the server sends them, and fast
                client.set_response_callback(command, lambda reply, **_: reply)
            yield client

    @contextlib.contextmanager
    def database(self) -> Iterator[Connection]:
        with contextlib.closing(psycopg2.connect(self.database_url)) as connection:
            connection.autocommit = True
            yield connection

    @contextlib.contextmanager
    def relay(self, *, cores: str = WEB, workers: int = 1) -> Iterator[tuple[Relay, psutil.Process]]:
        """Our web service, and its (first) process."""
        with listen("127.0.0.1", 0) as listener:
            port: int = listener.getsockname()[1]
            argv = [sys.executable, "-m", "relay", "serve", "--fd", str(listener.fileno())]
            argv += ["--workers", str(workers)]
            part = self.pinned(
                Part("web", argv, lambda: _ready(port), pass_fds=[listener.fileno()], env=self.environment()),
                cores,
            )
            with running(part) as process:
                yield relay(port), psutil.Process(process.pid)

    @contextlib.contextmanager
    def nchan(self, *, redis: bool) -> Iterator[tuple[Nchan, psutil.Process]]:
        """nginx with nchan, in memory or through the same Valkey, and its worker process."""
        port = embedded.free_port()
        with tempfile.TemporaryDirectory(dir=self.directory) as place:
            config = Path(place) / "nginx.conf"
            config.write_text(configuration(Path(place), port, self.redis_url if redis else None))
            part = Part("nginx", [installed(), "-c", str(config)], lambda: _listens(port))
            with running(self.pinned(part, WEB)) as process:
                (worker,) = psutil.Process(process.pid).children()
                yield (
                    Nchan("nchan through Redis" if redis else "nchan in memory", port, b"\r\n\r\n", False),
                    worker,
                )

    def pinned(self, part: Part, cores: str) -> Part:
        """A part on these cores only, with its output in the lab's directory."""
        return replace(
            part, argv=["taskset", "-c", cores, *part.argv], log=self.directory / f"{part.name}.log"
        )

    @contextlib.contextmanager
    def on(self, cores: str) -> Iterator[None]:
        """Has this process itself run on these cores."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, set(map(int, cores.split(","))))
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    @contextlib.contextmanager
    def stores_on(self, cores: str) -> Iterator[None]:
        """Has the stores run on these cores."""
        self._move(cores)
        try:
            yield
        finally:
            self._move(REST)

    def _move(self, cores: str) -> None:
        for store in self.stores:
            for process in (store, *store.children(recursive=True)):
                for thread in process.threads():
                    os.sched_setaffinity(thread.id, set(map(int, cores.split(","))))

    def environment(self) -> dict[str, str]:
        """What our processes need to know."""
        return {
            "REDIS_URL": self.redis_url,
            "DATABASE_URL": self.database_url,
            "TELEMETRY_WEBHOOK_TOKEN": TOKEN,
            "RELAY_VIEWER_SECRET": SECRET,
            "RELAY_ALLOW_INSECURE": ",".join(EVERY_CHECK),
        }

    def top(self) -> bytes:
        """Where the shard log ends now."""
        with self.redis() as client:
            entry = client.execute_command("XREVRANGE", LOG, "+", "-", "COUNT", 1)
        return bytes(entry[0][0]) if entry else b"0-0"

    def check_log(self, posted: int, *, after: bytes) -> None:
        """Raises WentWrong unless the shard log holds so many more events, each producer's in order."""
        counted: dict[bytes, int] = defaultdict(int)
        for run, mark in self.marks(after):
            name, number = run + mark[:3], int(mark[3:12])
            if number != counted[name]:
                raise WentWrong(f"the log holds event {number} of a producer where {counted[name]} was next")
            counted[name] += 1
        if sum(counted.values()) != posted:
            raise WentWrong(f"{posted} events were acknowledged, and the log holds {sum(counted.values())}")

    def marks(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(run, mark) of the entries of the shard log after `start`."""
        with self.redis() as client:
            while page := client.execute_command("XRANGE", LOG, b"(" + start, "+", "COUNT", 5000):
                for _, (_, entry) in page:
                    place = entry.index(MARK[:8]) + 8
                    yield run_of(entry).encode(), entry[place : place + 28]
                start = page[-1][0]


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """The stores, with the schema, for as long as the context lasts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.sched_setaffinity(0, {int(REST)})
    place = Path(tempfile.mkdtemp(prefix="rp-relay-bench-"))
    place.chmod(0o755)
    try:
        valkey, redis_url = embedded.valkey(place / "valkey")
        postgres, database_url = embedded.postgres(place / "postgres")
        stores = Lab(place, redis_url, database_url)
        with running(stores.pinned(valkey, REST)) as one, running(stores.pinned(postgres, REST)) as other:
            stores.stores = [psutil.Process(one.pid), psutil.Process(other.pid)]
            migrate.upgrade(database_url)
            yield stores
    finally:
        shutil.rmtree(place)


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _listens(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", timeout=2).status_code == 204
    except httpx.HTTPError:
        return False
