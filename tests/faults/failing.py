"""Runs a program of the product with one thing in it made to fail, or made wrong.

    python -m tests.faults.failing POINT[:N][+POINT...] relay serve ...
    python -m tests.faults.failing POINT[:N][+POINT...] persister run ...

The product knows nothing of this: its functions are wrapped here, before its own main starts. At a
*failpoint* the process kills itself, the Nth time that it comes there. A *mutant* is a known mistake, put in
so that the matrix can show that it would notice.
"""

import asyncio
import itertools
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import redis.exceptions

import persister.__main__
import relay.cli
from persister import consumer
from persister.consumer import Batch, Consumer, Settlement
from persister.store import Store
from relay.hub import Burst, State, Viewer
from relay.link import Link
from relay.stream import entry, functions
from relay.stream.lane import Lane
from relay.stream.replay import Replay


class Once:
    """Kills this process, as SIGKILL does, the Nth time that it is called."""

    def __init__(self, times: int) -> None:
        self._turns = itertools.count(1)
        self._times = times

    def __call__(self) -> None:
        if next(self._turns) == self._times:
            os.kill(os.getpid(), signal.SIGKILL)


def append_sent(times: int) -> None:
    """Events are stored, and nobody was told."""
    die, answered = Once(times), Lane._answered

    def stored(self: Lane, link: Link, groups: Any, answer: Any) -> None:
        if not isinstance(answer, Exception):
            die()
        answered(self, link, groups, answer)

    Lane._answered = stored  # type: ignore[method-assign]


def before_claim(times: int) -> None:
    """A batch is read, and not claimed yet."""
    _around(Consumer, "_claimed", before=Once(times))


def before_insert(times: int) -> None:
    """A batch is claimed, and nothing done with it."""
    _around(Store, "insert", before=Once(times))


def after_insert(times: int) -> None:
    """The rows are inserted, and not committed."""
    die, opened = Once(times), Store._open

    class Doomed:
        """A connection that dies where its transaction would be committed."""

        def __init__(self, connection: Any) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

        def __enter__(self) -> Any:
            return self._connection.__enter__()

        def __exit__(self, *exc: Any) -> Any:
            die()
            return self._connection.__exit__(*exc)

    Store._open = lambda self: Doomed(opened(self))  # type: ignore[method-assign, assignment, return-value]


def after_commit(times: int) -> None:
    """The rows are committed, and the batch not settled."""
    _around(Store, "insert", after=Once(times))


def after_settle(times: int) -> None:
    """All is done."""
    _around(Consumer, "settle", after=Once(times))


def half_settled(times: int) -> None:
    """Some run logs of a batch are tidied, others are not, and its claim stands."""
    die, call = Once(times), Consumer._call

    def doomed(self: Consumer, connection: Any, *commands: bytes) -> list[Any]:
        answers = call(self, connection, *commands)
        if functions.TIDY.encode() in commands[0]:
            die()
        return answers

    consumer.RUNS_AT_ONCE, Consumer._call = 1, doomed  # type: ignore[method-assign]


def before_bury(times: int) -> None:
    """An event is found to be bad, and its batch not settled yet."""
    die, settling = Once(times), Consumer._settling

    def doomed(self: Consumer, settlement: Settlement) -> list[bytes]:
        if settlement.letters:
            die()
        return settling(self, settlement)

    Consumer._settling = doomed  # type: ignore[method-assign]


def after_bury(times: int) -> None:
    """A batch is settled, and with it an event is buried."""
    die, exchange, settling, letters = Once(times), Consumer._exchange, Consumer._settling, list[Any]()

    def seen(self: Consumer, settlement: Settlement) -> list[bytes]:
        letters.extend(settlement.letters)
        return settling(self, settlement)

    def doomed(self: Consumer, connection: Any, *commands: bytes) -> list[Any]:
        answers = exchange(self, connection, *commands)
        if letters:
            die()
        return answers

    Consumer._settling, Consumer._exchange = seen, doomed  # type: ignore[method-assign]


def dawdle(times: int) -> None:
    """No failure: replays take their time, at random: news comes in at every moment of a hand-over."""
    for name in ("after", "snapshot"):
        read = getattr(Replay, name)

        async def slow(self: Replay, *args: Any, read: Any = read) -> Any:
            await asyncio.sleep(0.2 * random.random())
            found = await read(self, *args)
            await asyncio.sleep(0.2 * random.random())
            return found

        setattr(Replay, name, slow)


def other_version(times: int) -> None:
    """No failure: the same functions under the names of another version."""
    other = "0" * len(functions.VERSION)
    functions.LIBRARY = functions.LIBRARY.replace(functions.VERSION, other)
    for name in ("APPEND", "OPEN", "CLAIM", "TAKE_OVER", "TIDY", "SETTLE"):
        setattr(functions, name, getattr(functions, name).replace(functions.VERSION, other))


def seal_unseen(times: int) -> None:
    """Mutant: entries are taken as they are, whether their checksum fits or not."""
    entry._unsealed = lambda sealed, start, seal: sealed[start : -entry.SEAL_BYTES]


def retry_on(times: int) -> None:
    """Mutant: a call whose answer was lost is sent again, as drivers do by themselves."""
    mend = Lane._mend

    def again(self: Lane, link: Link, groups: Any, problem: Exception | None) -> None:
        lost = isinstance(problem, redis.exceptions.RedisError | OSError)
        if lost and not isinstance(problem, redis.exceptions.ResponseError):
            self._loop.create_task(_dropped(link)).add_done_callback(lambda _: mend(self, link, groups, None))
        else:
            mend(self, link, groups, problem)

    Lane._mend = again  # type: ignore[method-assign]


async def _dropped(link: Link) -> None:
    await link.drop()


def no_held_state(times: int) -> None:
    """Mutant: a viewer hears only what comes after its replay."""

    def deliver(self: Viewer, burst: Burst) -> None:
        if self.state is State.LIVE:
            self._write(burst)

    Viewer.deliver = deliver  # type: ignore[method-assign]


def acknowledge_first(times: int) -> None:
    """Mutant: a batch is settled as soon as it is claimed."""
    claim = Consumer.claim

    def claimed(self: Consumer) -> Batch | None:
        batch = claim(self)
        if batch:
            self.settle(Settlement(batch, {}))
        return batch

    Consumer.claim = claimed  # type: ignore[method-assign]


def group_at_the_end(times: int) -> None:
    """Mutant: the group begins with what is new."""
    begins = "args[1], '0', 'MKSTREAM'"
    assert begins in functions.LIBRARY
    functions.LIBRARY = functions.LIBRARY.replace(begins, "args[1], '$', 'MKSTREAM'")
    other_version(times)


def _around(
    owner: type,
    name: str,
    *,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Has something done before or after a method of the product, where it is given something to do."""
    wrapped = getattr(owner, name)

    def method(*args: Any) -> Any:
        if not args[1]:
            return wrapped(*args)
        before()
        result = wrapped(*args)
        after()
        return result

    setattr(owner, name, method)


POINTS: dict[str, Callable[[int], None]] = {
    point.__name__: point
    for point in (
        append_sent,
        before_claim,
        before_insert,
        after_insert,
        after_commit,
        after_settle,
        half_settled,
        before_bury,
        after_bury,
        dawdle,
        other_version,
        seal_unseen,
        retry_on,
        no_held_state,
        acknowledge_first,
        group_at_the_end,
    )
}
PROGRAMS: dict[str, Any] = {"relay": relay.cli.main, "persister": persister.__main__.main}


def main(arguments: Sequence[str]) -> None:
    points, program, *rest = arguments
    for point in points.split("+"):
        name, _, times = point.partition(":")
        POINTS[name](int(times or 1))
    PROGRAMS[program](rest)


if __name__ == "__main__":
    main(sys.argv[1:])
