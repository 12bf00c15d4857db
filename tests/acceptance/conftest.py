"""One running product for the tests that do not break it, behind both ways of writing to viewers."""

import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from relay.embedded import free_port
from relay.processes import Part, running
from tests.acceptance.running import CLIENT, Relay, answers, environment_with, relay_up


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "flood: of full size with `make floods`")


@pytest.fixture(scope="session", autouse=True)
def nobody_stays_connected() -> Iterator[None]:
    yield
    CLIENT.close()


LISTED = "a-token-of-the-file-0123456789012345"
SIGNING = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ORIGIN = "https://app.example.com"


@pytest.fixture(scope="session")
def tokens_file(directory: Path) -> Path:
    """More webhook tokens, of which there is one."""
    path = directory / "tokens.json"
    path.write_text(json.dumps([{"name": "listed", "sha256": sha256(LISTED.encode()).hexdigest()}]))
    return path


SIGNER = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="session")
def keys_file(directory: Path) -> Path:
    """The keys of an identity provider, of which there is one."""
    path = directory / "keys.json"
    key = json.loads(ECAlgorithm.to_jwk(SIGNER.public_key()))
    path.write_text(json.dumps({"keys": [{**key, "kid": "2026"}]}))
    return path


@pytest.fixture(scope="session")
def settings(tokens_file: Path, keys_file: Path) -> dict[str, str]:
    """What the product is set to, for tests that do not wait for long."""
    return {
        "RELAY_KEEP_ALIVE_S": "1",
        "RELAY_SLOW_VIEWER_S": "1",
        "RELAY_ACCESS_CACHE_S": "1",
        "RELAY_ACCESS_RECHECK_S": "1",
        "RELAY_WEBHOOK_TOKENS": str(tokens_file),
        "RELAY_WEBHOOK_SIGNING_SECRET": SIGNING,
        "RELAY_VIEWER_JWKS": str(keys_file),
        "RELAY_ALLOWED_ORIGINS": ORIGIN,
    }


@pytest.fixture(scope="session")
def relay(directory: Path, settings: dict[str, str]) -> Iterator[Relay]:
    with relay_up(directory / "relay", **settings) as made:
        yield made


@pytest.fixture(scope="session")
def guarded(directory: Path) -> Iterator[Relay]:
    """A product of its own for bad input, which does not wait for long."""
    with relay_up(directory / "guarded", RELAY_BODY_TIMEOUT_S="2", RELAY_HEADER_TIMEOUT_S="2") as made:
        yield made


@pytest.fixture(scope="session")
def plain(relay: Relay, directory: Path, settings: dict[str, str]) -> Iterator[Relay]:
    """The same product behind an ASGI server that knows nothing of ours."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = [sys.executable, "-m", "uvicorn", "--factory", "relay.app:create_app", "--port", str(port)]
    argv += ["--http", "h11", "--loop", "asyncio", "--timeout-graceful-shutdown", "1"]
    stores = {"REDIS_URL": relay.redis_url, "DATABASE_URL": relay.database_url}
    env = environment_with(**stores, **settings)
    with running(Part("plain", argv, lambda: answers(url), env=env, log=directory / "plain.log")) as process:
        made = Relay(process, {**relay.ready, "url": url})
        yield made
        made.http.close()


@pytest.fixture(params=["direct", "plain"])
def service(request: pytest.FixtureRequest) -> Relay:
    """The product under our own protocol class, and under a plain ASGI server."""
    chosen: Relay = request.getfixturevalue("relay" if request.param == "direct" else "plain")
    return chosen
