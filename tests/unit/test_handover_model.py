"""The hand-over from replay to live, step by step, in every order that a scheduler may choose.

Hub, viewers and their tasks are the product's own; the stores, the connections and the tailer are models. A
task stops at each read, before the store looks and again before the answer arrives, and at each write. Which
of them goes on next, what is appended, dispatched, lost or cut meanwhile, is drawn; on failure Hypothesis
prints the steps, as few as it can make them.

What holds after every step: what a client was shown over all its connections is its run from the beginning
on, each event once, in order. Where a hole would be, an `initial` stands, which has it all.
"""

import asyncio
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relay.auth import Run
from relay.events.registry import ENDING
from relay.http.stream import RunViewing
from relay.http.viewing import Shard
from relay.hub import Burst, Hub, State, Viewer, Wake
from relay.settings import Settings
from relay.sse import Framing
from relay.stream.entry import frame
from tests.unit.handing_over import (
    BUFFER,
    RUN,
    Client,
    Connection,
    Ready,
    Scheduler,
    Stores,
    end,
    event,
    first_end,
)

KNOWN = Run(RUN, 7, "running", None, "", None, None)
WHICH = st.integers(0, 99)
SETTINGS = Settings()


class HandOver(RuleBasedStateMachine):
    """Everybody who takes part, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.stores = Stores(self.scheduler.stop)
        self.hub = self.scheduler.loop.run_until_complete(self._hub())
        self.dispatched = 0
        self.clients: list[Client] = []
        self.tasks: list[asyncio.Task[None]] = []

    @staticmethod
    async def _hub() -> Hub:
        return Hub()

    @property
    def top(self) -> int:
        return len(self.stores.records)

    @property
    def shown(self) -> list[int]:
        """What clients are to see: all but the end, which they get as the last message."""
        return [record.id for record in self.stores.records if record.kind not in ENDING]

    # The log, and its tailer.

    @rule(count=st.integers(1, 3))
    def append(self, count: int) -> None:
        self.stores.records += [event(self.top + number) for number in range(1, count + 1)]

    @rule(count=st.integers(1, 3))
    def append_and_tail(self, count: int) -> None:
        """The same, as it mostly is: the tailer has it before anybody else goes on."""
        self.append(count)
        while self.dispatched < self.top:
            self.tail(5)

    @precondition(lambda self: first_end(self.stores.records) is None and self.top > 5)
    @rule()
    def finish(self) -> None:
        self.stores.records.append(end(self.top + 1))

    @precondition(lambda self: self.dispatched < self.top)
    @rule(count=st.integers(1, 5))
    def tail(self, count: int) -> None:
        until = min(self.dispatched + count, self.top)
        news = self.stores.records[self.dispatched : until]
        self.dispatched = until
        self.hub.dispatch(RUN, [made for record in news if (made := frame(record))])
        self.scheduler.settle()

    @rule()
    def lose_the_place(self) -> None:
        """The tailer begins anew, at the top of the log."""
        self.dispatched = self.top
        self.hub.hold_all()
        self.scheduler.settle()

    @rule()
    def forget(self) -> None:
        """Nobody can go on from where the log is now."""
        self.stores.forgotten = self.top

    # Clients, and their connections.

    @precondition(lambda self: len(self.clients) < 3)
    @rule()
    def come(self) -> None:
        self.clients.append(Client())
        self._connect(self.clients[-1])

    @precondition(lambda self: self.clients)
    @rule(which=WHICH)
    def reconnect(self, which: int) -> None:
        """The connection is cut, and the client comes back before anybody else has noticed."""
        client = self.clients[which % len(self.clients)]
        if not client.over:
            client.connection.lost = True
            client.viewer.wake(Wake.GONE)
            self._connect(client)

    def _connect(self, client: Client) -> None:
        client.connection = Connection(client, self.scheduler.stop)
        self.tasks.append(self.scheduler.loop.create_task(self._serve(client, client.connection)))
        self.scheduler.settle()

    async def _serve(self, client: Client, connection: Connection) -> None:
        async def send(message: Any) -> None:
            client.over = client.over or message.get("status") == 204

        viewer = client.viewer = Viewer(connection, framing=Framing.RESUMABLE, buffer_limit=BUFFER)
        tailer: Any = Ready()
        stores: Any = self.stores
        receive: Any = None
        shard = Shard(self.hub, tailer)
        viewing = RunViewing(
            viewer, connection, send, shard, SETTINGS, stores, 1, RUN, KNOWN, client.position
        )
        await viewing.serve({}, receive)

    @precondition(lambda self: self.clients)
    @rule(which=WHICH, unread=st.sampled_from([0, BUFFER + 1]))
    def read_or_stall(self, which: int, unread: int) -> None:
        self.clients[which % len(self.clients)].connection.unread = unread

    # The scheduler.

    @precondition(lambda self: self.scheduler.stopped)
    @rule(which=WHICH)
    def go_on(self, which: int) -> None:
        self.scheduler.go_on(which)

    @precondition(lambda self: self.scheduler.stopped)
    @rule(choices=st.lists(WHICH, min_size=3, max_size=8))
    def go_on_for_a_while(self, choices: list[int]) -> None:
        for which in choices:
            if self.scheduler.stopped:
                self.scheduler.go_on(which)

    @invariant()
    def everybody_was_shown_the_run_from_its_beginning_once_in_order(self) -> None:
        for client in self.clients:
            for part in client.parts:
                assert part == self.shown[: len(part)]
            assert client.completed <= 1

    @invariant()
    def nobody_starts_anew_without_need(self) -> None:
        for client in self.clients:
            assert len(client.parts) <= 1 or self.stores.forgotten

    def teardown(self) -> None:
        """All that is under way comes to its end; then everybody has everything."""
        try:
            for client in self.clients:
                client.connection.unread = 0
            while self.scheduler.stopped or self.dispatched < self.top:
                if self.scheduler.stopped:
                    self.scheduler.go_on(0)
                else:
                    self.tail(5)
            self._everybody_has_everything()
        finally:
            for task in self.tasks:
                task.cancel()
            self.scheduler.settle()
            self.scheduler.loop.close()

    def _everybody_has_everything(self) -> None:
        last = first_end(self.stores.records)
        for client in self.clients:
            needed = [id for id in self.shown if last is None or id < last.id]
            assert client.parts
            assert client.parts[-1][: len(needed)] == needed
            assert client.over == (last is not None), "the stream ends with the run"
            assert last or client.viewer.state is State.LIVE
        assert all(task.done() == (task.exception() is None) for task in self.tasks if task.done())


def explore(examples: int, phases: tuple[Phase, ...] = tuple(Phase), *, same_each_time: bool = False) -> None:
    run_state_machine_as_test(
        HandOver,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            deadline=None,
            database=None,
            print_blob=True,
            phases=phases,
            derandomize=same_each_time,
        ),
    )


@pytest.mark.timeout(400)  # for the shortest steps to a failure; without one it takes some seconds
def test_whatever_the_order_a_client_is_shown_its_run_once_and_in_order() -> None:
    explore(100)


def without_backlog(viewer: Viewer) -> bool:
    viewer.state, viewer.backlog = State.LIVE, []
    return True


def only_while_live(viewer: Viewer, burst: Burst) -> None:
    if viewer.state is State.LIVE:
        viewer._write(burst)


def hold_only_the_live(viewer: Viewer, why: Wake = Wake.CATCH_UP) -> None:
    if viewer.state is State.LIVE:
        viewer.state = State.HELD
        viewer.wake(why)


def deliver_again(viewer: Viewer, burst: Burst) -> None:
    if viewer.state is State.LIVE:
        viewer._write(burst)
    else:
        viewer.backlog.append(burst)


BROKEN: dict[str, tuple[str, Any]] = {
    "released without its backlog": ("release", without_backlog),
    "registered after its replay": ("deliver", only_while_live),
    "not held while it replays": ("hold", hold_only_the_live),
    "written to again": ("deliver", deliver_again),
}
"""Mistakes that a hub could make with a viewer."""


@pytest.mark.parametrize("mistake", BROKEN)
def test_the_model_finds_a_viewer_that_is(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Viewer, *BROKEN[mistake])
    with pytest.raises(AssertionError):
        explore(1000, (Phase.generate,), same_each_time=True)  # or one day chance would not find it
