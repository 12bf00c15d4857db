"""The promises of SECURITY.md that can be held against the repository itself."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.unit.test_imports import imports, modules, name_of

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()


def test_reporting_is_private_and_what_is_not_covered_is_named() -> None:
    assert "Report a vulnerability" in TEXT
    beyond = TEXT.partition("## What is not\n")[2].partition("\n## ")[0]
    for word in ("Root on a host", "Redis", "stolen disk", "backups", "webhook token", "HTML"):
        assert word in beyond, word


def test_every_guard_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| (?!who|---)(.*?) \| .* \| (.*?) \|$", TEXT, re.MULTILINE)
    assert len(rows) > 8
    for who, known_by in rows:
        folder = ROOT
        for name in re.findall(r"`([^`]+)`", known_by):
            path = ROOT / name if "/" in name else folder / name
            assert path.is_file(), (who, name)
            folder = path.parent


def test_only_the_product_is_packaged() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == [
        "relay*",
        "persister*",
        "migrations*",
    ]
    assert project["project"]["scripts"] == {
        "relay": "relay.cli:main",
        "persister": "persister.__main__:main",
    }


@pytest.mark.parametrize("path", modules("relay") + modules("persister"), ids=name_of)
def test_nothing_of_the_tests_is_in_the_product(path: Path) -> None:
    roots = {used.split(".")[0] for used in imports(path)}
    assert not roots & {"tests", "benchmarks", "unittest", "pytest", "fakeredis", "hypothesis"}


@pytest.mark.parametrize("path", modules("relay") + modules("persister"), ids=name_of)
def test_nothing_is_evaluated_unpickled_or_given_to_a_shell(path: Path) -> None:
    text = path.read_text()
    names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "pickle", "marshal", "shelve"}
    assert "shell=True" not in text


def test_no_file_of_the_product_holds_a_secret() -> None:
    secret = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY|eyJhbGciOi|AKIA[0-9A-Z]{16}|whsec_[A-Za-z0-9+/]{24}")
    files = [
        path
        for place in ("relay", "persister", "migrations", "deploy")
        for path in (ROOT / place).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    assert len(files) > 50
    assert not [path for path in files if secret.search(path.read_text(errors="replace"))]
