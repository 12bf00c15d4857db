"""By TLS to those who know where a primary is, and to the one that they name: each of them is verified."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
import redis.exceptions
from click.testing import CliRunner

from persister.__main__ import main
from persister.loop import Loop
from persister.settings import Settings as PersisterSettings
from persister.store import Store
from relay import connect
from relay.connect import Database
from relay.errors import Misconfigured
from relay.history import History
from relay.processes import Part, running
from relay.settings import Settings
from relay.startup import refuse_insecure
from relay.stream import tail
from relay.stream.keys import ShardKeys
from relay.stream.publish import Publisher
from tests.acceptance.certificates import Authority
from tests.conftest import Servers
from tests.factories import event
from tests.faults.failover import BUS_PORTS, SERVICE, SLOTS
from tests.integration.test_tail import seen, tailing
from tests.waiting import until, wait_until

PASSWORD, OF_SENTINEL = "a-password-of-these-tests", "another-one-for-sentinels"

pytestmark = pytest.mark.usefixtures("patient")


class Tls(NamedTuple):
    """Servers that speak nothing else, with certificates for `localhost`."""

    place: Path
    authority: Authority
    other: Authority


@pytest.fixture(scope="module")
def tls(directory: Path) -> Tls:
    place = directory / "tls"
    place.mkdir()
    return Tls(place, Authority(place / "authority"), Authority(place / "other"))


def client(port: int, tls: Tls, password: str = PASSWORD) -> redis.Redis:
    return redis.Redis.from_url(
        f"rediss://:{password}@localhost:{port}", ssl_ca_certs=str(tls.authority.ca), protocol=2
    )


def say(node: redis.Redis, *words: str | int) -> Any:
    return node.execute_command(*words)  # type: ignore[no-untyped-call]


def server(tls: Tls, name: str, port: int, *lines: str) -> Part:
    """Debian's Redis. (Valkey's wheel was built without TLS.)"""
    place = tls.place / name
    place.mkdir()
    config = place / "redis.conf"
    secured = [f"requirepass {PASSWORD}", "appendonly yes", 'save ""'] if name != "sentinel" else []
    common = ["bind 127.0.0.1", "port 0", f"tls-port {port}", f"dir {place}", "tls-auth-clients no"]
    authority = tls.authority
    common += [f"tls-cert-file {authority.certificate}", f"tls-key-file {authority.key}"]
    common += [f"tls-ca-cert-file {authority.ca}", "tls-replication yes"]
    config.write_text("\n".join([*common, *secured, *lines, ""]))

    def ready() -> bool:
        with closing(client(port, tls, PASSWORD if secured else OF_SENTINEL)) as asking:
            try:
                return bool(asking.ping())
            except redis.exceptions.ConnectionError:
                return False

    mode = [] if secured else ["--sentinel"]
    return Part(name, ["redis-server", str(config), *mode], ready, log=place / "redis.log")


@pytest.fixture(scope="module")
def cluster(tls: Tls) -> Iterator[str]:
    """Two nodes, of which the URL names the one that does not have shard 0."""
    *ports, bus, other_bus = random.sample(BUS_PORTS, 4)
    buses = [bus, other_bus]
    named = ["cluster-announce-hostname localhost", "cluster-preferred-endpoint-type hostname"]
    with ExitStack() as stack:
        for number, (port, bus) in enumerate(zip(ports, buses, strict=True)):
            lines = ["cluster-enabled yes", "tls-cluster yes", f"cluster-port {bus}", *named]
            stack.enter_context(running(server(tls, f"node-{number}", port, *lines)))
        one, other = (stack.enter_context(closing(client(port, tls))) for port in ports)
        for number, node in enumerate((one, other)):
            begin = number * SLOTS // 2
            say(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            say(node, "CLUSTER", "ADDSLOTSRANGE", begin, begin + SLOTS // 2 - 1)
        say(one, "CLUSTER", "MEET", "127.0.0.1", ports[1], buses[1])

        def agreed() -> bool:
            told = [say(node, "CLUSTER", "SLOTS") for node in (one, other)]
            info = [say(node, "CLUSTER", "INFO") for node in (one, other)]
            named = all([its[2][0] for its in slots] == [b"localhost"] * 2 for slots in told)
            return named and all(b"cluster_state:ok" in its for its in info)

        wait_until(agreed, "the nodes to know each other by name")
        yield f"rediss+cluster://:{PASSWORD}@localhost:{ports[0]}/?ssl_ca_certs="


@pytest.fixture(scope="module")
def sentinel(tls: Tls) -> Iterator[str]:
    """A primary, and one who watches it and has a password of its own."""
    primary, port = random.sample(BUS_PORTS, 2)
    lines = ["sentinel resolve-hostnames yes", "sentinel announce-hostnames yes"]
    lines += [f"sentinel monitor {SERVICE} localhost {primary} 1", f"requirepass {OF_SENTINEL}"]
    lines += [f"sentinel auth-pass {SERVICE} {PASSWORD}"]
    with running(server(tls, "primary", primary)), running(server(tls, "sentinel", port, *lines)):
        query = f"sentinel_password={OF_SENTINEL}&ssl_ca_certs="
        yield f"rediss+sentinel://:{PASSWORD}@localhost:{port}/{SERVICE}/0?{query}"


@pytest.fixture(params=["cluster", "sentinel"])
def url(request: pytest.FixtureRequest) -> str:
    """Without its end, the file of the authority."""
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def publisher(url: str, tls: Tls, database: Database) -> AsyncIterator[Publisher]:
    made = Publisher(
        lambda shard: connect.append_link(f"{url}{tls.authority.ca}", shard=shard),
        History(database).highest,
        shards=1,
        deadline_s=20,
        remember_ms=60_000,
    )
    yield made
    await made.close()


async def test_an_event_is_stored_seen_and_archived(
    url: str, tls: Tls, publisher: Publisher, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "BLOCK_MS", 100)
    url += str(tls.authority.ca)
    async with tailing(url) as tailed:
        ids = await publisher.append([event(), event()])
        await until(lambda: seen(tailed.wire) == ids, "the events")
    shared = connect.shared_link(url)
    assert await shared.ask("XLEN", ShardKeys(0).log) == 2
    await shared.close()
    store = Store(lambda: connect.database(servers.database_url))
    with closing(store), closing(connect.persister_redis(url)) as client:
        assert Loop(client, store, 0, PersisterSettings(persister_name="p")).step() == 2
        assert store.highest() == ids[-1]


def refused(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a program is refused for that is given the URL."""
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(Misconfigured) as caught:
        refuse_insecure(Settings())
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("RELAY_ALLOW_INSECURE", "embedded,postgres-password")
    return monkeypatch


def test_a_certificate_that_is_not_trusted_is_refused_with_what_to_do(
    url: str, tls: Tls, strict: pytest.MonkeyPatch
) -> None:
    strict.setenv("REDIS_URL", f"{url}{tls.authority.ca}")
    assert refuse_insecure(Settings()) == []
    for wrong in (f"{url}{tls.other.ca}", f"{url}{tls.authority.ca}".replace("@localhost", "@127.0.0.1")):
        said = refused(wrong, strict)
        assert said.startswith("The certificate of Redis is not trusted.")
        assert "`ssl_ca_certs` in REDIS_URL" in said
        typed = CliRunner().invoke(main, ["dead-letters", "list"])
        assert (typed.exit_code, typed.output) == (1, f"Error: {said}\n")


def test_a_node_that_is_named_by_its_address_needs_a_certificate_for_that(
    cluster: str, tls: Tls, strict: pytest.MonkeyPatch
) -> None:
    asked = int(cluster.rpartition(":")[2].partition("/")[0])
    with closing(client(asked, tls)) as node:
        node.config_set("cluster-preferred-endpoint-type", "ip")
        try:
            assert "cluster-announce-hostname" in refused(f"{cluster}{tls.authority.ca}", strict)
        finally:
            node.config_set("cluster-preferred-endpoint-type", "hostname")
