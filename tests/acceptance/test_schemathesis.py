"""The API document against the server that it describes: every operation gets what fits the document, and
what does not, and has to answer as the document says.

Event streams are part of it, and end: a reader that waits for the end of an answer would wait for ever on a
stream that goes on, so the viewer here owns a run that is over, and of conversations one that does not exist.
"""

import asyncio
import copy
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CHECKS, load_all_checks

from relay.app import create_app
from relay.settings import Settings
from tests.acceptance.running import Relay, relay_up, viewer
from tests.canaries import TOKEN
from tests.factories import progress

CASES = int(os.environ.get("CASES", "10"))
RUN, CONVERSATION, USER = "a-finished-run", 77, 7
EXAMINED: Counter[str] = Counter()

load_all_checks()
NOT_ASKED: Any = CHECKS.get_by_names(
    [
        "negative_data_rejection",  # unknown and odd parameters are ignored: lost telemetry is worse
        "positive_data_acceptance",  # to JSON Schema 1.0 is a whole number; here it is none
    ]
)


@pytest.fixture(scope="module")
def documented(directory: Path) -> Iterator[Relay]:
    with relay_up(directory / "documented", RELAY_LIVE_RUNS="1000000", RELAY_BODY_TIMEOUT_S="60") as made:
        made.claim(RUN, CONVERSATION, USER)
        made.progress(RUN, progress())
        made.finish(RUN)
        url = f"{made.url}/conversations/{CONVERSATION}/idea/research-run/{RUN}/events"
        assert "complete" in httpx.get(url, headers=viewer(USER), timeout=30).text
        yield made
        print(f"\nschemathesis: {len(EXAMINED)} operations, {dict(EXAMINED)}")  # noqa: T201 - for `make`


async def document() -> Any:
    """What every server serves, asked of one that is not even started."""
    transport = httpx.ASGITransport(create_app(Settings(api_docs=True)))
    async with httpx.AsyncClient(transport=transport, base_url="http://relay") as client:
        return (await client.get("/openapi.json")).json()


DOCUMENT = asyncio.run(document())
schema = schemathesis.openapi.from_dict(copy.deepcopy(DOCUMENT))


@schema.auth()
class Token:
    """The right one for each side; the checks also try without it, and with a wrong one."""

    def get(self, case: schemathesis.Case[Any], context: schemathesis.AuthContext) -> str:
        if case.operation.path.startswith(("/conversations", "/tickets")):
            return viewer(USER)["authorization"]
        return f"Bearer {TOKEN}"

    def set(self, case: schemathesis.Case[Any], data: str, context: schemathesis.AuthContext) -> None:
        case.headers["Authorization"] = data


def test_the_document_is_the_one_that_is_served(documented: Relay) -> None:
    assert documented.http.get("/openapi.json").json() == DOCUMENT


@schema.parametrize()
@settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_operation_answers_as_its_document_says(
    case: schemathesis.Case[Any], documented: Relay
) -> None:
    EXAMINED[f"{case.operation.method.upper()} {case.operation.path}"] += 1
    reads = case.operation.path.startswith("/conversations")
    if reads and "run_id" in case.path_parameters and EXAMINED.total() % 2:
        case.path_parameters.update(conversation_id=CONVERSATION, run_id=RUN)
    case.call_and_validate(base_url=documented.url, excluded_checks=NOT_ASKED, timeout=60)
