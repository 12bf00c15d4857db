"""The tailer on a real server: from the log to the hub, through every kind of trouble."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import pytest
import redis

from relay import connect
from relay.errors import Unavailable
from relay.hub import Hub, Viewer, Wake
from relay.sse import Framing
from relay.stream import tail
from relay.stream.keys import ShardKeys
from relay.stream.lane import CALL_EVENTS, LINKS, WORTH_A_CALL
from relay.stream.publish import Publisher
from relay.stream.tail import Tailer
from tests.conftest import Servers
from tests.factories import entry, event
from tests.unit.test_hub import Wire
from tests.waiting import until


class Tailed(NamedTuple):
    """A tailer at work, one viewer, and what was written to it."""

    tailer: Tailer
    hub: Hub
    viewer: Viewer
    wire: Wire


@pytest.fixture
def client(servers: Servers) -> Iterator[redis.Redis]:
    opened = redis.Redis.from_url(servers.redis_url, protocol=2)
    yield opened
    opened.close()


@contextlib.asynccontextmanager
async def tailing(url: str) -> AsyncIterator[Tailed]:
    hub, wire = Hub(), Wire()
    tailer = Tailer(lambda shard: connect.tail_link(url, shard), hub, 0)
    running = asyncio.create_task(tailer.run())
    viewer = Viewer(wire, framing=Framing.RESUMABLE, buffer_limit=1 << 20)
    hub.register(viewer, "run-1")
    await tailer.ready(20)
    viewer.missed = False
    viewer.release()
    yield Tailed(tailer, hub, viewer, wire)
    running.cancel()
    await asyncio.wait([running])


@pytest.fixture
async def tailed(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tailed]:
    monkeypatch.setattr(tail, "BLOCK_MS", 100)
    async with tailing(servers.redis_url) as made:
        yield made


def seen(wire: Wire) -> list[int]:
    lines = b"".join(wire.written).split(b"\n")
    return [int(line[4:]) for line in lines if line.startswith(b"id: ")]


async def test_news_reaches_the_hub_in_order(tailed: Tailed, publisher: Publisher) -> None:
    ids = []
    for _ in range(5):
        ids += await publisher.append([event() for _ in range(300)])
    await until(lambda: len(seen(tailed.wire)) == len(ids), "all events")
    assert seen(tailed.wire) == ids


async def test_what_comes_in_while_the_hub_writes_for_long_goes_out_in_one_write(
    tailed: Tailed, publisher: Publisher, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it goes to Redis in two calls: the tailer reads on after both."""
    monkeypatch.setattr(tail, "LONG_S", 0)
    await asyncio.gather(*(publisher.append([event()] * CALL_EVENTS) for _ in range(LINKS)))
    await until(lambda: len(seen(tailed.wire)) == LINKS * CALL_EVENTS, "what connects both links")
    tailed.wire.written.clear()
    write, loop = tailed.viewer._put, asyncio.get_running_loop()

    def submit() -> None:
        publisher.submit([event()] * WORTH_A_CALL, None, lambda _: None)

    def interrupted(data: bytes) -> int:
        if not tailed.wire.written:
            submit()
            loop.call_soon(submit)
        return write(data)

    monkeypatch.setattr(tailed.viewer, "_put", interrupted)
    found: Any = client.xrevrange(ShardKeys(0).log, count=1)
    client.xadd(ShardKeys(0).log, found[0][1])  # by another worker: both links of this one are free
    await until(lambda: len(seen(tailed.wire)) == 1 + 2 * WORTH_A_CALL, "all events")
    assert len(tailed.wire.written) == 2


async def test_runs_that_nobody_watches_are_passed_over(tailed: Tailed, publisher: Publisher) -> None:
    ids = await publisher.append([event("run-2"), event(), event("run-2"), event()])
    await until(lambda: len(seen(tailed.wire)) == 2, "the watched events")
    assert seen(tailed.wire) == [ids[1], ids[3]]


async def test_entries_that_are_no_events_are_passed_over(
    tailed: Tailed, publisher: Publisher, client: redis.Redis
) -> None:
    await publisher.append([event()])
    found: Any = client.xrange(ShardKeys(0).log)
    whole = found[0][1][b"e"]
    client.xadd(ShardKeys(0).log, {"e": whole.replace(b"step", b"stop")})
    client.xadd(ShardKeys(0).log, {"some": whole})
    for damaged in (b"run-1 paper_generation_progress?", b"run-1 ", b"run-1", b"\xff\xfe "):
        client.xadd(ShardKeys(0).log, {"e": damaged})
    await publisher.append([event()])
    await until(lambda: len(seen(tailed.wire)) == 2, "the events around them")


async def test_what_comes_and_is_gone_at_once_is_no_news(
    store: redis.Redis, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with tailing(store_url) as tailed:
        await until(lambda: any("b" in its["flags"] for its in store.client_list()), "a reader that waits")
        log = ShardKeys(0).log
        with store.pipeline() as both:
            both.xadd(log, {"some": "run-1"}, id="1-1")
            both.xdel(log, "1-1")
            both.execute()
        store.xadd(log, entry(event()), id="2000000000000-0")
        await until(lambda: len(seen(tailed.wire)) == 1, "the event")
    assert [record.getMessage() for record in caplog.records] == []


async def test_a_cut_connection_sends_everybody_to_the_logs(
    tailed: Tailed, publisher: Publisher, client: redis.Redis
) -> None:
    client.client_kill_filter(_type="normal", skipme=True)
    assert await tailed.viewer.woken() is Wake.CATCH_UP
    await tailed.tailer.ready(5)
    tailed.viewer.release()
    (id,) = await publisher.append([event()])
    await until(lambda: seen(tailed.wire) == [id], "news over the new connection")


async def test_a_log_that_was_lost_is_noticed_without_news(
    tailed: Tailed, publisher: Publisher, client: redis.Redis
) -> None:
    await publisher.append([event()])
    await until(lambda: len(seen(tailed.wire)) == 1, "the event")
    client.flushall()
    assert await tailed.viewer.woken() is Wake.CATCH_UP


async def test_a_shard_that_nobody_watches_is_left_alone(tailed: Tailed, client: redis.Redis) -> None:
    tailed.hub.unregister(tailed.viewer, "run-1")
    readers: set[str] = set()

    def nobody_reads() -> bool:
        readers.clear()
        readers.update(found["id"] for found in client.client_list() if found["cmd"] == "xread")
        return not readers

    await until(nobody_reads, "the tailer to leave")


async def test_a_viewer_is_told_when_there_is_no_log_to_follow() -> None:
    tailer = Tailer(lambda _: connect.tail_link("redis://127.0.0.1:1/0"), Hub(), 0)
    with pytest.raises(Unavailable):
        await tailer.ready(0.01)


async def test_a_tailer_that_redis_does_not_answer_is_deaf_while_somebody_watches(
    tailed: Tailed, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is heard of again once Redis answers, and nothing has to be heard where nobody watches."""
    monkeypatch.setattr(tail, "DEAF_S", 0.3)
    await until(lambda: not tailed.tailer.deaf, "the tailer to hear")
    client.client_pause(1500)
    await until(lambda: tailed.tailer.deaf, "the tailer to be deaf")
    await until(lambda: not tailed.tailer.deaf, "the tailer to hear again")
    client.client_pause(1500)
    await until(lambda: tailed.tailer.deaf, "the tailer to be deaf again")
    tailed.hub.unregister(tailed.viewer, "run-1")
    await until(lambda: not tailed.tailer.deaf, "the tailer to have nothing to hear")
