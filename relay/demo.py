"""The demo: a recorded run through the real webhook, seen by a real viewer, counted in the real archive."""

import contextlib
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import click
import httpx
import psycopg2
from pydantic_core import from_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rp_relay_client import Emitter

from relay.auth import mint_viewer_token
from relay.events.kinds import Heartbeat, RunFinished
from relay.events.registry import REGISTRY, TABLES
from relay.stream.keys import created_at, stream_id
from relay.watch import watch

CONVERSATION, USER = 1, 1
PATIENCE_S = 30.0
"""How long after the last event it may take until all of them are seen and archived."""

POLL_S = 0.01


class Recorded(NamedTuple):
    """One line of a trace: when, and an event as the client takes it."""

    at: float
    kind: str
    data: dict[str, Any]

    def persistence_record(self) -> tuple[str, dict[str, Any]]:
        return self.kind, self.data


@dataclass
class Report:
    """What was sent, and when each event was where, by the wall clock in seconds."""

    posted: list[float] = field(default_factory=list)
    seen: list[tuple[int, float]] = field(default_factory=list)
    heartbeats: set[int] = field(default_factory=set)
    archived: dict[int, float] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        return len(self.posted)

    @property
    def lost(self) -> int:
        """Events that were sent, but not seen or not archived."""
        return self.sent - len({id for id, _ in self.seen} & self.archived.keys())

    @property
    def doubled(self) -> int:
        """Events that were seen or archived once more than they were sent."""
        ids = [id for id, _ in self.seen]
        return len(ids) - len(set(ids)) + max(0, len(self.archived) - self.sent)

    @property
    def whole(self) -> bool:
        """Whether all that was sent was seen and archived once, in order."""
        ids = [id for id, _ in self.seen]
        return self.sent > 0 and self.lost == 0 and self.doubled == 0 and ids == sorted(self.archived)


def load_trace(name: str) -> list[Recorded]:
    """A trace that comes with the relay, or one at a path. Raises click.ClickException."""
    bundled = files("relay").joinpath("traces", name)
    try:
        text = Path(name).read_text() if Path(name).is_file() else bundled.read_text()
        return [_recorded(from_json(line)) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, KeyError) as error:
        raise click.ClickException(f"{name} is not a trace: {type(error).__name__}") from error


def _recorded(line: dict[str, Any]) -> Recorded:
    kinds = {kind.path: name for name, kind in REGISTRY.items()}
    at, kind = line.pop("at"), kinds[line.pop("path")]
    return Recorded(at, kind, line.get("event", line))


@contextlib.contextmanager
def directory(chosen: Path | None) -> Iterator[Path]:
    """Where the demo keeps its data: a temporary place, unless one was chosen."""
    if chosen is not None:
        yield chosen
        return
    made = Path(tempfile.mkdtemp(prefix="relay-demo-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def play(
    ready: Mapping[str, Any], spool: Path, trace: Sequence[Recorded], speed: float, stopping: threading.Event
) -> Report:
    """Plays the trace through the pipeline's client while a viewer watches, waits for the archive, and prints
    the table."""
    console = Console()
    run_id = f"demo-{uuid.uuid4().hex[:12]}"
    report = Report()
    ends = any(REGISTRY[recorded.kind].ends_run for recorded in trace)
    token = os.environ["TELEMETRY_WEBHOOK_TOKEN"]
    console.print(f"[bold]{len(trace)} events[/] of a recorded run, {speed:g} times as fast, as {run_id}")
    httpx.put(
        f"{ready['url']}/research-pipeline/runs/{run_id}",
        json={"conversation_id": CONVERSATION, "user_id": USER},
        headers={"authorization": f"Bearer {token}"},
    ).raise_for_status()
    with (
        Emitter(ready["url"], token, run_id, spool_dir=spool) as emitter,
        contextlib.closing(psycopg2.connect(ready["database_url"])) as archive,
        _bars(console, report, len(trace)) as update,
    ):
        viewer = _Viewer(ready["url"], run_id, report, count_end=ends)
        tables = [table for table in TABLES if ends or table != RunFinished.table]

        def look() -> None:
            _look(archive, tables, run_id, report)
            update()

        started = time.monotonic()
        for recorded in trace:
            while (ahead := started + recorded.at / speed - time.monotonic()) > 0 and not stopping.is_set():
                look()
                stopping.wait(min(ahead, POLL_S))
            if stopping.is_set():
                break
            report.posted.append(time.time())
            emitter(recorded)
        if not ends:
            emitter.finished()
        deadline = time.monotonic() + PATIENCE_S
        while not (viewer.finished.is_set() and len(report.archived) >= report.sent):
            look()
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
    console.print(_table(report))
    return report


class _Viewer:
    """Watches the run in a thread, and notes what it sees, when."""

    def __init__(self, url: str, run_id: str, report: Report, *, count_end: bool) -> None:
        token = mint_viewer_token(
            os.environ["RELAY_VIEWER_SECRET"],
            USER,
            3600,
            audience=os.environ.get("RELAY_VIEWER_AUDIENCE"),
            issuer=os.environ.get("RELAY_VIEWER_ISSUER"),
        )
        self._messages = watch(url, CONVERSATION, run_id, token)
        self._report = report
        self._count_end = count_end
        self.finished = threading.Event()
        connected = threading.Event()
        threading.Thread(target=self._watch, args=[connected], daemon=True).start()
        connected.wait(PATIENCE_S)

    def _watch(self, connected: threading.Event) -> None:
        for id, message in self._messages:
            if message["type"] == "initial":
                connected.set()
            elif id is not None and (message["type"] != "complete" or self._count_end):
                self._report.seen.append((id, time.time()))
                if message["type"] == Heartbeat.sse_type:
                    self._report.heartbeats.add(id)
        self.finished.set()


def _look(archive: Any, tables: Sequence[str], run_id: str, report: Report) -> None:
    """Notes what has come into the archive: rows, and heartbeats as far as the run was heard of."""
    with archive, archive.cursor() as cursor:
        for table in tables:
            cursor.execute(f"SELECT id FROM {table} WHERE run_id = %s", (run_id,))  # noqa: S608
            _note(report, {id for (id,) in cursor.fetchall()})
        cursor.execute("SELECT last_heartbeat_at FROM research_pipeline_runs WHERE run_id = %s", (run_id,))
        ((heard,),) = cursor.fetchall()
        if heard is not None:
            _note(report, {id for id in report.heartbeats if datetime.fromisoformat(created_at(id)) <= heard})


def _note(report: Report, ids: set[int]) -> None:
    now = time.time()
    report.archived.update(dict.fromkeys(ids - report.archived.keys(), now))


@contextlib.contextmanager
def _bars(console: Console, report: Report, total: int) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars = {name: progress.add_task(name, total=total) for name in ("sent", "seen live", "archived")}

        def update() -> None:
            for name, done in zip(bars, (report.sent, len(report.seen), len(report.archived)), strict=True):
                progress.update(bars[name], completed=done)

        yield update
        update()


def _table(report: Report) -> Table:
    """The figures. A POST is timed from the call of the client that makes it."""
    live = [(seen - posted) * 1000 for posted, (_, seen) in zip(report.posted, report.seen, strict=False)]
    archived = [(at - stream_id(id).ms / 1000) * 1000 for id, at in sorted(report.archived.items())]
    table = Table("what", "figure", title="What became of them")
    for name, figure in {
        "sent": str(report.sent),
        "seen live": str(len(report.seen)),
        "archived": str(len(report.archived)),
        "lost": str(report.lost),
        "doubled": str(report.doubled),
        "POST to viewer, p50": _percentile(live, 50),
        "POST to viewer, p99": _percentile(live, 99),
        "stream to archive, p50": _percentile(archived, 50),
    }.items():
        table.add_row(name, figure)
    return table


def _percentile(values: Sequence[float], percent: int) -> str:
    if len(values) < 2:
        return "-"
    return f"{quantiles(values, n=100, method='inclusive')[percent - 1]:.1f} ms"
