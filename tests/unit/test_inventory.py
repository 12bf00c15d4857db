"""What is answered is what the inventory in docs/protocol.md says, and nothing else."""

import re
from pathlib import Path

from tests.inventory import Inventory, of_the_private_listeners, public

PROTOCOL = Path(__file__).parents[2] / "docs/protocol.md"


def documented() -> dict[str, Inventory]:
    """The inventory of the document, by who answers."""
    found: dict[str, Inventory] = {}
    who = ""
    section = PROTOCOL.read_text().partition("\n## Inventory\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| *(.*?) *\| (`[A-Z`, ]+) \| (`.*) \|$", section, re.MULTILINE)
    for answered_by, methods, paths in rows:
        who = answered_by.split(", for ")[0] or who
        for method in re.findall(r"[A-Z]+", methods):
            found.setdefault(who, set()).update((method, path) for path in re.findall(r"`([^`]+)`", paths))
    return found


def test_users_reach_what_is_documented_and_nothing_else() -> None:
    assert documented()["web workers"] == public(api_docs=False)


def test_the_api_document_adds_its_own_two_paths() -> None:
    added = public(api_docs=True) - public(api_docs=False)
    assert documented()["web workers, with `RELAY_API_DOCS`"] == added


def test_operators_reach_what_is_documented_and_nothing_else() -> None:
    private = {
        who.rpartition(" ")[2]: inventory
        for who, inventory in documented().items()
        if who.startswith("private listener")
    }
    listeners = of_the_private_listeners()
    assert private == {"worker": listeners["web"], "persister": listeners["persister"]}
