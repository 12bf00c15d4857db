"""Connections to Redis: replies in any pieces, and ends at bad moments."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis.exceptions

from relay import connect
from relay.link import REFUSED, _Replies


async def broken(*_: Any) -> None:
    raise RuntimeError("not what anybody expects")


class Server:
    """Answers each PING with what it was given, on a real socket; where that is None, it hangs up."""

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = list(answers)
        self._serving: set[asyncio.Task[None] | None] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.wait([task for task in self._serving if task is not None])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.current_task())
        while data := await reader.read(1000):
            if b"PING" not in data:
                writer.write(b"+OK\r\n" * data.count(b"*"))  # to what the driver says of itself
            elif (answer := self._answers.pop(0)) is not None:
                writer.write(answer)
            else:
                break
        writer.close()
        await writer.wait_closed()


class Clock:
    """What replies know of the event loop, with a time that the test tells."""

    def __init__(self) -> None:
        self._now = 0.0
        self._set: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self._now

    def call_at(self, when: float, ring: Callable[[], None]) -> asyncio.TimerHandle:
        self._set.append(asyncio.TimerHandle(when, ring, (), asyncio.get_running_loop()))
        return self._set[-1]

    def go_on_to(self, now: float) -> None:
        self._now = now
        while due := [alarm for alarm in self._set if alarm.when() <= now]:
            self._set.remove(due[0])
            if not due[0].cancelled():
                due[0]._run()


def timed() -> tuple[_Replies, Clock, list[Any]]:
    """Replies, their clock, and what was answered."""
    replies, clock = _Replies(), Clock()
    replies._loop = clock  # type: ignore[assignment]
    return replies, clock, []


def expecting(count: int) -> tuple[_Replies, "asyncio.Future[Any]"]:
    replies, answer = _Replies(), asyncio.get_running_loop().create_future()
    replies.expect(count, answer.set_result, 60)
    return replies, answer


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_replies_are_put_together_from_pieces_of_any_size(size: int) -> None:
    replies, answer = expecting(4)
    data = b"$5\r\nhello\r\n-ERR no\r\n*2\r\n:1\r\n$-1\r\n:7\r\n"
    for start in range(0, len(data), size):
        assert not answer.done()
        replies.data_received(data[start : start + size])
    hello, refused, pair, seven = await answer
    assert (hello, pair, seven) == (b"hello", [1, None], 7)
    assert isinstance(refused, redis.exceptions.ResponseError)


async def test_each_of_several_replies_has_the_time_of_one() -> None:
    replies, clock, answers = timed()
    replies.expect(3, answers.append, 10)
    clock.go_on_to(9)
    replies.data_received(b"+one\r\n+tw")
    clock.go_on_to(18)
    assert not answers
    replies.data_received(b"o\r\n+thr")
    clock.go_on_to(27)
    replies.data_received(b"e")  # a piece of a reply gives it no more time
    assert not answers
    clock.go_on_to(28)
    assert isinstance(answers.pop(), redis.exceptions.TimeoutError)


async def test_the_time_of_a_command_is_its_own_whatever_that_of_the_one_before_was() -> None:
    replies, clock, answers = timed()
    for within_s in (10, 2, 10):
        began = clock.time()
        replies.expect(1, answers.append, within_s)
        clock.go_on_to(began + 0.9 * within_s)
        replies.data_received(b"+here\r\n")
        assert answers == [[b"here"]]
        answers.clear()
    clock.go_on_to(1000)
    assert replies.lost is None, "nobody waits"
    replies.expect(1, answers.append, 10)
    replies.data_received(b"+here\r\n")
    answers.clear()
    replies.expect(1, answers.append, 2)  # which is over before the clock of the other would ring
    clock.go_on_to(1002)
    assert isinstance(answers.pop(), redis.exceptions.TimeoutError)


async def test_who_heard_that_a_connection_is_lost_hears_no_more() -> None:
    replies, clock, answers = timed()
    replies.expect(1, answers.append, 10)
    replies.connection_lost(None)
    clock.go_on_to(1000)
    assert [type(answer) for answer in answers] == [redis.exceptions.ConnectionError]


async def test_a_server_that_loads_its_file_has_refused() -> None:
    async with Server(b"-LOADING Redis is loading the dataset in memory\r\n", b"+PONG\r\n") as url:
        link = connect.append_link(url)
        await link.connect()
        with pytest.raises(REFUSED):
            await link.command("PING")
        assert await link.command("PING") == b"PONG"
        await link.drop()


async def test_what_is_no_reply_ends_the_connection() -> None:
    replies, answer = expecting(1)
    replies.data_received(b"HTTP/1.1 400 Bad Request\r\n")
    assert isinstance(await answer, redis.exceptions.InvalidResponse)
    assert replies.lost


async def test_a_connection_that_ends_fails_what_was_asked_and_all_that_comes_after() -> None:
    async with Server(b"+PONG\r\n", None) as url:
        link = connect.append_link(url)
        await link.connect()
        assert await link.command("PING") == b"PONG"
        for _ in range(2):
            with pytest.raises(redis.exceptions.ConnectionError):
                await link.command("PING")
        await link.drop()


async def test_a_link_that_was_given_up_can_connect_again() -> None:
    async with Server(None, b"+PONG\r\n") as url:
        link = connect.append_link(url)
        await link.connect()
        with pytest.raises(redis.exceptions.ConnectionError):
            await link.command("PING")
        await link.drop()
        await link.connect()
        assert await link.command("PING") == b"PONG"
        await link.drop()


async def test_a_reply_that_does_not_come_is_a_time_out_and_the_end_of_the_connection() -> None:
    async with Server(b"") as url:
        link = connect.append_link(url)
        link._reply_s = 0.01
        await link.connect()
        with pytest.raises(redis.exceptions.TimeoutError):
            await link.command("PING")
        with pytest.raises(redis.exceptions.ConnectionError):
            await link.command("PING")
        await link.drop()


async def test_whoever_asks_is_answered_whatever_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = connect.shared_link("redis://127.0.0.1:1/0")
    with pytest.raises(redis.exceptions.ConnectionError):
        await shared.ask("PING")
    monkeypatch.setattr(shared, "_replies", broken)
    with pytest.raises(redis.exceptions.ConnectionError):
        await shared.ask("PING")


async def test_whoever_waits_for_the_next_round_is_answered_where_this_one_goes_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = connect.shared_link("redis://127.0.0.1:1/0")
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(questions: Any) -> Any:
        began.set()
        await go_on.wait()
        await broken()

    monkeypatch.setattr(shared, "_replies", slowly)
    first = asyncio.create_task(shared.ask("PING"))
    await began.wait()
    second = asyncio.create_task(shared.ask("TIME"))
    await asyncio.sleep(0)
    go_on.set()
    answers = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 5)
    assert {type(answer) for answer in answers} == {redis.exceptions.ConnectionError}
