"""Tests of the tests: no process is left behind."""

from pathlib import Path

import psutil
import pytest

from relay.processes import Part
from tests.faults.servers import Server
from tests.waiting import until


async def test_what_a_process_leaves_behind_is_ended_and_named(place: Path) -> None:
    """A shell that is asked to stop ends at once, and what it started goes on."""
    note = place / "child"
    script = f"sleep 600 & echo $! > {note}; wait"
    server = Server(Part("a shell", ["/bin/sh", "-c", script], note.exists, log=place / "log"))
    await server.start()
    child = psutil.Process(int(await until(note.read_text, "the child")))
    await server.stop()
    assert child.is_running()
    with pytest.raises(AssertionError, match="a shell left behind: sleep"):
        await server.clear()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
