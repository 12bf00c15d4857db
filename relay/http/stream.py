"""The live endpoint of a run: checks, replay, and then the hub."""

from collections.abc import Sequence

from starlette.types import Scope, Send

from relay.auth import Run
from relay.errors import Unavailable
from relay.events.base import Message
from relay.events.kinds import ending
from relay.events.registry import REGISTRY
from relay.http.recheck import reader
from relay.http.viewing import LiveEndpoint, Shard, Viewing, asked_position, asks_to_resume
from relay.http.wire import Wire
from relay.hub import State, Viewer
from relay.settings import Settings
from relay.sse import Frame, Framing, opening, parse_position
from relay.stream.entry import Record
from relay.stream.keys import shard_of_run
from relay.stream.replay import Page, Replay


class RunStream(LiveEndpoint):
    """`GET /conversations/{conversation_id}/idea/research-run/{run_id}/events`."""

    async def admit(self, scope: Scope, wire: Wire, send: Send) -> Viewing:
        run_id = scope["path_params"]["run_id"]
        caller, conversation = await self.access.enter(
            scope, scope["path_params"]["conversation_id"], ticket=True
        )
        run = await self.access.run(caller, conversation, run_id)
        asked = asked_position(scope)
        position = parse_position(asked) if asked else None
        framing = Framing.RESUMABLE if asked or asks_to_resume(scope) else Framing.PLAIN
        limit = self.settings.viewer_buffer_bytes
        right = reader(caller, conversation)
        viewer = Viewer(wire, framing=framing, buffer_limit=limit, expires=caller.expires, reader=right)
        shards = self.shards()
        shard = shards[shard_of_run(run_id, len(shards))]
        replay, user_id = self.replay(), caller.user_id
        return RunViewing(viewer, wire, send, shard, self.settings, replay, user_id, run_id, run, position)


class RunViewing(Viewing):
    """The viewer of one run."""

    def __init__(
        self,
        viewer: Viewer,
        wire: Wire,
        send: Send,
        shard: Shard,
        settings: Settings,
        replay: Replay,
        user_id: int,
        run_id: str,
        run: Run | None,
        position: int | None,
    ) -> None:
        super().__init__(viewer, wire, send, [shard.tailer], settings)
        self._hub = shard.hub
        self._replay = replay
        self._user_id = user_id
        self._run_id = run_id
        self._run = run
        self._asked = position

    def join(self) -> None:
        self._hub.register(self.viewer, self._run_id)

    def leave(self) -> None:
        self._hub.unregister(self.viewer, self._run_id)

    async def begin(self) -> bool:
        if self._asked is None:
            return await self._send_past(None)
        self.viewer.position = self._asked
        page = await self._after(self._asked)
        if page is not None and not page.records and await self._is_over(page):
            await self.nothing_more()
            return False
        return await self._send_past(page)

    async def catch_up(self) -> bool:
        return await self._send_past(await self._after(self.viewer.position))

    async def _after(self, position: int) -> Page | None:
        return await self._replay.after(self._run_id, position, self._user_id)

    async def _is_over(self, page: Page) -> bool:
        return bool(page.end or self._ended_before() or await self._passed_end())

    async def _passed_end(self) -> Sequence[Message]:
        """The end of the run, where only late events came after it and the viewer has it behind it. (An end
        that is still before the viewer comes in its turn, after what it has not seen yet.)"""
        end = await self._replay.end(self._run_id)
        return _ending(end) if end and end.id <= self.viewer.position else ()

    async def _send_past(self, page: Page | None) -> bool:
        """Sends the past, from `page` on, or all of it, and makes the viewer live. False: the run is over,
        and with it the stream."""
        viewer = self.viewer
        viewer.state = State.REPLAYING
        end = self._ended_before()
        while True:
            sent = self._send_initial() if page is None else self._send_page(page)
            end = await sent or end
            if page is None or not page.more:
                if page is not None:  # an `initial` was looked through for it
                    end = end or await self._passed_end()
                if end:
                    complete = Frame(viewer.position, self._run_id, end, last=True)
                    await self.write(complete.block(viewer.framing), last=True)
                    return False
                if viewer.release():
                    return True
            page = await self._after(viewer.position)

    def _ended_before(self) -> Sequence[Message]:
        """The last messages, where the database knows that the run is over."""
        return ending(self._run._asdict()) if self._run and self._run.over else ()

    async def _send_page(self, page: Page) -> Sequence[Message]:
        """Sends the records, except the end, which comes last of all and is returned as messages."""
        await self.write(page.blocks(self.viewer.framing))
        if page.records:
            self.viewer.position = page.records[-1].id
        return _ending(page.end)

    async def _send_initial(self) -> Sequence[Message]:
        """Sends all that happened, also of the end; so of its messages only the very last one is returned.

        Raises Unavailable before anything is sent of it.
        """
        if self._run is None:
            raise Unavailable("The archive is not available; connect again later.")
        snapshot = await self._replay.snapshot(self._run_id, self._user_id)
        begin = opening(snapshot.position, self.viewer.framing) + b'{"type":"initial",'
        await self.write_initial(begin, self._run, snapshot)
        self.viewer.position = snapshot.position
        return (_ending(snapshot.end) or self._ended_before())[-1:]


def _ending(end: Record | None) -> Sequence[Message]:
    return REGISTRY[end.kind].messages(end.payload) if end else ()
