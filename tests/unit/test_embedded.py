"""Where the servers of `relay up` listen."""

import socket

import pytest

from relay import embedded

LINUX_GIVES_FROM = 32_768
"""Unless it is told otherwise."""


def test_a_free_port_is_none_that_the_system_gives_to_whoever_asks_for_any() -> None:
    assert embedded.free_port() <= max(embedded.FREE_PORTS) < LINUX_GIVES_FROM


def test_a_port_that_somebody_has_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = embedded.free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setattr(embedded, "_untried", iter([taken, free]))
        assert embedded.free_port() == free


def test_a_port_is_given_once() -> None:
    ports = [embedded.free_port() for _ in range(1000)]
    assert len(set(ports)) == len(ports)
