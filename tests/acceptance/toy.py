"""The product with one more kind of event: a class and a table, and nothing else.

`python -m tests.acceptance.toy relay serve ...` runs the real command with the kind declared.
"""

import sys
from typing import ClassVar

from relay.events import kinds
from relay.events.base import Kind

TABLE = """
    CREATE TABLE IF NOT EXISTS toys (
        id BIGINT PRIMARY KEY,
        run_id TEXT NOT NULL,
        colour TEXT NOT NULL,
        wheels BIGINT NOT NULL,
        occurred_at TIMESTAMPTZ,
        created_at TIMESTAMPTZ NOT NULL
    )
"""


class Toy(Kind):
    """Something to play with."""

    kind = "toy"
    path = "/toy"
    sse_type = "toy"
    initial_key = "toys"
    history_path = "toys"
    table = "toys"
    columns: ClassVar = {"colour": "text", "wheels": "bigint"}

    colour: str
    wheels: int


def main() -> None:
    kinds.Toy = Toy  # type: ignore[attr-defined]
    program = sys.argv.pop(1)
    if program == "relay":
        from relay.cli import main as command
    else:
        from persister.__main__ import main as command
    command()


if __name__ == "__main__":
    main()
