"""Rows 16 to 19: the network between the product and Valkey."""

import asyncio
import time
from collections.abc import Awaitable

import pytest

from tests.acceptance.running import CLIENT
from tests.faults.conftest import Row
from tests.faults.oracle import Expected
from tests.faults.proxy import Proxy, Toxics
from tests.faults.world import World
from tests.waiting import until

SWALLOWED = 4
CUT = 10
KILL_EVERY_S = 0.2


async def proxied(world: World, *launcher: str) -> Proxy:
    """Valkey, with everything else behind one proxy."""
    valkey = await world.add_valkey()
    proxy = await world.add_proxy(valkey.port)
    await world.add_web(*launcher, redis_url=valkey.url_by(proxy.port))
    await world.add_persister(redis_url=valkey.url_by(proxy.port))
    return proxy


async def test_row_16_the_answer_to_a_call_never_arrives(world: World, row: Row) -> None:
    """The events are stored, and the worker can not know it: it answers 503 in time, and the repeats under
    the same keys get a 204 for the one entry that there is."""
    valkey = await world.add_valkey()
    proxy = await world.add_proxy(valkey.port)
    await world.add_web(redis_url=valkey.url_by(proxy.port))
    await world.add_persister()
    await world.load()
    swallowed = round(SWALLOWED * world.scale)
    async with world.fault():
        for number in range(swallowed + CUT):
            for connection in proxy.using(b"FCALL"):
                if number < swallowed:
                    connection.replies_to_swallow = 1
                else:
                    connection.replies_to_cut = 1
            await world.trouble()
            await world.more(world.random.randint(5, 30))
    verdict = await world.over(Expected(unknown=True))
    assert world.ledger.statuses["503 outcome-unknown"] >= swallowed + CUT
    row(verdict)


async def lost_answers(world: World, *launcher: str) -> None:
    """Row 16b, with that worker."""
    valkey = await world.add_valkey()
    proxy = await world.add_proxy(valkey.port)
    await world.add_web(*launcher, redis_url=valkey.url_by(proxy.port))
    await world.add_persister()
    await world.load(keyed=False)
    async with world.fault():
        for _ in range(CUT):
            for connection in proxy.using(b"FCALL"):
                connection.replies_to_cut = 1
            await world.more(world.random.randint(10, 30))


async def test_row_16b_the_answer_never_arrives_and_there_are_no_keys(world: World, row: Row) -> None:
    """Who sends without a key and never again has the event there once or not at all: the worker does not
    repeat a call by itself."""
    await lost_answers(world)
    row(await world.over(Expected(unknown=True)))


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_row_17_a_slow_network_that_loses_connections(world: World, row: Row) -> None:
    """300 ms of latency, give or take 300, the first hundred bytes of all that is said one by one, and in
    every hundredth a reset: calls stay within their deadline, and everything is in order. It lasts a minute,
    or ten with FAULT_LONG."""
    proxy = await proxied(world)
    await world.load(runs=50, viewers=1)
    proxy.toxics = Toxics(latency_s=0.3, jitter_s=0.3, sliced_bytes=100, reset_rate=0.01)
    async with world.fault():
        await world.last(600 if world.long else 60)
        proxy.toxics = Toxics()
    verdict = await world.over()
    assert proxy.resets > 2
    row(verdict)


async def unready(world: World) -> bool:
    """Whether the worker says that it is not ready, for its tailer among others."""
    answer = await asyncio.to_thread(CLIENT.get, f"{world.webs[0].url}/readyz", timeout=5)
    troubled = {name for name, problem in answer.json()["checks"].items() if problem != "ok"}
    return answer.status_code == 503 and "tailers" in troubled


async def test_row_18_the_tailers_connection_is_half_open(world: World, row: Row) -> None:
    """Nobody tells the tailer that its peer is gone. Calls are answered as ever; the tailer notices by
    itself, and its viewers go on where they were. The worker says that it is not ready meanwhile."""

    def asked() -> Awaitable[bool]:
        return unready(world)

    proxy = await proxied(world, "points", "fresh")  # a tailer is deaf for little more than a second
    await world.load()
    async with world.fault():
        tailers = await until(
            lambda: [one for one in proxy.using(b"XREAD\r") if not one.uses(b"SCARD")],
            "the tailer's connection",
        )
        for connection in tailers:
            connection.mute = True
        before = {watcher.name: watcher.numbers for watcher in world.watchers}
        await world.last(5)
        deaf = [watcher for watcher in world.watchers if watcher.numbers <= before[watcher.name] + 5]
        assert len(deaf) == len(world.watchers), "the viewers did not notice"
        said: bool = await until(asked, "the worker to say that it is not ready")
        assert said
    verdict = await world.over()
    assert not await unready(world)
    assert world.statuses == {"204"}
    assert all(len(watcher.connects) == 1 for watcher in world.watchers), "a viewer was disconnected"
    row(verdict)


@pytest.mark.long
async def test_row_18b_the_persisters_connection_is_half_open(world: World, row: Row) -> None:
    """The same for a persister: it notices within its block and two seconds, takes up its own backlog, and
    the archive has everything once."""
    proxy = await proxied(world)
    await world.load()
    async with world.fault():
        readers = await until(lambda: proxy.using(b"SCARD"), "the persister's connection")
        for connection in readers:
            connection.mute = True
        muted = time.monotonic()
        await world.pause()
        await world.drained()
        assert time.monotonic() - muted < 15
        world.go_on()
    row(await world.over())


async def test_row_19_every_connection_is_killed_again_and_again(world: World, row: Row) -> None:
    """Five times a second for half a minute: some calls get a 503, no viewer misses anything or sees it
    twice, and nothing stays pending. A call is so short that a kill seldom meets one, so every other kill
    comes while calls are made to wait."""
    await world.up(webs=2)
    await world.load()
    async with world.fault():
        for kill in range(round(30 * world.scale / KILL_EVERY_S)):
            if kill % 2:
                world.ask("CLIENT", "PAUSE", 50, "WRITE")
                await world.last(0.02 / world.scale)
            world.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await world.last(KILL_EVERY_S / world.scale)
    row(await world.over(Expected(unknown=True)))
