"""The files for containers, held against the product: no engine is needed to see that they fit."""

import re
import shlex
import socket
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
    assert {name: service["image"].split(":")[0] for name, service in SERVICES.items()} == {
        "redis": "valkey/valkey",
        "postgres": "postgres",
        "migrate": "rp-relay",
        "grants": "postgres",
        "relay": "rp-relay",
        "persister": "rp-relay",
        "prune": "rp-relay",
    }


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["user"] not in ("", "root", "0", "0:0")
    assert not service.get("privileged")


def test_only_the_web_service_is_published_and_only_on_this_machine() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {"relay": ["127.0.0.1:8000:8000"]}


def test_what_is_mounted_is_in_the_repository_and_not_writable() -> None:
    bound = [
        volume for service in SERVICES.values() for volume in service.get("volumes", ()) if volume[0] == "."
    ]
    assert len(bound) == 3
    for volume in bound:
        source, _, mode = volume.split(":")
        assert (ROOT / source).is_file()
        assert mode == "ro"


@pytest.mark.parametrize(
    ("name", "user"),
    {"migrate": "operator", "prune": "operator", "relay": "web", "persister": "persister"}.items(),
)
def test_each_program_has_its_own_user_in_both_stores(name: str, user: str) -> None:
    for variable in ("REDIS_URL", "DATABASE_URL"):
        assert (
            f"//relay_{user}:${{{user.upper()}_PASSWORD:?set it}}@" in SERVICES[name]["environment"][variable]
        )


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


def test_what_has_to_be_the_same_for_all_is() -> None:
    assert len({SERVICES[name]["environment"]["RELAY_SHARDS"] for name in OURS}) == 1


def test_each_of_several_persisters_has_a_name_and_ports_of_its_own() -> None:
    service = SERVICES["persister"]
    assert not service.keys() & {"hostname", "container_name", "ports"}
    assert service["command"] == "persister run"
    assert "RELAY_PERSISTER_NAME" not in service["environment"]
    assert PersisterSettings().persister_name == socket.gethostname()


def test_nothing_is_deleted_unless_somebody_asks_for_it() -> None:
    pruning = [name for name, service in SERVICES.items() if "prune" in str(service.get("command"))]
    assert pruning == ["prune"]
    assert SERVICES["prune"]["profiles"] == ["retention"]


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = re.findall(r"\$\{([A-Z_]+)([^}]*)\}", text)
    assert {name for name, _ in used} == {
        "OPERATOR_PASSWORD",
        "PERSISTER_PASSWORD",
        "POSTGRES_PASSWORD",
        "WEB_PASSWORD",
        "TELEMETRY_WEBHOOK_TOKEN",
        "RELAY_VIEWER_SECRET",
        "RETENTION",
    }
    assert all(default.startswith(":?") for _, default in used if default != ":-365d")
    assert SERVICES["prune"]["environment"]["RETENTION"] == "${RETENTION:-365d}"


def test_a_secret_that_nobody_needs_is_passed_on_where_it_is_set_and_otherwise_not_there() -> None:
    optional = {name for name, value in SERVICES["relay"]["environment"].items() if value is None}
    assert optional == {"RELAY_RUN_TOKEN_SECRET"}


def test_redis_keeps_what_was_acknowledged() -> None:
    script = SERVICES["redis"]["command"][-1]
    words = shlex.split(script.replace("\\\n", " ").partition("exec valkey-server")[2])
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--aclfile"] == "/tmp/users.acl"


def test_the_users_of_redis_may_call_whatever_the_functions_call() -> None:
    source = (ROOT / "relay/stream/functions.lua").read_text()
    called = re.findall(r"call\('([A-Z]+)'(?:, '([A-Z]+)')?", source)
    assert len(called) > 20
    acl = (ROOT / "deploy/redis/users.acl").read_text()
    allowed = {
        word[1:]
        for user in re.findall(r"^user relay_(?:web|persister) (.*)$", acl, re.MULTILINE)
        for word in user.split()
        if word[0] == "+"
    }
    for command, sub in called:
        name = command.lower()
        assert name in allowed or f"{name}|{sub.lower()}" in allowed, command


def test_everything_waits_for_what_it_needs() -> None:
    healthy, done = {"condition": "service_healthy"}, {"condition": "service_completed_successfully"}
    for name in ("relay", "persister"):
        assert SERVICES[name]["depends_on"] == {"redis": healthy, "grants": done}
    assert SERVICES["grants"]["depends_on"] == {"migrate": done}
    assert SERVICES["migrate"]["depends_on"] == {"redis": healthy, "postgres": healthy}
    for name in ("redis", "postgres", "relay", "persister"):
        assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


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
