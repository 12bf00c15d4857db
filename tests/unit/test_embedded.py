"""Where the servers of `relay up` listen."""

import socket
from pathlib import Path

import pytest

from relay import embedded


def test_a_free_port_is_none_that_the_system_gives_to_whoever_asks_for_any() -> None:
    lowest, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert embedded.free_port() <= max(embedded.PORTS) < int(lowest)


def test_a_port_that_somebody_has_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = embedded.free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setattr(embedded, "PORTS", [taken, taken, taken, free])
        assert {embedded.free_port() for _ in range(20)} == {free}
