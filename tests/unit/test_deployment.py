"""The files for containers, held against the product: no engine is needed to see that they fit."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from persister.__main__ import main as persister
from persister.settings import Settings as PersisterSettings
from relay.cli import main as relay
from relay.settings import Settings, StoreSettings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {"migrate": StoreSettings, "relay": Settings, "persister": PersisterSettings}


def variables(model: type[StoreSettings]) -> set[str]:
    """The environment variables that a settings model reads."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        choices = (
            [str(choice) for choice in alias.choices]
            if alias and not isinstance(alias, str) and hasattr(alias, "choices")
            else []
        )
        names.update(choice.upper() for choice in choices)
        if not choices:
            names.add(f"RELAY_{name}".upper())
    return names


def test_the_services_are_these() -> None:
    assert SERVICES.keys() == {"redis", "postgres", "migrate", "relay", "persister"}
    assert {name: SERVICES[name]["image"].split(":")[0] for name in SERVICES} == {
        "redis": "valkey/valkey",
        "postgres": "postgres",
        "migrate": "rp-relay",
        "relay": "rp-relay",
        "persister": "rp-relay",
    }


@pytest.mark.parametrize("name", OURS)
def test_our_services_are_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", OURS)
def test_our_commands_exist_with_their_options(name: str) -> None:
    program, *words = shlex.split(SERVICES[name]["command"])
    group = {"relay": relay, "persister": persister}[program]
    command = group.commands[words[0]]
    command.make_context(words[0], words[1:], resilient_parsing=False)
    assert CliRunner().invoke(group, [words[0], "--help"]).exit_code == 0
    assert isinstance(command, click.Command)


@pytest.mark.parametrize(("name", "model"), OURS.items())
def test_our_variables_are_read_and_the_needed_ones_set(name: str, model: type[StoreSettings]) -> None:
    given = SERVICES[name]["environment"].keys()
    assert given <= variables(model)
    needed = {"REDIS_URL", "DATABASE_URL"}
    needed |= {"TELEMETRY_WEBHOOK_TOKEN", "RELAY_VIEWER_SECRET"} if name == "relay" else set()
    assert needed <= given


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = re.findall(r"\$\{([A-Z_]+)([^}]*)\}", text)
    assert {name for name, _ in used} == {
        "POSTGRES_PASSWORD",
        "TELEMETRY_WEBHOOK_TOKEN",
        "RELAY_VIEWER_SECRET",
    }
    assert all(default.startswith(":?") for _, default in used)


def test_redis_keeps_what_was_acknowledged() -> None:
    words = shlex.split(SERVICES["redis"]["command"])
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"


def test_everything_waits_for_what_it_needs() -> None:
    for name in ("relay", "persister"):
        assert SERVICES[name]["depends_on"] == {
            "redis": {"condition": "service_healthy"},
            "migrate": {"condition": "service_completed_successfully"},
        }
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("redis", "postgres", "relay", "persister"):
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_the_image_runs_as_nobody_special_and_its_command_exists() -> None:
    text = (ROOT / "Dockerfile").read_text()
    user = re.search(r"^USER (\d+):(\d+)$", text, re.MULTILINE)
    assert user is not None
    assert int(user[1]) > 0
    command = re.search(r"^CMD (.*)$", text, re.MULTILINE)
    assert command is not None
    program, name, *words = yaml.safe_load(command[1])
    assert program == "relay"
    relay.commands[name].make_context(name, words)
    for copied in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in copied.split())


@pytest.mark.parametrize("model", OURS.values())
def test_every_setting_is_in_the_manual_and_has_a_reason(model: type[StoreSettings]) -> None:
    manual = (ROOT / "docs/operations.md").read_text()
    assert all(field.description for field in model.model_fields.values())
    for name in variables(model):
        assert f"`{name}`" in manual, name
