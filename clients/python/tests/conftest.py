from collections.abc import Iterator

import pytest
from fake_relay import FakeRelay, fake_relay


@pytest.fixture
def relay() -> Iterator[FakeRelay]:
    with fake_relay() as fake:
        yield fake
