"""Connections to Redis: replies in any pieces, and ends at bad moments."""

import asyncio
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
    replies, answer = expecting(2)
    first = replies._late
    replies.data_received(b"+one")
    assert replies._late is first, "half a reply does not count"
    replies.data_received(b"\r\n")
    assert first is not None
    assert first.cancelled()
    assert replies._late is not first
    replies.data_received(b"+two\r\n")
    assert await answer == [b"one", b"two"]


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
