"""Strings that are nowhere but in these tests, and must not come out of any program into a log.

The secrets are drawn for each session. What the servers that tests start have written is searched at its end.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

TOKEN = f"canary-token-{secrets.token_hex(24)}"
"""What the tests' pipelines present."""

SECRET = f"canary-secret-{secrets.token_hex(24)}"
"""The key of the tests' viewers' tokens."""

RUN_SECRET = f"canary-run-secret-{secrets.token_hex(24)}"
"""The key of the tests' tokens for one run."""

PAYLOAD = "canary in a payload: τ, §3"
"""Part of an event of every kind that has room for text."""

IN_NO_LOG: Mapping[str, Iterable[str]] = {
    "the webhook token": [TOKEN],
    "the viewers' secret": [SECRET],
    "the runs' secret": [RUN_SECRET],
    "a viewer's token": ["eyJhbGciOi"],
    "a payload": [PAYLOAD, PAYLOAD.encode("ascii", "backslashreplace").decode()],
    "SQL": ["INSERT INTO ", "COPY rp_", "COPY research_", "jsonb_to_recordset"],
}

OF_POSTGRESQL = ("the webhook token", "the viewers' secret", "the runs' secret", "a viewer's token")
"""Its own log tells its operator which statement failed: only secrets must not be in there."""


def leaks(directory: Path) -> Iterator[str]:
    """What is in a log below the directory and must not be, in words."""
    for log in directory.rglob("*.log"):
        if not log.is_file():
            continue
        text = log.read_text(errors="replace")
        for what, strings in IN_NO_LOG.items():
            of_postgresql = log.name == "postgres.log" and what not in OF_POSTGRESQL
            if not of_postgresql and any(string in text for string in strings):
                yield f"{what} is in {log.relative_to(directory)}"
