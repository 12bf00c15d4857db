"""Who may import whom: each layer uses the ones below it, and siblings leave each other alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = [
    {
        "relay.cli",
        "relay.__main__",
        "relay.embedded",
        "relay.erase",
        "relay.demo",
        "relay.server",
        "relay.migrate",
        "relay.processes",
        "relay.watch",
    },
    {"relay.app"},
    {"relay.http"},
    {
        "relay.stream.publish",
        "relay.stream.tail",
        "relay.stream.replay",
        "relay.history",
        "relay.auth",
        "relay.lag",
        "relay.durability",
    },
    {
        "relay.hub",
        "relay.background",
        "relay.connect",
        "relay.link",
        "relay.where",
        "relay.addresses",
        "relay.reasons",
        "relay.stream.calls",
        "relay.stream.lane",
        "relay.stream.group",
        "relay.stream.once",
        "relay.stream.trouble",
        "relay.settings",
        "relay.startup",
        "relay.program",
        "relay.listener",
        "relay.exposition",
        "relay.tracing",
        "relay.spans",
    },
    {
        "relay.stream.keys",
        "relay.stream.entry",
        "relay.stream.functions",
        "relay.events",
        "relay.sse",
        "relay.errors",
        "relay.direct",
        "relay.sharing",
        "relay.turns",
        "relay.memory",
        "relay.metrics",
        "relay.logs",
        "relay.headers",
    },
]
TOOLS, SIBLINGS = LAYERS[0], LAYERS[3]
SHARED = {
    "relay.reasons",
    "relay.connect",
    "relay.link",
    "relay.where",
    "relay.stream.group",
    "relay.settings",
    "relay.startup",
    "relay.program",
    "relay.listener",
    "relay.exposition",
    "relay.tracing",
    "relay.spans",
}
FOR_PERSISTERS = SHARED | LAYERS[5]
FRAMEWORKS = {"fastapi", "starlette"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def within(name: str, units: set[str]) -> bool:
    return any(name == unit or name.startswith(unit + ".") for unit in units)


def layer_of(name: str) -> int | None:
    return next((place for place, units in enumerate(LAYERS) if within(name, units)), None)


@pytest.mark.parametrize("path", modules("relay"), ids=name_of)
def test_a_module_uses_only_what_lies_below_it(path: Path) -> None:
    name = name_of(path)
    own = layer_of(name)
    if own is None:
        assert name in ("relay", "relay.stream"), "a new module has to be given its layer here"
        return
    for used in imports(path):
        other = layer_of(used)
        if other is None:
            continue
        same_unit = name == used or any(within(name, {unit}) and within(used, {unit}) for unit in LAYERS[own])
        allowed = other > own or same_unit or (other == own and own != 3)
        assert allowed, f"{name} imports {used}"


@pytest.mark.parametrize("path", modules("relay") + modules("persister"), ids=name_of)
def test_only_the_http_side_knows_the_framework(path: Path) -> None:
    name = name_of(path)
    if not within(name, {"relay.http", "relay.app", "relay.server"}):
        assert not {used for used in imports(path) if used.split(".")[0] in FRAMEWORKS}


@pytest.mark.parametrize("path", modules("persister"), ids=name_of)
def test_persisters_use_only_what_both_processes_share(path: Path) -> None:
    for used in imports(path):
        shared = used == "relay.stream" or within(used, FOR_PERSISTERS)
        assert shared or not used.startswith("relay."), used


def test_the_relay_does_not_know_persisters_and_migrations_know_nobody() -> None:
    for path in modules("relay"):
        assert not {used for used in imports(path) if used.split(".")[0] == "persister"}
    for path in modules("migrations"):
        assert not {used for used in imports(path) if used.split(".")[0] in ("relay", "persister")}


def test_nobody_else_opens_connections() -> None:
    for path in modules("relay") + modules("persister"):
        text = path.read_text()
        opens = "from_url(" in text or "psycopg2.connect(" in text
        assert not opens or name_of(path) in ("relay.connect", "relay.embedded", "relay.demo"), path


CALLS_OUT = {"relay.auth.reread", "relay.cli", "relay.demo", "relay.watch"}
"""What may ask another server by HTTP: for a key set that the operator names, or as a command."""


def test_nothing_that_a_request_says_makes_the_service_call_out() -> None:
    clients = {"aiohttp", "http.client", "httpx", "requests", "urllib.request", "urllib3"}
    calling = {name_of(path) for path in modules("relay") + modules("persister") if imports(path) & clients}
    assert calling <= CALLS_OUT


def test_a_web_worker_loads_no_library_that_only_commands_need() -> None:
    program = "import sys, relay.cli, relay.server; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"alembic", "httpx", "httpx_sse", "rich", "sqlalchemy"} & set(done.stdout.split())
