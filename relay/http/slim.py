"""What uvicorn gives to every connection, made when it is needed. A deque takes 600 bytes before anything is
in it, and so does an asyncio.Event, which has one: much of what an idle viewer cost."""

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl


class Pipeline(list[Any]):
    """The requests that wait for the one before them, mostly none."""

    __slots__ = ()

    def appendleft(self, request: Any) -> None:
        self.insert(0, request)


class Flow(FlowControl):
    """Flow control, with an event only while somebody waits for it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.write_paused = False
        self._writable: asyncio.Event | None = None

    async def drain(self) -> None:
        if self.write_paused:
            self._writable = self._writable or asyncio.Event()
            await self._writable.wait()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None:
            self._writable.set()
            self._writable = None
