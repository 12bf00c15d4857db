"""All runs of a conversation on one connection: browsers allow six to a host, and a dashboard needs more."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

from starlette.types import Scope, Send

from relay.auth import Run
from relay.errors import MalformedPosition, RelayError, Unavailable
from relay.http.viewing import LiveEndpoint, Shard, Viewing, asked_position
from relay.http.wire import Wire
from relay.hub import Follower, State, Wake
from relay.settings import Settings
from relay.sse import Framing, join_positions, opening, parse_positions
from relay.stream.entry import frame
from relay.stream.keys import created_at, shard_of_run
from relay.stream.replay import Replay

REFRESH_S = 2.0
"""How often to look for new runs of the conversation."""

MARGIN_S = 60.0
"""How long before a position a run may have become known without its viewer having heard of it: two clocks,
and the time until a new run is noticed. One `initial` too many only replaces what was there."""

_NO_RUN = ""
"""What every hub has a follower watch: its place is one in all shards, also where it has no run (yet). No run
has the empty name."""


class ConversationStream(LiveEndpoint):
    """`GET /conversations/{conversation_id}/events`."""

    async def admit(self, scope: Scope, wire: Wire, send: Send) -> Viewing:
        caller, conversation = await self.access.enter(
            scope, scope["path_params"]["conversation_id"], ticket=True
        )

        async def look() -> list[Run]:
            return await self.access.runs(caller, conversation)

        runs = await look()
        shards = self.shards()
        positions = _asked(scope, len(shards))
        limit = self.settings.viewer_buffer_bytes
        follower = Follower(wire, shards=len(shards), buffer_limit=limit, expires=caller.expires)
        replay, user_id = self.replay(), caller.user_id
        return ConversationViewing(
            follower, wire, send, shards, self.settings, replay, user_id, look, runs, positions
        )


def _asked(scope: Scope, shards: int) -> list[int] | None:
    """The positions to resume from; None where everything is wanted. Raises MalformedPosition."""
    text = asked_position(scope)
    positions = parse_positions(text) if text else []
    if len(positions) not in (0, 1, shards):
        raise MalformedPosition
    return positions if len(positions) == shards and any(positions) else None


class ConversationViewing(Viewing):
    """The viewer of a conversation. Its runs come and stay; each begins with its `initial`."""

    def __init__(
        self,
        follower: Follower,
        wire: Wire,
        send: Send,
        shards: Sequence[Shard],
        settings: Settings,
        replay: Replay,
        user_id: int,
        look: Callable[[], Awaitable[list[Run]]],
        runs: Sequence[Run],
        positions: list[int] | None,
    ) -> None:
        super().__init__(follower, wire, send, [shard.tailer for shard in shards], settings)
        self._follower = follower
        self._shards = shards
        self._replay = replay
        self._user_id = user_id
        self._look = look
        self._asked = positions
        self._runs: dict[str, Run] = {}
        self._new: list[Run] = []
        self._found = runs

    def join(self) -> None:
        for shard in self._shards:
            shard.hub.register(self._follower, _NO_RUN)
        self._watch(self._found)

    def leave(self) -> None:
        for shard in self._shards:
            shard.hub.unregister(self._follower, _NO_RUN, *self._runs)

    async def begin(self) -> bool:
        if self._asked is None or not await self._reached(self._asked):
            return await self._start_over()
        self._follower.positions = self._asked
        # Runs that were made known since then are new to the viewer.
        self._new = [run for run in self._runs.values() if self._is_since(run)]
        return await self.catch_up()

    async def catch_up(self) -> bool:
        self._follower.state = State.REPLAYING
        await self._send_initials(last=None)
        while True:
            more = [await self._send_page(shard) for shard in range(len(self._shards))]
            if None in more:
                return await self._start_over()
            if not any(more) and self._follower.release():
                return True

    async def idle(self) -> Wake:
        while True:
            why = await self._follower.woken(REFRESH_S)
            if why is not None:
                return why
            try:
                self._watch(await self._look())
            except Unavailable:
                continue
            except RelayError:
                return Wake.LEAVE  # it may not see this any more; the reconnect says why
            if self._new:
                return Wake.CATCH_UP

    def _watch(self, runs: Sequence[Run]) -> None:
        """Has the hubs deliver all these runs; those that were not watched before are new."""
        for run in runs:
            if run.run_id not in self._runs:
                self._new.append(run)
                self._shard(run).hub.register(self._follower, run.run_id)
            self._runs[run.run_id] = run

    def _shard(self, run: Run) -> Shard:
        return self._shards[shard_of_run(run.run_id, len(self._shards))]

    def _position(self, run: Run) -> int:
        return self._follower.positions[shard_of_run(run.run_id, len(self._shards))]

    async def _reached(self, positions: Sequence[int]) -> bool:
        """Whether the logs go as far as the viewer has come; otherwise they were lost."""
        return all([position <= await self._replay.top(shard) for shard, position in enumerate(positions)])

    def _is_since(self, run: Run) -> bool:
        """Whether it may have been made known when its viewer was away already: so says the position in the
        run's own shard, since another one's stays where it is while nothing happens there."""
        known, place = map(datetime.fromisoformat, (run.created_at, created_at(self._position(run))))
        return (known - place).total_seconds() > -MARGIN_S

    async def _start_over(self) -> bool:
        """Sends every run whole, all as they were at one moment, and what followed."""
        self._follower.positions = [await self._replay.top(shard) for shard in range(len(self._shards))]
        self._new = list(self._runs.values())
        await self._send_initials(last=join_positions(self._follower.positions))
        return await self.catch_up()

    async def _send_initials(self, last: str | None) -> None:
        """Sends the new runs whole, as they were at the viewer's position. Only the last block of a beginning
        has a position to resume from: a viewer that is cut before it begins anew."""
        place = "0" if last else join_positions(self._follower.positions)
        while self._new:
            run = self._new[0]
            if last and len(self._new) == 1:
                place = last
            begin = (
                opening(place, Framing.LABELLED) + b'{"type":"initial","run_id":"%b",' % run.run_id.encode()
            )
            snapshot = await self._replay.snapshot(run.run_id, self._user_id, self._position(run))
            await self.write_initial(begin, run, snapshot)
            self._new.pop(0)
        await self.write(b"")

    async def _send_page(self, shard: int) -> bool | None:
        """Sends a page of what follows in a shard. Whether there is more; None where the log was lost."""
        runs = [run_id for run_id in self._runs if shard_of_run(run_id, len(self._shards)) == shard]
        page = await self._replay.after_all(runs, self._follower.positions[shard], self._user_id)
        if page is None:
            return None
        frames = [made for record in page.records if (made := frame(record))]
        await self.write(b"".join(self._follower.blocks(frames)))
        if page.records:  # of which the last ones may show nothing
            self._follower.positions[shard] = page.records[-1].id
        return page.more
