"""One running product for the tests that do not break it, behind both ways of writing to viewers."""

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from relay.processes import Part, running
from relay.server import listen
from tests.acceptance.running import Relay, environment_with, relay_up


@pytest.fixture(scope="session")
def relay(directory: Path) -> Iterator[Relay]:
    with relay_up(directory / "relay", RELAY_KEEP_ALIVE_S="1", RELAY_SLOW_VIEWER_S="1") as made:
        yield made


@pytest.fixture(scope="session")
def guarded(directory: Path) -> Iterator[Relay]:
    """A product of its own for bad input, which does not wait for long."""
    with relay_up(directory / "guarded", RELAY_BODY_TIMEOUT_S="2", RELAY_HEADER_TIMEOUT_S="2") as made:
        yield made


@pytest.fixture(scope="session")
def plain(relay: Relay, directory: Path) -> Iterator[Relay]:
    """The same product behind an ASGI server that knows nothing of ours."""
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    argv = [sys.executable, "-m", "uvicorn", "--factory", "relay.app:create_app", "--port", str(port)]
    argv += ["--http", "h11", "--loop", "asyncio", "--timeout-graceful-shutdown", "1"]
    stores = {"REDIS_URL": relay.redis_url, "DATABASE_URL": relay.database_url}
    env = environment_with(**stores, RELAY_KEEP_ALIVE_S="1", RELAY_SLOW_VIEWER_S="1")
    with running(Part("plain", argv, lambda: answers(url), env=env, log=directory / "plain.log")) as process:
        made = Relay(process, {**relay.ready, "url": url})
        yield made
        made.http.close()


@pytest.fixture(params=["direct", "plain"])
def service(request: pytest.FixtureRequest) -> Relay:
    """The product under our own protocol class, and under a plain ASGI server."""
    chosen: Relay = request.getfixturevalue("relay" if request.param == "direct" else "plain")
    return chosen


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez").status_code == 200
    except httpx.TransportError:
        return False
