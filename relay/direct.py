"""Bytes to a connection by the shortest way: straight to its socket, while nothing waits in its transport.

That leaves little more than the system call. (Not under TLS, which is in the transport.)
"""

import asyncio
import os


class Direct:
    """The writing end of a transport. Where something else writes to that, too, `doubt` goes before `write`.

    A transport tells of its loss before it closes its socket. By then `lost` has to be called, or `write` not
    any more, or never without a `doubt` before it. What is written after the loss goes nowhere.
    """

    __slots__ = ("_nothing_waits", "_socket", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._nothing_waits = False
        socket = transport.get_extra_info("socket")  # none where it is closed already
        encrypted = transport.get_extra_info("sslcontext") is not None
        self._socket = -1 if encrypted or socket is None else socket.fileno()

    def write(self, data: bytes) -> int:
        """Answers how many bytes the other side has not taken yet, of this and of what came before."""
        if not (self._nothing_waits or self._looked()):
            return self._queue(data)
        try:
            sent = os.write(self._socket, data)
        except OSError:  # no room, or a broken connection: the transport finds out which, and tells
            sent = 0
        return self._queue(data[sent:]) if sent < len(data) else 0

    def doubt(self) -> None:
        """Something may wait in the transport."""
        self._nothing_waits = False

    def lost(self) -> None:
        """The connection is lost."""
        self._nothing_waits, self._socket = False, -1

    def _looked(self) -> bool:
        transport = self._transport
        empty = not transport.is_closing() and not transport.get_write_buffer_size()
        self._nothing_waits = empty and self._socket >= 0
        return self._nothing_waits

    def _queue(self, data: bytes) -> int:
        self._nothing_waits = False
        if self._transport.is_closing():
            return 0
        self._transport.write(data)
        return self._transport.get_write_buffer_size()
