"""A deployment under load, in which something breaks, and the facts about it for the oracle."""

import asyncio
import contextlib
import itertools
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil

from relay import migrate
from relay.stream.keys import ShardKeys, shard_of_run
from tests.acceptance.running import CLIENT, CONVERSATION, USER
from tests.canaries import TOKEN
from tests.faults.clients import SILENCE_S, Address, Producer, Watcher
from tests.faults.failover import Failover
from tests.faults.oracle import Back, Expected, Facts, Gauge, Ledger, Verdict, judge
from tests.faults.proxy import Proxy
from tests.faults.servers import Persister, Postgres, Server, Valkey, Web, until_in_thread
from tests.faults.stores import Stores
from tests.waiting import until

KEYS = ShardKeys(0)
SETTLE_S = 60.0
"""How long the archive and the viewers may take to catch up, before the oracle looks at what there is."""

FIRST_204_S, FIRST_LIVE_S = 5.0, 10.0


class World(Stores):
    """Stores, web workers, persisters, producers and viewers. Everything ends with `close`."""

    def __init__(
        self, place: Path, database_url: str, seed: int, scale: float = 1.0, long: bool = False
    ) -> None:
        super().__init__(database_url)
        self.place = place
        self.seed = seed
        self.scale = scale
        """How long faults last, of what their rows say: shorter in the ordinary suite."""
        self.long = long
        """Whether those last their ten minutes that should."""
        self.random = random.Random(seed)
        self.ledger = Ledger()
        self.webs: list[Web] = []
        self.persisters: list[Persister] = []
        self.producers: list[Producer] = []
        self.watchers: list[Watcher] = []
        self.faults: list[tuple[float, float]] = []
        self._servers: list[Server] = []
        self._proxies: list[Proxy] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._turn = itertools.count()
        self._files: dict[int, int] = {}
        self.gauges: list[Callable[[], Gauge]] = []
        """What else has to be back where it was."""

    # What there is

    async def up(self, *, webs: int = 1, persisters: int = 1, **env: str) -> None:
        """The ordinary deployment: Valkey, web workers and persisters, all ready."""
        await self.add_valkey()
        await asyncio.gather(
            *(self.add_web(**env) for _ in range(webs)), *(self.add_persister() for _ in range(persisters))
        )

    async def add_valkey(self, *lines: str) -> Valkey:
        made = Valkey(self.place / f"valkey-{len(self._servers)}", *lines)
        self.valkey = made
        await self._add(made)
        return made

    async def add_replica(self, port: int | None = None) -> Valkey:
        """A replica of Valkey with a file of its own and the same password, in step with it. `port`: of a
        proxy in between."""
        primary, directory = self.valkey, self.place / f"replica-{len(self._servers)}"
        directory.mkdir()
        password = primary.directory / "password"
        shutil.copy(password, directory)
        made = Valkey(
            directory, f"replicaof 127.0.0.1 {port or primary.port}", f"masterauth {password.read_text()}"
        )
        with contextlib.closing(self.redis()) as client:
            client.config_set("repl-diskless-sync-delay", 0)
        await self._add(made)

        def in_step() -> bool:
            with contextlib.closing(self.redis()) as client:
                client.set("in-step", 1, px=1000)
                return client.waitaof(1, 1, 500) == [1, 1]

        await until_in_thread(in_step, "the replica to be in step", SETTLE_S)
        return made

    async def add_failover(self, servers: Failover, shards: int) -> None:
        """Instead of one Valkey, several with replicas."""
        self._servers += [*servers.nodes, *servers.others]
        await servers.start()
        self.failover_url, self.shards = servers.url, shards

    async def add_postgres(self) -> Postgres:
        """A PostgreSQL for this row alone, with its tables; to be added before what uses it."""
        made = Postgres(self.place / "postgres")
        self.database_url = made.url
        await self._add(made)
        await asyncio.to_thread(migrate.upgrade, made.url)
        return made

    async def add_web(self, *launcher: str, redis_url: str | None = None, **env: str) -> Web:
        name = f"web-{len(self.webs) + 1}"
        made = Web(self.place, name, launcher, self._stores(redis_url), **env)
        self.webs.append(made)
        await self._add(made)
        return made

    async def add_persister(self, *launcher: str, redis_url: str | None = None, **env: str) -> Persister:
        name = f"persister-{len(self.persisters) + 1}"
        made = Persister(self.place, name, launcher, self._stores(redis_url), **env)
        self.persisters.append(made)
        await self._add(made)
        return made

    async def add_proxy(self, port: int) -> Proxy:
        made = await Proxy("127.0.0.1", port, self.seed).open()
        self._proxies.append(made)
        return made

    async def _add(self, server: Server) -> None:
        self._servers.append(server)
        await server.start()

    def _stores(self, redis_url: str | None) -> dict[str, str]:
        return {
            "REDIS_URL": redis_url or self.redis_url,
            "DATABASE_URL": self.database_url,
        }

    def anywhere(self) -> tuple[str, int]:
        """A web worker, in turn: what a load balancer without health checks does."""
        return "127.0.0.1", self.webs[next(self._turn) % len(self.webs)].port

    # Load

    async def load(
        self,
        *,
        runs: int = 6,
        viewers: int = 2,
        patience_s: float = 6.0,
        keyed: bool = True,
        address: Address | None = None,
        watch: Address | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        """Starts producers, one a run, and viewers of each run, and waits until all of them are at work."""
        for number in range(runs):
            run_id = f"run-{self.seed}-{number}"
            await self.claim(run_id)
            producer = Producer(run_id, self.ledger, address or self.anywhere, self.seed)
            producer.patience_s = patience_s
            producer.keyed = keyed
            self.producers.append(producer)
        self._files = {web.pid: _files(web.pid) for web in self.webs}
        for producer in self.producers:
            for number in range(viewers):
                made = self.watch(producer.run_id, f"viewer {number} of {producer.run_id}", watch)
                made.silence_s = silence_s
        for watcher in self.watchers:
            await until(watcher.admitted.is_set, f"{watcher.name} to be let in", SETTLE_S)
        for producer in self.producers:
            self._tasks.append(asyncio.create_task(producer.run()))
        await self.more(self.random.randint(50, 300))

    def watch(self, run_id: str, name: str, address: Address | None = None) -> Watcher:
        made = Watcher(run_id, name, address or self.anywhere, self.seed)
        self.watchers.append(made)
        self._tasks.append(asyncio.create_task(made.run()))
        return made

    async def retire(self, web: Web) -> int:
        """Takes a worker out of the rotation and asks it to stop; its exit code."""
        self.webs.remove(web)
        return await web.stop()

    async def claim(self, run_id: str) -> None:
        host, port = self.anywhere()
        owner = {"conversation_id": CONVERSATION, "user_id": USER}
        url, headers = (
            f"http://{host}:{port}/research-pipeline/runs/{run_id}",
            {"authorization": f"Bearer {TOKEN}"},
        )
        (await asyncio.to_thread(CLIENT.put, url, json=owner, headers=headers)).raise_for_status()

    async def more(self, events: int = 100, timeout_s: float = 120) -> None:
        """Waits until that many more are acknowledged."""
        goal = self.ledger.count + events
        await until(lambda: self.ledger.count >= goal, f"{events} more acknowledged events", timeout_s)

    async def trouble(self, calls: int = 1, timeout_s: float = 30) -> None:
        """Waits until that many more calls were not acknowledged."""

        def failed() -> int:
            return sum(count for status, count in self.ledger.statuses.items() if status != "204")

        goal = failed() + calls
        await until(lambda: failed() >= goal, "a call that is not acknowledged", timeout_s)

    async def last(self, seconds: float) -> None:
        """Lets a fault last that long; the load goes on meanwhile."""
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds * self.scale, over.set)
        await over.wait()

    @property
    def short(self) -> bool:
        """Whether this is the ordinary suite."""
        return self.scale < 1

    @contextlib.asynccontextmanager
    async def fault(self) -> AsyncIterator[None]:
        """Writes down when a fault began and when it was healed, and waits until all is back."""
        began = time.monotonic()
        yield
        self.faults.append((began, time.monotonic()))
        await self.more(self.random.randint(20, 100))

    async def pause(self) -> None:
        """Has all producers rest, each with its last event acknowledged."""
        for producer in self.producers:
            producer.go.clear()
        for producer in self.producers:
            await until(producer.idle.is_set, f"the producer of {producer.run_id} to rest", SETTLE_S)

    def go_on(self) -> None:
        for producer in self.producers:
            producer.go.set()

    @property
    def statuses(self) -> set[str]:
        """All that producers were told."""
        return set(self.ledger.statuses)

    # The end

    async def over(self, expected: Expected | None = None, settle_s: float = SETTLE_S) -> Verdict:
        """Ends the load once it is enough, lets everything settle for so long at most, and judges."""
        expected = expected or Expected()
        await self.more(max(1, expected.acknowledged - self.ledger.count))
        for producer in self.producers:
            producer.stop()
        for producer in self.producers:
            await until(producer.idle.is_set, f"the last event of {producer.run_id}", SETTLE_S)
        await self._settled(settle_s)
        for watcher in self.watchers:
            watcher.leave()
        await asyncio.gather(*self._tasks)
        with contextlib.suppress(AssertionError):
            await until(
                lambda: all(g.after <= g.before + g.slack for g in self._gauges()), "closed files", 10
            )
        return judge(await asyncio.to_thread(self.facts), expected)

    async def _settled(self, timeout_s: float) -> None:
        """Until the archive and all viewers have all; after a while the oracle says what is missing."""

        def settled() -> bool:
            archived = self.archived() + len(self.dead())
            acknowledged = Counter(mark.run_id for mark in self.ledger.acknowledged)
            behind = any(its.numbers < acknowledged[its.run_id] for its in self.watchers)
            return archived >= self.ledger.count and not behind and not any(self.group())

        with contextlib.suppress(AssertionError):
            await until_in_thread(settled, "all to settle", timeout_s)

    async def drained(self) -> None:
        """Waits until the archive has all that was acknowledged, and nothing is pending."""

        def done() -> bool:
            return self.archived() >= self.ledger.count and not any(self.group())

        await until_in_thread(done, "the archive to catch up", SETTLE_S)

    def facts(self) -> Facts:
        """What everybody holds. Needs Valkey and PostgreSQL."""
        pending, lag = self.group()
        shards = {its.run_id: shard_of_run(its.run_id, self.shards) for its in self.producers}
        return Facts(
            ledger=self.ledger,
            archive=self.archive(),
            viewers=[watcher.viewed for watcher in self.watchers],
            log=sorted(
                entry
                for keys in map(ShardKeys, range(self.shards))
                for entry in self.entries(keys.shard, keys.log)
            ),
            runs={its: self.entries(shard, ShardKeys(shard).run(its)) for its, shard in shards.items()},
            dead=self.dead(),
            pending=pending,
            lag=lag,
            gauges=self._gauges(),
            back=self._back(),
            faults=self.faults,
        )

    def _gauges(self) -> list[Gauge]:
        """Open files of the workers that lived through it all, and what a row adds."""
        files = [
            Gauge(f"open files of {web.part.name}", self._files[web.pid], _files(web.pid), 5 + self.shards)
            for web in self.webs
            if web.alive and web.pid in self._files
        ]
        return [*files, *(gauge() for gauge in self.gauges)]

    def _back(self) -> list[Back]:
        """How long the first 204, and the first live event, took after each fault."""
        shown = sorted(itertools.chain.from_iterable(watcher.arrivals for watcher in self.watchers))
        found = []
        for _, healed in self.faults:
            for name, times, limit in (
                ("the first 204", sorted(self.ledger.acked_at), FIRST_204_S),
                ("the first live event", shown, FIRST_LIVE_S),
            ):
                after = next((at for at in times if at > healed), None)
                if times:
                    found.append(Back(name, float("inf") if after is None else after - healed, limit))
        return found

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with contextlib.AsyncExitStack() as stack:  # so that each is ended, also where one fails
            stores = [server for server in self._servers if not isinstance(server, Web | Persister)]
            users = [server for server in self._servers if isinstance(server, Web | Persister)]
            for servers in (stores, users):  # the last first
                stack.push_async_callback(_all_of, *(server.clear() for server in servers))
            for proxy in self._proxies:
                stack.push_async_callback(proxy.close)


async def _all_of(*ends: Awaitable[None]) -> None:
    """All at once, and each to its end. Raises what the first raised that failed."""
    for outcome in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _files(pid: int) -> int:
    return psutil.Process(pid).num_fds()
