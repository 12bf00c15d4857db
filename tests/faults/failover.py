"""Deployments in which another server takes over by itself: a cluster, and a primary that sentinels watch."""

import asyncio
import contextlib
import random
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from relay.embedded import free_port
from relay.processes import Part
from relay.stream.keys import ShardKeys
from tests.faults.servers import Server, Valkey, until_in_thread

SLOTS = 16384
PRIMARIES = 3
AWAY_MS = 1_000
"""After how long a server that does not answer is held to be dead: far below the defaults, as a test is."""

PATIENT_MS = 15_000
"""The default, where nobody could take over anyway."""

BUS_PORTS = range(12_000, 20_000)
"""Below those that anybody is given, who would soon have one of these while so many servers start."""

SERVICE = "relay"
START_S = 60.0


def member(directory: Path, password: str, *lines: str) -> Valkey:
    """A server that may become the replica of another: all of them have the same password."""
    directory.mkdir()
    (directory / "password").write_text(password)
    return Valkey(directory, f"masterauth {password}", "repl-diskless-sync-delay 0", *lines)


def ask(server: Valkey, *words: Any) -> Any:
    """One command, on a connection of its own; the answer as it comes."""
    with contextlib.closing(redis.Redis.from_url(server.url, protocol=2, socket_timeout=5)) as client:
        client.response_callbacks.clear()
        return client.execute_command(*words)  # type: ignore[no-untyped-call]


class Failover(ABC):
    """Servers with their replicas."""

    def __init__(self) -> None:
        self.password = secrets.token_urlsafe(24)
        self.nodes: Sequence[Valkey] = ()
        self.others: Sequence[Server] = ()
        self.url: str

    @abstractmethod
    async def start(self) -> None:
        """Starts all of them, and waits until they are one deployment."""

    @abstractmethod
    def primary(self, shard: int) -> Valkey:
        """The node that the others hold to be it."""

    def replicas(self, primary: Valkey) -> list[Valkey]:
        return [node for node in self.nodes if node.alive and _primary_port(node) == primary.port]

    async def taken_over(self, shard: int, dead: Valkey) -> None:
        """Waits until another node is the primary, and says so itself."""

        def done() -> bool:
            now = self.primary(shard)
            return now is not dead and ask(now, "ROLE")[0] == b"master"

        await until_in_thread(done, "another node to take over", START_S)

    async def in_step(self, primaries: Sequence[Valkey], replicas: int) -> None:
        """Waits until each has that many replicas."""

        def done() -> bool:
            return all(len(ask(primary, "ROLE")[2]) == replicas for primary in primaries)

        await until_in_thread(done, "the replicas to be in step", START_S)

    def _node_at(self, port: int) -> Valkey:
        return next(node for node in self.nodes if node.port == port)


class Cluster(Failover):
    """Primaries with a replica each."""

    def __init__(self, place: Path, primaries: int = PRIMARIES, *, replicas: bool = True) -> None:
        super().__init__()
        self._primaries = primaries
        lines = [
            "cluster-enabled yes",
            f"cluster-node-timeout {AWAY_MS if replicas else PATIENT_MS}",
            "cluster-require-full-coverage no",
            "cluster-replica-validity-factor 0",
        ]
        self._ports = random.sample(BUS_PORTS, primaries * (1 + replicas))
        self.nodes = [
            member(place / f"node-{number}", self.password, *lines, f"cluster-port {port}")
            for number, port in enumerate(self._ports)
        ]
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        self.url = f"redis+cluster://:{self.password}@{hosts}"

    async def start(self) -> None:
        await asyncio.gather(*(node.start() for node in self.nodes))
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < self._primaries:
                begin, end = (SLOTS * part // self._primaries for part in (number, number + 1))
                ask(node, "CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
            if node is not first:
                ask(first, "CLUSTER", "MEET", "127.0.0.1", node.port, self._ports[number])
        everybody = b"cluster_known_nodes:%d" % len(self.nodes)
        await self._all_say(everybody)
        for number, node in enumerate(self.nodes[self._primaries :]):
            ask(node, "CLUSTER", "REPLICATE", ask(self.nodes[number], "CLUSTER", "MYID"))
        await self._all_say(b"cluster_state:ok")
        await self.in_step(self.nodes[: self._primaries], len(self.nodes) // self._primaries - 1)

    def move(self, shard: int, node: Valkey) -> None:
        """Gives the empty slot of a shard to another node."""
        slot, name = key_slot(ShardKeys(shard).log.encode()), ask(node, "CLUSTER", "MYID")
        # Said first, so that the node takes a newer epoch with the slot: older news can not take it back.
        ask(node, "CLUSTER", "SETSLOT", slot, "IMPORTING", ask(self.primary(shard), "CLUSTER", "MYID"))
        for other in (node, *self.nodes):
            ask(other, "CLUSTER", "SETSLOT", slot, "NODE", name)

    async def _all_say(self, line: bytes) -> None:
        def done() -> bool:
            return all(line in ask(node, "CLUSTER", "INFO") for node in self.nodes)

        await until_in_thread(done, line.decode(), START_S)

    def primary(self, shard: int) -> Valkey:
        slot = key_slot(ShardKeys(shard).log.encode())
        for node in self.nodes:
            if node.alive:
                ranges = ask(node, "CLUSTER", "SLOTS")
                port = next(its[2][1] for its in ranges if its[0] <= slot <= its[1])
                return self._node_at(port)
        raise AssertionError("no node is alive")


class Watched(Failover):
    """A primary with two replicas, and three sentinels."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        first = member(place / "node-0", self.password)
        follows = f"replicaof 127.0.0.1 {first.port}"
        self.nodes = [first, *(member(place / f"node-{n}", self.password, follows) for n in (1, 2))]
        self.others = self._sentinels = [Sentinel(place / f"sentinel-{n}", first) for n in range(3)]
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self._sentinels)
        self.url = f"redis+sentinel://:{self.password}@{hosts}/{SERVICE}/0"

    async def start(self) -> None:
        await self.nodes[0].start()
        await asyncio.gather(*(node.start() for node in self.nodes[1:]))
        await self.in_step(self.nodes[:1], 2)
        await asyncio.gather(*(sentinel.start() for sentinel in self._sentinels))

        def done() -> bool:
            found = [_pairs(its.ask("SENTINEL", "MASTER", SERVICE)) for its in self._sentinels]
            return all(its[b"num-slaves"] == its[b"num-other-sentinels"] == b"2" for its in found)

        await until_in_thread(done, "the sentinels to know everybody", START_S)

    def primary(self, shard: int) -> Valkey:
        _, port = self._sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return self._node_at(int(port))


class Sentinel(Server):
    """Watches a primary."""

    def __init__(self, directory: Path, primary: Valkey) -> None:
        directory.mkdir()
        self.port = free_port()
        password = (primary.directory / "password").read_text()
        config = directory / "sentinel.conf"
        config.touch(0o600)
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {directory}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2\n"
            f"sentinel auth-pass {SERVICE} {password}\n"
            f"sentinel down-after-milliseconds {SERVICE} {AWAY_MS}\n"
            f"sentinel failover-timeout {SERVICE} 10000\n"
            f"sentinel parallel-syncs {SERVICE} 2\n"
        )
        argv = [primary.part.argv[0], str(config), "--sentinel"]
        super().__init__(Part(directory.name, argv, self._answers, log=directory / "sentinel.log"))

    def ask(self, *words: Any) -> Any:
        with contextlib.closing(redis.Redis("127.0.0.1", self.port, protocol=2, socket_timeout=5)) as client:
            client.response_callbacks.clear()
            return client.execute_command(*words)  # type: ignore[no-untyped-call]

    def _answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except redis.exceptions.RedisError:
            return False


def _primary_port(node: Valkey) -> int | None:
    role = ask(node, "ROLE")
    return int(role[2]) if role[0] == b"slave" else None


def _pairs(reply: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(reply[::2], reply[1::2], strict=True))
