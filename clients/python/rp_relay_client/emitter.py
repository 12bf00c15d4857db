"""The emitter: what a pipeline holds in its hand."""

import datetime
import json
import re
import secrets
import time
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any

from rp_relay_client import encoding, exits, forks
from rp_relay_client.counters import Counters, Stats
from rp_relay_client.engine import Engine
from rp_relay_client.events import EventKind, Recordable
from rp_relay_client.notices import Notices
from rp_relay_client.places import spool_directory
from rp_relay_client.secret import Secret
from rp_relay_client.settings import Settings
from rp_relay_client.steps import Step
from rp_relay_client.transport import Address

_RUN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_WANTED = {
    "base_url": "the relay's address, as in 'https://relay.example.org'",
    "token": "the relay's token, or the one of this run, as in os.environ['TELEMETRY_WEBHOOK_TOKEN']",
    "run_id": "the name of the run, as in 'run-1'",
}

_pickled: dict[str, "Emitter"] = {}
"""Emitters that went from process to process: however often one arrives, it is the same one."""


class Emitter:
    """Sends the events of a run to the relay. Call it with an event: it is the pipeline's `event_callback`.

    A call never waits, never raises, and keeps the order of its thread. The event is copied at once, on disk
    within milliseconds, and sent soon after; `stats` tells how far events are. It may be called from
    any thread, and in forked children, each of which then has threads and a spool of its own. It can be
    pickled, to be handed to spawned workers.

    Nothing is opened or started before the first event, or `with`. The end of the process sends what
    waits, as `close` does, within `settings.exit_timeout_s`.
    """

    def __init__(
        self,
        base_url: str,
        token: str | Secret,
        run_id: str,
        *,
        spool_dir: str | Path | None = None,
        durable: bool = True,
        settings: Settings | None = None,
    ) -> None:
        """`base_url` is the relay's, as in `https://relay.example.org`.

        `token` is the relay's token for pipelines, or the one that was made for this run.
        `spool_dir` is where events wait; several emitters, processes and runs may share it, and should
        where one shall deliver what another one left behind. (With a run's token that is for the run to do.)
        Its default is `$RELAY_SPOOL_DIR`, or else `rp-relay` in the user's state directory. With
        `durable=False` they wait in memory only.

        Raises TypeError or ValueError for what could never work: a URL, token or run id that is none.
        """
        _check_texts(base_url, token, run_id)
        if not _RUN_ID.fullmatch(run_id):
            raise ValueError("run_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
        self._address = Address.parse(base_url)
        self._secret = token if isinstance(token, Secret) else Secret(token)
        self._arguments = (base_url, self._secret, run_id, spool_dir, durable, settings)
        self._identity = secrets.token_hex(16)
        self._run = json.dumps(run_id)
        self._settings = settings or Settings()
        # What another run left behind, the token of this one may not send.
        alone = self._secret.reveal().startswith(f"run.{run_id}.")
        place = f"{self._address.directory}+{run_id}" if alone else self._address.directory
        self._directory = spool_directory(spool_dir, place) if durable else None
        self._notices = Notices(self._secret)
        self._closed = False
        self._fresh()
        forks.tell(self)

    def _fresh(self) -> None:
        self._starting = RLock()
        self._engine: Engine | None = None
        self._counters = Counters()
        self._offer = self._offer_first

    def __call__(self, event: Recordable) -> None:
        """Takes an event. What can not be sent (a NaN, a foreign object, a cycle) is counted as refused."""
        try:
            record = event.persistence_record()
            if record is not None:
                kind, data = record
                self._offer(kind, encoding.snapshot(data))
        except Exception as error:
            self._refuse(error)

    def started(self) -> None:
        """The run has begun."""
        self._tell(EventKind.RUN_STARTED)

    def finished(self, success: bool = True, message: str | None = None) -> None:
        """The run is over: viewers are told so, after everything that was emitted before."""
        self._tell(EventKind.RUN_FINISHED, success=success, message=message)

    def heartbeat(self) -> None:
        """The run is alive."""
        self._tell(EventKind.HEARTBEAT)

    def gpu_shortage(self, required_gpus: int, available_gpus: int, message: str | None = None) -> None:
        """The run waits for GPUs."""
        self._tell(
            EventKind.GPU_SHORTAGE,
            required_gpus=required_gpus,
            available_gpus=available_gpus,
            message=message,
        )

    def artifact(
        self,
        artifact_type: str,
        filename: str,
        file_size: int,
        file_type: str,
        created_at: datetime.datetime | str | None = None,
    ) -> None:
        """The run has made a file, of that many bytes and that media type. `created_at` is now by default."""
        self._tell(
            EventKind.ARTIFACT,
            artifact_type=artifact_type,
            filename=filename,
            file_size=file_size,
            file_type=file_type,
            created_at=created_at or datetime.datetime.now(datetime.timezone.utc),
        )

    def step(self, name: str) -> Step:
        """A step of the paper: `with emitter.step("paper_writeup") as step: step.progress(0.4)`."""
        return Step(name, self, self._refuse)

    def stats(self) -> Stats:
        """Where this process's events are."""
        engine, counters = self._engine, self._counters
        if engine is not None:
            return engine.stats()
        return Stats(0, 0, counters.sent, counters.refused, counters.dropped)

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until everything is sent, at most that many seconds, or as long as `close` would; answers
        whether it is."""
        engine = self._engine
        return engine is None or engine.flush(self._deadline(timeout))

    def close(self, timeout: float | None = None) -> bool:
        """Sends what waits, at most for that many seconds, or `settings.exit_timeout_s`; answers whether
        all of it was sent.

        What was not stays in the spool, for the next emitter that uses it. Later events are dropped.
        """
        deadline = self._deadline(timeout)
        self.hurry(deadline)
        exits.forget(self)
        return self.join(deadline)

    def hurry(self, deadline: float) -> None:
        """The first half of `close`, which does not wait."""
        with self._starting:
            self._closed = True
        if self._engine is not None:
            self._engine.hurry(deadline)

    def join(self, deadline: float) -> bool:
        """The second half of `close`, which does."""
        return self._engine is None or self._engine.join(deadline)

    def after_fork(self) -> None:
        """In the child: forgets what is the parent's. The next event starts anew."""
        if self._engine is not None:
            self._engine.abandon()
            _abandoned.append(self._engine)
        exits.forget(self)
        self._fresh()

    def __enter__(self) -> "Emitter":
        """Starts, so that what waits in the spool is sent even if no event comes."""
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        base_url, _, run_id, *_ = self._arguments
        return f"Emitter({base_url!r}, ***, {run_id!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        _pickled[self._identity] = self
        return _arrived, (self._identity, self._arguments)

    def _tell(self, kind: EventKind, **data: Any) -> None:
        try:
            self._offer(kind, encoding.snapshot(data))
        except Exception as error:
            self._refuse(error)

    def _offer_first(self, kind: Any, data: dict[str, Any]) -> None:
        """Takes an event before there is an engine, or after that was closed without ever having been one."""
        engine = self._start()
        if engine is None:
            self._counters.add(dropped=1)
        else:
            self._offer = engine.offer
            engine.offer(kind, data)

    def _refuse(self, error: Exception) -> None:
        """Counts an event that can not be sent. Whatever the error is, telemetry must not stop a pipeline."""
        self._counters.add(refused=1)
        self._notices.once_of("An event can not be sent", error)

    def _start(self) -> Engine | None:
        """The engine, running; None where there will be none: closed, or the interpreter is ending."""
        with self._starting:
            if self._engine is None and not self._closed:
                self._engine = Engine(
                    self._run,
                    self._address,
                    self._secret,
                    self._directory,
                    self._settings,
                    self._counters,
                    self._notices,
                )
                try:
                    self._engine.start()
                except RuntimeError:
                    self._engine = None
                else:
                    exits.remember(self, self._settings.exit_timeout_s)
            return self._engine

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self._settings.exit_timeout_s if timeout is None else timeout)


def _check_texts(base_url: object, token: object, run_id: object) -> None:
    """Raises TypeError that says what to pass: most often a variable that is not set."""
    for name, value in (("base_url", base_url), ("token", token), ("run_id", run_id)):
        if not isinstance(value, (str, Secret) if name == "token" else str):
            raise TypeError(f"{name} must be a str, {_WANTED[name]}, and is of {type(value).__name__}")


_abandoned: list[Engine] = []
"""Engines of the parent, in a forked child. They are kept: a finalizer of theirs might wait for a lock
that a thread held which does not exist here."""


def _arrived(identity: str, arguments: tuple[Any, ...]) -> Emitter:
    """The emitter that was pickled, or its equal in this process."""
    if identity not in _pickled:
        base_url, secret, run_id, spool_dir, durable, settings = arguments
        emitter = Emitter(base_url, secret, run_id, spool_dir=spool_dir, durable=durable, settings=settings)
        emitter._identity = identity
        _pickled[identity] = emitter
    return _pickled[identity]
