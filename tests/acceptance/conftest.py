"""One running product for the tests that do not break it."""

from collections.abc import Iterator

import pytest

from tests.acceptance.running import Relay, relay_up


@pytest.fixture(scope="session")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with relay_up(tmp_path_factory.mktemp("relay") / "data") as running:
        yield running
