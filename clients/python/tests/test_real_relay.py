"""The same with the real relay: what is emitted is in the archive, once and in order."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from fake_relay import TOKEN
from support import SWIFT, ends, event, pipeline, says, wait_until

from rp_relay_client import (
    Emitter,
    PaperGenerationProgressEvent,
    RunLogEvent,
    RunStageProgressEvent,
    SubstageCompletedEvent,
)

TRACE = Path(__file__).parents[3] / "relay" / "traces" / "paper_generation.ndjson"


class Relay:
    """A running `relay up`."""

    def __init__(self, process: "subprocess.Popen[str]", ready: dict[str, Any]) -> None:
        self.process = process
        self.url: str = ready["url"]
        self.database_url: str = ready["database_url"]

    def select(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self.database_url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(query, arguments)
                return cursor.fetchall()
        finally:
            connection.close()

    def archived(self, run_id: str, count: int) -> list[tuple[Any, ...]]:
        """The contents of the run's events, once there are that many."""
        query = (
            "SELECT step, substep, progress, step_progress, details FROM rp_paper_generation_events "
            "WHERE run_id = %s ORDER BY id"
        )
        wait_until(lambda: len(self.select(query, run_id)) >= count, f"{count} rows", 60)
        return self.select(query, run_id)

    def kill_web(self) -> None:
        """Kills the web process with SIGKILL; `relay up` starts another one."""
        wait_until(self._web, "a web process")[0].kill()

    def _web(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "serve" in child.cmdline():
                    found.append(child)
        return found


@contextmanager
def relay_up(data_dir: Path) -> Iterator[Relay]:
    argv = [sys.executable, "-m", "relay", "up", "--port", "0", "--data-dir", str(data_dir)]
    stores = ("REDIS_URL", "DATABASE_URL")
    env = {name: value for name, value in os.environ.items() if name not in stores}
    env["TELEMETRY_WEBHOOK_TOKEN"] = TOKEN
    with (data_dir.parent / "relay.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, env=env, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (data_dir.parent / "relay.log").read_text()
            yield Relay(process, json.loads(line))
        finally:
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with relay_up(tmp_path_factory.mktemp("relay") / "data") as relay:
        yield relay


def emitter_to(real: Relay, run_id: str, spool: Path) -> Emitter:
    return Emitter(real.url, TOKEN, run_id, spool_dir=spool, settings=SWIFT)


def test_a_recorded_paper_is_archived_as_it_was_emitted(real: Relay, tmp_path: Path) -> None:
    recorded = [json.loads(line)["event"] for line in TRACE.read_text().splitlines()]
    with emitter_to(real, "run-recorded", tmp_path) as emitter:
        for fields in recorded:
            emitter(PaperGenerationProgressEvent(**fields))
        emitter.finished()
    assert emitter.stats() == (0, 0, len(recorded) + 1, 0, 0)

    rows = real.archived("run-recorded", len(recorded))
    assert rows == [tuple(fields.values()) for fields in recorded]


def test_the_relay_takes_every_kind_of_event(real: Relay, tmp_path: Path) -> None:
    with emitter_to(real, "run-kinds", tmp_path) as emitter:
        emitter.started()
        emitter(RunStageProgressEvent("1_initial_implementation", 1, 4, 0.25, 3, 1, 2, "accuracy", 60, 15))
        emitter(RunStageProgressEvent("1_initial_implementation", 2, 4, 0.5, 3, 1, 2))
        emitter(RunLogEvent("loading the dataset"))
        emitter(SubstageCompletedEvent("2_baseline_tuning_1_first", 2, 1, "first", "done", {"best": 0.9}))
        emitter(event(1))
        emitter.artifact("paper", "paper.pdf", 1234, "application/pdf")
        emitter.gpu_shortage(8, 2)
        emitter.heartbeat()
        emitter.finished(False, "out of memory")
        assert emitter.flush(60)
        assert emitter.stats() == (0, 0, 10, 0, 0)


def test_a_killed_web_process_loses_and_doubles_nothing(real: Relay, tmp_path: Path) -> None:
    with emitter_to(real, "run-killed", tmp_path) as emitter:
        for number in range(3000):
            emitter(event(number))
            if number % 1000 == 500:
                wait_until(lambda: emitter.stats().queued == 0, "the disk to have it")
                real.kill_web()
        assert emitter.flush(60)
        assert emitter.stats() == (0, 0, 3000, 0, 0)

    numbers = [row[-1]["number"] for row in real.archived("run-killed", 3000)]
    assert numbers == list(range(3000))


def test_a_killed_pipeline_goes_on_where_it_was(real: Relay, tmp_path: Path) -> None:
    with pipeline("streams", real.url, tmp_path, 0) as process:
        last = 0
        while last < 500:
            last = int(says(process))
        process.kill()
        ends(process)
    with pipeline("resumes", real.url, tmp_path) as process:
        assert says(process) == "resumed True"
        assert ends(process) == 0

    numbers = [row[-1]["number"] for row in real.archived("run-1", last + 1)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > last


def test_the_relay_names_the_event_that_it_refuses(real: Relay, tmp_path: Path) -> None:
    bad = {
        3: PaperGenerationProgressEvent("paper_review", None, 7.0, 0.5),
        4: PaperGenerationProgressEvent("", None, 0.5, 0.5),
        9: event(9, nest=eval("[" * 80 + "]" * 80)),  # noqa: S307 - of brackets only
    }
    with emitter_to(real, "run-refused", tmp_path) as emitter:
        for number in range(20):
            emitter(bad.get(number) or event(number))
        assert emitter.flush(60)
        assert emitter.stats() == (0, 0, 17, 3, 0)

    numbers = [row[-1]["number"] for row in real.archived("run-refused", 17)]
    assert numbers == [number for number in range(20) if number not in bad]


def test_events_wait_for_a_token_that_the_relay_takes(real: Relay, tmp_path: Path) -> None:
    wrong = Emitter(real.url, "wrong-token", "run-token", spool_dir=tmp_path, settings=SWIFT)
    wrong(event(1, text="x" * 200_000))
    wait_until(lambda: wrong.stats().spooled == 1, "it to be kept")
    assert not wrong.close(1)
    assert wrong.stats().refused == 0

    with emitter_to(real, "run-token", tmp_path) as emitter:
        emitter(event(2))
    assert [row[-1]["number"] for row in real.archived("run-token", 2)] == [1, 2]
