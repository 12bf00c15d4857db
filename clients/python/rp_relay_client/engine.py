"""What an emitter has running in one process: an intake, a spool, a sender, and two threads."""

import threading
import time
from pathlib import Path

from rp_relay_client.counters import Counters, Stats
from rp_relay_client.intake import Intake
from rp_relay_client.notices import Notices
from rp_relay_client.secret import Secret
from rp_relay_client.sender import Sender
from rp_relay_client.settings import Settings
from rp_relay_client.spool import Spool
from rp_relay_client.transport import Address, Transport

_ABORT_S = 1.0
"""How long a thread may take to end once its connection was cut."""


class Engine:
    """Begins to work at `start`. The threads are daemons: what they have not done by the end of the
    process is in the spool."""

    def __init__(
        self,
        run: str,
        address: Address,
        secret: Secret,
        directory: Path | None,
        settings: Settings,
        counters: Counters,
        notices: Notices,
    ) -> None:
        self._counters = counters
        self._transport = Transport(address, secret, settings.timeout_s)
        self._spool = Spool(directory, settings, counters, notices)
        self._intake = Intake(run, settings, counters, notices)
        self._sender = Sender(self._spool, self._transport, settings, notices)
        self._threads = [
            threading.Thread(
                target=self._intake.run, args=[self._spool], name="rp-relay-writer", daemon=True
            ),
            threading.Thread(target=self._sender.run, name="rp-relay-sender", daemon=True),
        ]
        self.offer = self._intake.offer

    def start(self) -> None:
        """Raises RuntimeError where no thread can be started any more."""
        for thread in self._threads:
            thread.start()

    def stats(self) -> Stats:
        memory, disk = self._spool.counts()
        counters = self._counters
        return Stats(self._intake.waiting + memory, disk, counters.sent, counters.refused, counters.dropped)

    def flush(self, deadline: float) -> bool:
        """Waits until nothing is queued or spooled; answers whether that is so."""
        return self._spool.wait(self._empty, max(0.0, deadline - time.monotonic()))

    def hurry(self, deadline: float) -> None:
        """Takes nothing more, and sends what there is."""
        self._intake.finish()
        self._sender.hurry(deadline)

    def join(self, deadline: float) -> bool:
        """Waits for the end, which `hurry` began; answers whether everything was sent."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self._transport.abort()
            self._threads[-1].join(_ABORT_S)
        return self._empty() and not self._spool.lost

    def abandon(self) -> None:
        """In a forked child, where the threads do not exist: lets go of what they used."""
        self._transport.abandon()
        self._spool.abandon()

    def _empty(self) -> bool:
        return self._intake.waiting == 0 and not any(self._spool.counts())
