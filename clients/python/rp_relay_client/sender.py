"""The thread that sends: take the oldest batch, post it, settle it. It alone talks to the relay."""

import random
import time
from http.client import HTTPException

from rp_relay_client.notices import Notices
from rp_relay_client.segment import Batch
from rp_relay_client.settings import Settings
from rp_relay_client.spool import Spool
from rp_relay_client.transport import Transport
from rp_relay_client.verdict import Meaning, Verdict, judge, unreachable

_REFUSED = "The relay refused an event"


class Sender:
    """Runs until the spool is finished and empty, or until the time that `hurry` sets is over."""

    def __init__(self, spool: Spool, transport: Transport, settings: Settings, notices: Notices) -> None:
        self._spool = spool
        self._transport = transport
        self._settings = settings
        self._notices = notices
        self._deadline: float | None = None
        self._over = False
        self._most = self._ceiling = settings.batch_events
        self._failures = 0
        self._trouble: str | None = None
        self._sent_at = self._adopted_at = float("-inf")

    def run(self) -> None:
        """Sends all that comes. Whatever happens, it goes on; at the end it gives the spool up."""
        try:
            while not self._over:
                self._safe_turn()
        finally:
            self._transport.close()
            self._spool.release()

    def hurry(self, deadline: float) -> None:
        """From now on send without delay, and stop once all is sent, or at the deadline at the latest."""
        self._deadline = deadline
        self._spool.announce()

    def _safe_turn(self) -> None:
        """A sender that dies would be silent loss."""
        try:
            self._turn()
        except Exception as error:
            self._notices.once_of("Sending failed unexpectedly", error)
            self._pause(1.0)

    def _turn(self) -> None:
        self._adopt()
        self._gather()
        batch = self._spool.next(self._most)
        if batch is not None:
            self._deliver(batch)
        elif self._deadline is not None and self._spool.finished and not any(self._spool.counts()):
            self._over = True

    def _adopt(self) -> None:
        """Looks for events of dead processes: now and then, and a last time before the end."""
        ending = self._deadline is not None and self._spool.finished
        if ending or time.monotonic() >= self._adopted_at + self._settings.adopt_interval_s:
            self._spool.adopt()
            self._adopted_at = time.monotonic()

    def _gather(self) -> None:
        """Waits for something to send; and after a request, for as much as one may hold."""
        if not self._spool.wait(self._anything, self._settings.adopt_interval_s):
            return
        left = self._sent_at + self._settings.batch_interval_s - time.monotonic()
        if left > 0:
            self._spool.wait(self._enough, left)

    def _anything(self) -> bool:
        return any(self._spool.counts()) or (self._deadline is not None and self._spool.finished)

    def _enough(self) -> bool:
        return self._deadline is not None or sum(self._spool.counts()) >= self._most

    def _deliver(self, batch: Batch) -> None:
        self._sent_at = time.monotonic()
        try:
            verdict = judge(self._transport.post(batch.body, batch.key, batch.segment.traceparent))
        except (OSError, HTTPException) as error:
            verdict = unreachable(error)
        if verdict.meaning is Meaning.KEPT:
            self._kept(batch)
        elif verdict.meaning is Meaning.REFUSED:
            self._refused(batch, verdict)
        else:
            self._put_off(verdict)

    def _kept(self, batch: Batch) -> None:
        self._spool.settle(batch, sent=True)
        self._most = min(self._ceiling, self._most * 2)
        self._failures = 0
        if self._trouble is not None:
            self._notices.info("Events reach the relay again.")
            self._trouble = None

    def _refused(self, batch: Batch, verdict: Verdict) -> None:
        """Drops the events that are at fault; where it is not said which, halves the batch to find them."""
        self._failures = 0
        known = [index for index in verdict.indexes if index < batch.events]
        if batch.events == 1:
            self._spool.settle(batch, sent=False)
        elif known:
            for index in known:
                batch.segment.refuse(batch.place(index))
            batch.segment.let_go()
        else:
            batch.segment.let_go()
            self._most = batch.events // 2
            if verdict.too_much:
                self._ceiling = self._most
        if batch.events == 1 or known:
            for reason in verdict.reasons:
                self._notices.once(f"{_REFUSED}: {reason}", _REFUSED)

    def _put_off(self, verdict: Verdict) -> None:
        """Keeps the batch, says so once for each kind of trouble, and waits."""
        slowly = verdict.meaning is Meaning.SLOWLY
        if verdict.why != self._trouble and (slowly or self._trouble is None):
            self._trouble = verdict.why
            hope = "somebody has to put that right. Events" if slowly else "trying again. Meanwhile events"
            self._notices.warn(f"The relay does not take events ({verdict.why}): {hope} are kept.")
        self._pause(self._pause_s(verdict))
        self._failures += 1

    def _pause_s(self, verdict: Verdict) -> float:
        """With a random part, so that pipelines do not all come back in the same moment."""
        settings = self._settings
        if verdict.wait_s is not None:
            return min(settings.retry_after_max_s, verdict.wait_s) + random.uniform(0, 0.2)  # noqa: S311
        if verdict.meaning is Meaning.SLOWLY:
            return settings.slow_retry_s * random.uniform(0.5, 1)  # noqa: S311
        longest = min(settings.backoff_max_s, settings.backoff_s * (1 << min(self._failures, 16)))
        return longest * random.uniform(0.5, 1)  # noqa: S311

    def _pause(self, seconds: float) -> None:
        """Waits; but not past the deadline, and a deadline that is new ends the wait."""
        if self._deadline is None:
            if self._spool.wait(lambda: self._deadline is not None, seconds):
                self._failures = 0
        elif time.monotonic() + seconds >= self._deadline:
            self._over = True
        else:
            time.sleep(seconds)
