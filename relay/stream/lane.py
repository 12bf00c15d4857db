"""What waits to be written to a shard, and the connections that write it.

Requests that arrive while a call is under way leave together in the next one. A call is one
server-side function: all of it is written, or nothing. It is never repeated by itself, since a lost
reply does not say whether it ran; whoever sends again does so with an idempotency key.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import redis.exceptions

from relay import metrics
from relay.errors import (
    DatabaseUnavailable,
    KeyReused,
    Misconfigured,
    NotStored,
    OutcomeUnknown,
    RelayError,
    RunQuota,
)
from relay.link import Link, command, resolve
from relay.stream import functions, once
from relay.stream.calls import AppendCall
from relay.stream.entry import NewEvent
from relay.stream.keys import GROUP, ShardKeys, StreamId, event_id, ordinal_above
from relay.stream.trouble import Trouble

log = logging.getLogger(__name__)

CALL_EVENTS = 1000
"""Events in one call: at some 10 µs each the server is not blocked for long. A larger request goes alone."""

LINKS = 2
"""Calls under way at once: while the server syncs one to disk, the next one is made ready and sent."""

WORTH_A_CALL = 8
"""Events that leave beside a call that is under way. Fewer wait for its answer, and leave with those who come
until then: each call costs the server a sync of its own, and many small ones take longer than a few."""

ENOUGH = 24
"""Requests that leave at once, though more may have come in with them: while the server has these, those are
taken in. Else producers who wait for their answers fall in step, all in one call, and server and worker take
turns."""

PATIENCE_S = 0.02
"""How long they wait for it at most, since its connection may be the one that does not answer."""

REFUSALS: Mapping[int, Callable[[], RelayError]] = {-1: KeyReused, -2: RunQuota}
"""What the function answers instead of an ordinal. (An ordinal below zero is that of a repeat.)"""

Settled = Callable[[int | RelayError], None]
"""Is told how an append went: the ordinal of the first event, or why it was not stored."""


class Group(NamedTuple):
    """What one request wants written, whole or not at all."""

    events: Sequence[NewEvent]
    key: str | None
    arrived: float
    settled: Settled

    def tell(self, result: int | RelayError) -> None:
        """How it went. What one listener makes of it must not keep the others from hearing."""
        try:
            self.settled(result)
        except Exception:
            log.exception("nobody could be told how an append went")


class Lane:
    """The write path of one shard. `connect` and `floor`: see Publisher. `call` packs what is sent."""

    def __init__(
        self,
        connect: Callable[[int], Link],
        floor: Callable[[], Awaitable[int]],
        deadline_s: float,
        keys: ShardKeys,
        call: AppendCall,
    ) -> None:
        self._links = [connect(keys.shard) for _ in range(LINKS)]
        self._idle = list(self._links)
        self._floor = floor
        self._keys = keys
        self._deadline_s = deadline_s
        self._call = call
        self._waiting: list[Group] = []
        self._leaving = False
        self._patience: asyncio.TimerHandle | None = None
        self._quiet: asyncio.Future[None] | None = None
        self._mending: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._highest = 0
        self.trouble = Trouble(keys.shard)

    async def append(self, events: Sequence[NewEvent], key: str | None) -> list[int]:
        stored: asyncio.Future[int] = self._loop.create_future()
        self.submit(events, key, partial(resolve, stored))
        first = await stored
        return [
            event_id(StreamId.from_ordinal(first + place), self._keys.shard) for place in range(len(events))
        ]

    def submit(self, events: Sequence[NewEvent], key: str | None, settled: Settled) -> None:
        self._waiting.append(Group(events, key, self._loop.time(), settled))
        if len(self._waiting) >= ENOUGH and self._idle:
            self._send()
        self._leave_soon()

    def _leave_soon(self) -> None:
        """Not at once: more may have come in with them."""
        if self._waiting and self._idle and not self._leaving:
            self._leaving = True
            self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        self._leaving = False
        while self._waiting and self._idle:
            if not self._worth_a_call():
                if self._patience is None:
                    self._patience = self._loop.call_later(PATIENCE_S, self._lose_patience)
                return
            self._send()

    def _worth_a_call(self) -> bool:
        """Whether those who wait leave now, and not with the answer to what is under way."""
        return not self._under_way or sum(len(group.events) for group in self._waiting) >= WORTH_A_CALL

    def _lose_patience(self) -> None:
        """Sends whoever waits. (The clock may have been set for others: one call more now and then.)"""
        self._patience = None
        if self._waiting and self._idle:
            self._send()

    def _send(self) -> None:
        """One call with those who wait: the ordinary way, without a task."""
        link, groups = self._idle.pop(), self._take()
        within_s = groups[0].arrived + self._deadline_s - self._loop.time()
        try:
            link.ask(self._packed(groups), partial(self._answered, link, groups), within_s)
        except redis.exceptions.ConnectionError:
            self._mend(link, groups, None)
        except Exception as error:  # whatever it is: nobody waits for an answer that never comes
            self._mend(link, groups, error)

    def _answered(self, link: Link, groups: deque[Group], answer: Any) -> None:
        if isinstance(answer, Exception):
            self._mend(link, groups, answer)
            return
        try:
            self._settle(groups, answer)
        finally:
            if groups:  # whom the answer did not reach, whatever happened
                _fail(groups, OutcomeUnknown())
            self._rest(link)

    def _rest(self, link: Link) -> None:
        self._idle.append(link)
        self._leave_soon()
        if self._quiet is not None and not self._busy:
            self._quiet.set_result(None)

    @property
    def _busy(self) -> bool:
        return bool(self._waiting) or self._under_way

    @property
    def _under_way(self) -> bool:
        """Whether a call is, or anything else that has a connection."""
        return len(self._idle) < len(self._links)

    def _mend(self, link: Link, groups: deque[Group], problem: Exception | None) -> None:
        task = self._loop.create_task(self._carefully(link, groups, problem))
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)

    async def _carefully(self, link: Link, groups: deque[Group], problem: Exception | None) -> None:
        """The same where there is no connection, or where the first attempt ended in a problem."""
        sent = problem is not None
        try:
            async with asyncio.timeout_at(groups[0].arrived + self._deadline_s):
                if problem:
                    await once.only_refused(link, problem)
                elif not link.connected:
                    await link.drop()  # it may have been lost while nobody used it
                await once.connect(link)
                sent = True
                answers = await self._append(link, groups)
        except TimeoutError as error:
            self.trouble.failed(error)
            # Those behind waited as long as those in the call, and the server did not answer.
            _fail(groups, OutcomeUnknown() if sent else NotStored())
            self._give_up()
        except RelayError as error:
            self.trouble.failed(error)
            _fail(groups, error)
            await self._doubt(error)
        except BaseException as error:  # whatever it is: nobody waits for an answer that never comes
            if isinstance(error, Exception):  # and not the end of the process
                self.trouble.failed(error)
            _fail(groups, OutcomeUnknown())
            self._give_up()
            raise
        else:
            self._settle(groups, answers)
        finally:
            self._rest(link)

    async def _doubt(self, error: RelayError) -> None:
        """Where one connection broke, the others have to prove that they did not."""
        if isinstance(error, OutcomeUnknown):
            for link in list(self._idle):
                await link.drop()

    def _give_up(self) -> None:
        waiting, self._waiting = deque(self._waiting), []
        _fail(waiting, NotStored())

    def _settle(self, groups: deque[Group], answers: Sequence[int]) -> None:
        now, events = self._loop.time(), 0
        stored, observe = metrics.EVENTS, metrics.APPEND_SECONDS.observe
        for answer in answers:
            group, first = groups.popleft(), abs(answer)
            events += len(group.events)
            self._highest = max(self._highest, first + len(group.events) - 1)
            if answer in REFUSALS:
                group.tell(REFUSALS[answer]())
                continue
            if answer < 0:
                metrics.REPEATS.value += 1
            else:
                for _, kind, _ in group.events:
                    stored[kind] += 1
            observe(now - group.arrived)
            group.tell(first)
        metrics.CALL_EVENTS.observe(events)
        if self.trouble.reason:
            self.trouble.over()

    def _take(self) -> deque[Group]:
        taken, events = 0, 0
        for group in self._waiting:
            events += len(group.events)
            if taken and events > CALL_EVENTS:
                break
            taken += 1
        groups, self._waiting = deque(self._waiting[:taken]), self._waiting[taken:]
        return groups

    async def _append(self, link: Link, groups: Sequence[Group]) -> list[int]:
        call = self._packed(groups)
        answers: list[int]
        try:
            answers = await once.call(link, call)
        except once.NoLog:
            await self._open(link)
            answers = await once.call(link, call)
        return answers

    def _packed(self, groups: Sequence[Group]) -> bytes:
        return self._call.packed([(group.events, group.key) for group in groups], self._highest)

    async def open(self) -> None:
        await self._alone(self._open)

    async def attempt(self) -> None:
        """Finds out whether an append would fail. Where all connections are busy, those do."""
        if self._idle:
            with contextlib.suppress(NotStored):
                await self._alone(self._try)

    async def _alone(self, work: Callable[[Link], Awaitable[object]]) -> None:
        """Does it on a connection that is idle. Raises NotStored."""
        link = self._idle.pop()
        try:
            async with asyncio.timeout(self._deadline_s):
                await once.connect(link)
                await work(link)
        except Exception as error:  # whatever it is: to be known, and not to go further
            self.trouble.failed(error)
            raise NotStored from error
        finally:
            self._rest(link)

    async def _try(self, link: Link) -> None:
        """Appends nothing, which does not tell whether there is a log."""
        await self._append(link, ())
        if await once.call(link, command("EXISTS", self._keys.log)):
            self.trouble.tried()
        else:
            await self._open(link)

    async def _open(self, link: Link) -> None:
        """Creates the log, or lifts it above the highest id known: ids never come again."""
        try:
            floor = max(ordinal_above(await self._floor()), self._highest)
        except (DatabaseUnavailable, Misconfigured) as error:  # or it has no tables yet
            raise NotStored from error
        await once.call(link, command("FCALL", functions.OPEN, 1, self._keys.log, GROUP, floor))
        self.trouble.over()

    async def close(self) -> None:
        """Gives up the connections, once all that was submitted is answered."""
        if self._busy:
            self._quiet = self._loop.create_future()
            await self._quiet
        for link in self._links:
            await link.drop()


def _fail(groups: deque[Group], error: RelayError) -> None:
    """Tells them, and takes each out first: nobody is told twice, whatever happens."""
    while groups:
        groups.popleft().tell(error)
