"""Steps of everybody who touches the logs of a shard, and what holds after each of them.

Everything but the archive is real: publisher, server-side functions, consumers, trimming, replay, and a
Valkey that is killed and comes back from its append-only file.
"""

import asyncio
import json
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from persister.consumer import Batch, Consumer, Delivery, Settlement
from persister.settings import Settings
from relay import connect
from relay.errors import KeyReused, NotStored, OutcomeUnknown
from relay.stream.entry import Entry, NewEvent, decode
from relay.stream.group import claims
from relay.stream.keys import START, ShardKeys, StreamId, event_id, stream_id
from relay.stream.publish import Publisher
from relay.stream.replay import Replay
from tests.integration.conftest import publisher_to
from tests.integration.killable import Valkey
from tests.integration.logs_model import Archive, Model

T = TypeVar("T")

KIND = "paper_generation_progress"
KEYS = ShardKeys(0)
RUNS = ("a", "b", "c")
PATIENCE_S = {"patient": 3600.0, "eager": 0.001}
"""How long each lets a peer be silent before it takes over: for ever, and not at all."""

PERSISTERS = {
    name: Settings(persister_name=name, persister_batch=3, persister_claim_s=patience_s, run_log_entries=2)
    for name, patience_s in PATIENCE_S.items()
}


class Mortal(Consumer):
    """A persister that may die between the calls by which it settles a batch."""

    calls = len(RUNS)
    """How many of them it lives to make."""

    def _settling(self, settlement: Settlement) -> list[bytes]:
        return super()._settling(settlement)[: self.calls]


WHICH = st.integers(0, 999)
"""Which of several: not drawn from them, since ids are other ones whenever the same steps are repeated."""


def pick(things: Collection[T], which: int) -> T:
    return sorted(things)[which % len(things)]  # type: ignore[type-var]


class Logs(RuleBasedStateMachine):
    """Steps of everybody who touches the logs of a shard."""

    valkey: Valkey
    crashes_left = 2
    """A crash costs as much as all other steps together."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.archive = Archive(self.model)
        self.loop = asyncio.new_event_loop()
        self.redis = redis.Redis.from_url(self.valkey.url, protocol=2)
        self.redis.flushall()
        self.redis.function_flush()
        # So that a trim that may leave the rest of a node has something to do in a short log.
        self.redis.config_set("stream-node-max-entries", 2)
        self.redis.config_set("hz", 500)  # how often it looks whether a read has waited for long enough
        self.clients = [connect.persister_redis(self.valkey.url) for _ in PERSISTERS]
        self.consumers = {
            name: Mortal(client, 0, PERSISTERS[name], self._highest)
            for name, client in zip(PERSISTERS, self.clients, strict=True)
        }
        self.hands: dict[str, Batch] = {}
        self.counter = 0
        self.ahead = False
        self.link = self._now(self._make(lambda: connect.shared_link(self.valkey.url)))
        self.publisher = self._now(self._make(self._publisher))

    def _publisher(self) -> Publisher:
        async def floor() -> int:
            return self._highest()

        return publisher_to(self.valkey.url, floor)

    def _highest(self) -> int:
        return max(self.model.archive, default=START)

    def _now(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @staticmethod
    async def _make(make: Callable[[], T]) -> T:
        return make()

    def teardown(self) -> None:
        self._now(self.publisher.close())
        self._now(self.link.close())
        self.loop.close()
        for client in (self.redis, *self.clients):
            client.close()

    # Those who write.

    def _events(self, runs: Sequence[str]) -> list[NewEvent]:
        self.counter += len(runs)
        numbers = range(self.counter - len(runs), self.counter)
        return [NewEvent(run, KIND, b'{"n":%d}' % number) for run, number in zip(runs, numbers, strict=True)]

    @rule(runs=st.lists(st.sampled_from(RUNS), min_size=1, max_size=7), keyed=st.booleans())
    def append(self, runs: list[str], keyed: bool) -> None:
        events = self._events(runs)
        key = f"key-{self.counter}" if keyed else None
        ids = self._now(self.publisher.append(events, key))
        self.model.append(events, ids)
        if key:
            self.model.once[key] = (events, ids)

    @rule(requests=st.lists(st.lists(st.sampled_from(RUNS), min_size=1, max_size=3), min_size=2, max_size=4))
    def append_at_once(self, requests: list[list[str]]) -> None:
        """Several requests that leave in as few calls as may be."""

        async def all_of_them() -> list[list[int]]:
            return list(await asyncio.gather(*map(self.publisher.append, groups)))

        groups = [self._events(runs) for runs in requests]
        for ids, events in sorted(zip(self._now(all_of_them()), groups, strict=True)):
            self.model.append(events, ids)

    @precondition(lambda self: self.model.once)
    @rule(which=WHICH)
    def append_again(self, which: int) -> None:
        key = pick(self.model.once, which)
        events, ids = self.model.once[key]
        assert self._now(self.publisher.append(events, key)) == ids

    @precondition(lambda self: self.model.once)
    @rule(which=WHICH, runs=st.lists(st.sampled_from(RUNS), min_size=1, max_size=3))
    def append_something_else_under_a_used_key(self, which: int, runs: list[str]) -> None:
        key = pick(self.model.once, which)
        with pytest.raises(KeyReused):
            self._now(self.publisher.append(self._events(runs), key))

    # Those who drain.

    @rule(name=st.sampled_from(sorted(PERSISTERS)))
    def claim(self, name: str) -> None:
        if name not in self.hands and (batch := self.consumers[name].claim()):
            self.hands[name] = batch
            self.model.delivered |= {self._id(delivery) for delivery in batch.deliveries}

    @precondition(lambda self: self.hands)
    @rule(which=WHICH, calls=st.integers(0, 2 * len(RUNS)), buried=st.integers(0, 1))
    def store(self, which: int, calls: int, buried: int) -> None:
        """A batch is archived, but for what of its end can not be, and settled by a call for each run. After
        so many of them the persister dies."""
        self._store(pick(self.hands, which), calls, buried)

    def _store(self, name: str, calls: int = len(RUNS), buried: int = 0) -> None:
        batch = self.hands.pop(name)
        hand = batch.deliveries
        stored, bad = hand[: len(hand) - buried], hand[len(hand) - buried :]
        for delivery in stored:
            entry = self._entry(delivery)
            self.model.archive.setdefault(entry.id, entry.record)
        newest: dict[str, str] = {}
        for delivery in hand:  # in the order of the log
            newest[self._entry(delivery).run_id] = delivery[0].decode()
        letters: list[list[str | bytes]] = [
            ["id", stream_id, "reason", "a reason", *fields] for stream_id, fields in bad
        ]
        refused = {self._id(delivery) for delivery in bad}
        self.model.refused |= refused
        self.consumers[name].calls = calls
        self.consumers[name].settle(Settlement(batch, newest, letters))
        if calls < len(newest):
            self.consumers[name].restart()
        else:  # or a peer that took it over was first
            self.model.dead |= refused & self.model.pending
            self.model.settled |= {self._id(delivery) for delivery in hand}

    @precondition(lambda self: self.hands)
    @rule(which=WHICH)
    def persister_dies(self, which: int) -> None:
        name = pick(self.hands, which)
        del self.hands[name]
        self.consumers[name].restart()

    # What shortens the logs.

    @precondition(lambda self: self.redis.exists(KEYS.log))
    @rule(retention_s=st.sampled_from([-1, 0, 3600]))
    def trim(self, retention_s: int) -> None:
        """Down to a window that begins now or an hour ago, or that does not keep even the newest ones."""
        self.consumers["eager"].trim(timedelta(seconds=retention_s))

    @rule(run_id=st.sampled_from(RUNS))
    def time_passes_for_a_run_log(self, run_id: str) -> None:
        left: Any = self.redis.pttl(KEYS.run(run_id))
        if left > 0:
            self.redis.delete(KEYS.run(run_id))

    # What goes wrong.

    @precondition(lambda self: self.crashes_left)
    @rule()
    def crash(self) -> None:
        self.valkey.kill()
        self._come_back()

    @precondition(lambda self: self.crashes_left)
    @rule(runs=st.lists(st.sampled_from(RUNS), min_size=1, max_size=3), steps=st.integers(0, 4))
    def crash_under_a_request(self, runs: list[str], steps: int) -> None:
        """Its sender does not hear whether it was stored, and sends it again under its key."""
        events, key = self._events(runs), f"key-{self.counter}"
        request = self.loop.create_task(self.publisher.append(events, key))
        for _ in range(steps):
            self._now(asyncio.sleep(0))
        self.valkey.kill()
        answer = self._now(self._outcome(request))
        self._come_back()
        ids = self._now(self.publisher.append(events, key))
        assert answer in (None, ids)
        self.model.append(events, ids)
        self.model.once[key] = (events, ids)

    @staticmethod
    async def _outcome(request: asyncio.Task[list[int]]) -> list[int] | None:
        try:
            return await request
        except (NotStored, OutcomeUnknown):
            return None

    def _come_back(self) -> None:
        self.valkey.start()
        self.crashes_left -= 1
        for client in (self.redis, *self.clients):
            client.connection_pool.disconnect()
        self._now(self.publisher.close())  # its connections are dead, and made again when they are needed

    @rule()
    def functions_are_gone(self) -> None:
        self.redis.function_flush()

    @precondition(lambda self: self.redis.exists(KEYS.log))
    @rule()
    def the_clock_steps_back(self) -> None:
        """An hour: so far ahead of it the log is then."""
        now: Any = self.redis.time()
        top = max(StreamId((now[0] + 3600) * 1000, 0), stream_id(max(self.model.given, default=START)))
        self.redis.execute_command("XSETID", KEYS.log, str(top))  # type: ignore[no-untyped-call]
        self.ahead = True

    @rule()
    def everything_is_gone(self) -> None:
        if (
            self.ahead
        ):  # what was neither archived nor is in a log, nobody can know when the clock is behind it
            entries = (Entry(id, *self.model.given[id]) for id in self.model.unsettled)
            self.model.archive |= {entry.id: entry.record for entry in entries}
        self.redis.flushall()
        self.model.lose()
        self.hands.clear()
        for consumer in self.consumers.values():
            consumer.restart()

    @rule()
    def another_worker(self) -> None:
        self._now(self.publisher.close())
        self.publisher = self._now(self._make(self._publisher))

    # Viewers.

    @rule(run_id=st.sampled_from(RUNS), which=WHICH, meanwhile=st.booleans())
    def resume(self, run_id: str, which: int, meanwhile: bool) -> None:
        """From any event, also of another run, and from what was never an event."""
        position = pick({START, *self.model.given, *(id + 1 for id in self.model.given)}, which)
        known_before = self._known(run_id, position)
        with self._meanwhile(meanwhile):
            got = self._now(self._replayed(run_id, position))
        known = known_before and self._known(run_id, position)
        if known or got is not None:
            assert got is not None, "the position is in a log or in the archive"
            assert known_before, "nobody knows what follows"
            self._check_seen(run_id, position, got)

    @rule(run_id=st.sampled_from(RUNS), meanwhile=st.booleans())
    def connect(self, run_id: str, meanwhile: bool) -> None:
        with self._meanwhile(meanwhile):
            position, got = self._now(self._snapshot(run_id))
        self._check_seen(run_id, START, got)
        assert position >= max(got, default=START)
        assert not self._now(self._replayed(run_id, position))

    @contextmanager
    def _meanwhile(self, wanted: bool) -> Iterator[None]:
        """Lets a persister store and acknowledge its batch between the reads of a log and of the archive."""
        if self.hands and wanted:
            busy = min(self.hands)
            self.archive.meanwhile = lambda: self._store(busy)
        yield
        self.archive.meanwhile = None

    def _known(self, run_id: str, position: int) -> bool:
        in_archive = position in self.model.archive and self.model.archive[position].run_id == run_id
        return position == START or in_archive or position in self._log(KEYS.run(run_id))

    async def _replayed(self, run_id: str, position: int) -> list[int] | None:
        replay, got = Replay([self.link], self.archive, page=3), list[int]()
        while page := await replay.after(run_id, got[-1] if got else position, 1):
            assert all(self._is_right(record.id, json.loads(record.payload)) for record in page.records)
            got += [record.id for record in page.records]
            if not page.more:
                return got
        return None

    async def _snapshot(self, run_id: str) -> tuple[int, list[int]]:
        snapshot = await Replay([self.link], self.archive, page=3).snapshot(run_id, 1)
        lists = json.loads(b"{%b}" % b"".join([piece async for piece in snapshot.lists]))
        seen = lists["paper_generation_progress"]
        assert all(self._is_right(event["id"], event) for event in seen)
        return snapshot.position, [event["id"] for event in seen]

    def _is_right(self, id: int, payload: dict[str, Any]) -> bool:
        event = self.model.given[id]
        number: int = json.loads(event.text)["n"]
        return (payload["id"], payload["run_id"], payload["n"]) == (id, event.run_id, number)

    def _check_seen(self, run_id: str, position: int, got: list[int]) -> None:
        """All of the run, once, in order. What the archive refused may be missing."""
        all_of_it = self.model.of_run(run_id, position)
        refused_too = [id for id in all_of_it if id not in self.model.missing or id in got]
        assert got == refused_too

    # What holds after every step.

    @staticmethod
    def _id(delivery: Delivery) -> int:
        return event_id(StreamId.parse(delivery[0]), 0)

    @staticmethod
    def _entry(delivery: Delivery) -> Entry:
        return decode(*delivery, 0)

    def _log(self, key: str) -> dict[int, NewEvent]:
        found: Any = self.redis.xrange(key)
        entries = [decode(id, [part for pair in fields.items() for part in pair], 0) for id, fields in found]
        return {entry.id: NewEvent(entry.run_id, entry.kind, entry.text) for entry in entries}

    @invariant()
    def what_is_not_archived_is_in_both_logs_once(self) -> None:
        model, log = self.model, self._log(KEYS.log)
        assert log.items() <= model.given.items(), "something was invented, or changed"
        assert model.unsettled <= log.keys(), "something was trimmed that nobody had settled"
        for run_id in RUNS:
            run_log = list(self._log(KEYS.run(run_id)).items())
            given = [(id, model.given[id]) for id in model.of_run(run_id)]
            assert run_log == given[len(given) - len(run_log) :], "a run log is the end of its run"
            assert set(model.of_run(run_id)) - model.archive.keys() - model.refused <= dict(run_log).keys()

    @invariant()
    def what_is_delivered_and_not_settled_is_claimed(self) -> None:
        assert sum(claim.entries for claim in claims(self.redis, KEYS)) == len(self.model.pending)

    @invariant()
    def each_dead_letter_is_there_once(self) -> None:
        letters: Any = self.redis.xrange(KEYS.dead_letters)
        ids = [event_id(StreamId.parse(fields[b"id"]), 0) for _, fields in letters]
        assert sorted(ids) == sorted(self.model.dead)
