"""Connections: shared, honest about failures, and found again."""

import asyncio
import select
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import psycopg2.extensions
import pytest
import redis
import uvloop

from relay import connect, embedded
from relay.connect import Database
from relay.errors import DatabaseUnavailable, Misconfigured
from relay.processes import running
from tests.conftest import Servers
from tests.waiting import until


@pytest.fixture
def client(servers: Servers) -> Iterator[redis.Redis]:
    opened = redis.Redis.from_url(servers.redis_url, protocol=2)
    yield opened
    opened.close()


async def test_many_questions_share_a_connection_and_equal_ones_an_answer(
    servers: Servers, client: redis.Redis
) -> None:
    client.mset({str(number): number for number in range(500)})
    client.config_resetstat()
    link = connect.shared_link(servers.redis_url)
    answers = await asyncio.gather(*(link.ask("GET", str(number // 2)) for number in range(1000)))
    assert answers == [b"%d" % (number // 2) for number in range(1000)]
    stats = client.info("commandstats")
    assert stats["cmdstat_get"]["calls"] == 500
    await link.close()


async def test_a_refused_question_hurts_no_other(servers: Servers, client: redis.Redis) -> None:
    client.set("text", "x")
    link = connect.shared_link(servers.redis_url)
    asked = [link.ask("INCR", "text"), link.ask("GET", "text"), link.ask("NONSENSE")]
    refused, answered, unknown = await asyncio.gather(*asked, return_exceptions=True)
    assert answered == b"x"
    assert [type(error) for error in (refused, unknown)] == [redis.exceptions.ResponseError] * 2
    await link.close()


async def test_an_answer_is_never_older_than_its_question(servers: Servers, client: redis.Redis) -> None:
    link = connect.shared_link(servers.redis_url)
    client.set("n", 0)
    for number in range(50):
        before = asyncio.create_task(link.ask("GET", "n"))
        await asyncio.sleep(0)
        client.set("n", number)
        assert await link.ask("GET", "n") == b"%d" % number
        await before
    await link.close()


async def test_one_who_gives_up_waiting_does_not_spoil_it_for_others(
    servers: Servers, client: redis.Redis
) -> None:
    client.set("k", "v")
    link = connect.shared_link(servers.redis_url)
    one, other = asyncio.create_task(link.ask("GET", "k")), asyncio.create_task(link.ask("GET", "k"))
    await asyncio.sleep(0)
    one.cancel()
    assert await other == b"v"
    await link.close()


async def test_a_connection_that_died_unnoticed_is_replaced(servers: Servers, client: redis.Redis) -> None:
    link = connect.shared_link(servers.redis_url)
    await link.ask("PING")
    client.client_kill_filter(_type="normal", skipme=True)
    assert await link.ask("PING") == b"PONG"
    await link.close()


async def test_a_server_that_is_away_is_an_error_for_all_who_ask() -> None:
    link = connect.shared_link("redis://127.0.0.1:1/0")
    answers = await asyncio.gather(link.ask("PING"), link.ask("GET", "k"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [redis.exceptions.ConnectionError] * 2
    await link.close()


@pytest.fixture
def unix_url() -> Iterator[str]:
    """A server behind a socket in the file system, whose name must be short."""
    with tempfile.TemporaryDirectory() as place:
        part, url = embedded.valkey(Path(place))
        with (Path(place) / "valkey.conf").open("a") as config:
            config.write(f"unixsocket {place}/socket\n")
        with running(part):
            yield f"unix://:{urlsplit(url).password}@{place}/socket?db=0"


async def test_a_server_behind_a_unix_socket_is_reached_by_whoever_asks(unix_url: str) -> None:
    for link in (connect.append_link(unix_url), connect.tail_link(unix_url)):
        await link.connect()
        assert await link.command("PING") == b"PONG"
        await link.drop()
    shared = connect.shared_link(unix_url)
    assert await shared.ask("PING") == b"PONG"
    await shared.close()
    client = connect.persister_redis(unix_url)
    assert client.ping()
    client.close()


async def test_a_database_connection_that_died_unnoticed_is_replaced(
    servers: Servers, database: Database
) -> None:
    ((pid,),) = await database.rows("SELECT pg_backend_pid()", {})
    other = psycopg2.connect(servers.database_url)
    with other, other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))
    other.close()
    assert await database.rows("SELECT 1", {}) == [(1,)]


async def test_a_database_that_is_away_says_so() -> None:
    away = Database("postgresql://127.0.0.1:1/none", 1)
    with pytest.raises(DatabaseUnavailable):
        await away.rows("SELECT 1", {})
    away.close()


async def test_a_database_that_does_not_answer_is_not_waited_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "DEADLINE_S", 0.05)
    release = threading.Event()

    def stuck(connection: psycopg2.extensions.connection) -> bool:
        return release.wait(20)

    with pytest.raises(DatabaseUnavailable):
        await database.run(stuck)
    release.set()


async def test_a_database_without_tables_is_the_operators_business(database: Database) -> None:
    with pytest.raises(Misconfigured, match="relay migrate"):
        await database.rows("SELECT * FROM not_there", {})


def test_blocking_reads_wait_longer_than_their_block(servers: Servers) -> None:
    client = connect.persister_redis(servers.redis_url)
    timeout = client.connection_pool.connection_kwargs["socket_timeout"]
    assert timeout > connect.BLOCK_MS / 1000
    client.close()


def pong_and_reset(listener: socket.socket, answered: threading.Event) -> None:
    """A server that answers every question, until it resets the connection."""
    connection, _ = listener.accept()
    while not answered.is_set():
        if select.select([connection], [], [], 0.01)[0]:
            connection.sendall(b"+PONG\r\n" * connection.recv(1000).count(b"*"))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


async def ask_before_and_after_a_reset(port: int, answered: threading.Event) -> None:
    link = connect.append_link(f"redis://127.0.0.1:{port}")
    await link.connect()
    assert await link.command("PING") == b"PONG"
    answered.set()
    await until(lambda: link._replies.lost, "the reset to arrive")
    with pytest.raises(redis.exceptions.ConnectionError):
        await link.command("PING")
    await link.drop()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_connection_that_was_reset_while_idle_is_a_lost_connection(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, asyncio.Runner(loop_factory=loop) as runner:
        answered = threading.Event()
        server = threading.Thread(target=pong_and_reset, args=[listener, answered])
        server.start()
        runner.run(ask_before_and_after_a_reset(listener.getsockname()[1], answered))
        server.join()
