"""`relay token`: whose token, and made with what."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from relay.auth import mint_run_token
from relay.auth.viewers import Viewers
from relay.cli import main
from relay.settings import Settings

SECRET = "a-secret-of-at-least-32-bytes-for-hs256"


def token(directory: Path, *options: str, **env: str | None) -> Result:
    names = ("RELAY_VIEWER_SECRET", "RELAY_RUN_TOKEN_SECRET", "RELAY_ALLOW_INSECURE")
    unset: dict[str, str | None] = dict.fromkeys(names)
    return CliRunner(env={**unset, **env}).invoke(main, ["token", "--data-dir", str(directory), *options])


async def test_a_viewer_s_token_speaks_for_the_user(tmp_path: Path) -> None:
    made = token(tmp_path, "--user", "7", RELAY_VIEWER_SECRET=SECRET)
    assert (await Viewers(Settings(viewer_secret=SECRET)).check(made.output.strip())).user_id == 7


async def test_a_viewer_s_token_is_for_the_audience_that_the_service_asks_for(tmp_path: Path) -> None:
    asked = {"RELAY_VIEWER_AUDIENCE": "relay", "RELAY_VIEWER_ISSUER": "https://us"}
    made = token(tmp_path, "--user", "7", RELAY_VIEWER_SECRET=SECRET, **asked)
    settings = Settings(viewer_secret=SECRET, viewer_audience="relay", viewer_issuer="https://us")
    assert (await Viewers(settings).check(made.output.strip())).user_id == 7


@pytest.mark.parametrize(
    ("option", "name"), [("--run=run-1", "RELAY_RUN_TOKEN_SECRET"), ("--user=7", "RELAY_VIEWER_SECRET")]
)
def test_no_token_is_made_with_a_secret_that_the_service_does_not_start_with(
    tmp_path: Path, option: str, name: str
) -> None:
    for weak in ("short", "0" * 32, f"{SECRET} old"):
        refused = token(tmp_path, option, **{name: weak})
        assert refused.exit_code == 1
        assert refused.output.startswith(f"Error: {name} ")
        assert "openssl rand -hex 32" in refused.output
        assert weak not in refused.output
    made = token(tmp_path, option, RELAY_ALLOW_INSECURE="secret", **{name: "0" * 32})
    assert made.exit_code == 0


def test_a_run_s_token_is_made_with_any_secret_where_that_is_allowed(tmp_path: Path) -> None:
    wanted = {"RELAY_ALLOW_INSECURE": "secret", "TELEMETRY_WEBHOOK_TOKEN": "short"}
    made = token(tmp_path, "--run", "run-1", RELAY_RUN_TOKEN_SECRET="short", **wanted)
    assert made.output == mint_run_token("short", "run-1") + "\n"


@pytest.mark.parametrize("option", ["--run=run-1", "--user=7"])
def test_a_token_asks_nothing_of_other_secrets(tmp_path: Path, option: str) -> None:
    names = ("TELEMETRY_WEBHOOK_TOKEN", "RELAY_VIEWER_SECRET", "RELAY_RUN_TOKEN_SECRET")
    secrets = dict.fromkeys(names, "short")
    secrets["RELAY_RUN_TOKEN_SECRET" if "run" in option else "RELAY_VIEWER_SECRET"] = SECRET
    assert token(tmp_path, option, **secrets).exit_code == 0


def test_a_run_s_token_is_made_with_the_first_secret(tmp_path: Path) -> None:
    made = token(tmp_path, "--run", "run-1", RELAY_RUN_TOKEN_SECRET=f"{SECRET} {SECRET[::-1]}")
    assert made.output == mint_run_token(SECRET, "run-1") + "\n"


def test_without_a_secret_there_is_no_token_and_it_says_which_one_is_missing(tmp_path: Path) -> None:
    for option, name in (("--user=7", "RELAY_VIEWER_SECRET"), ("--run=a", "RELAY_RUN_TOKEN_SECRET")):
        refused = token(tmp_path, option)
        assert refused.exit_code == 1
        assert f"Set {name}" in refused.output


@pytest.mark.parametrize("name", ["RELAY_WEBHOOK_TOKENS", "RELAY_VIEWER_JWKS"])
def test_with_a_file_that_is_none_the_service_does_not_start(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("a secret")
    refused = CliRunner(env={name: str(tmp_path / "file")}).invoke(main, ["serve", "--port", "0"])
    assert refused.exit_code == 1
    assert f"Error: What {name} names can not be used" in refused.output
    assert "a secret" not in refused.output


def test_it_has_to_be_somebody_s(tmp_path: Path) -> None:
    secrets = {"RELAY_VIEWER_SECRET": SECRET, "RELAY_RUN_TOKEN_SECRET": SECRET}
    for options in ([], ["--user=7", "--run=a"], ["--run", "{0}"], ["--run", ""], ["--user", "-1"]):
        assert token(tmp_path, *options, **secrets).exit_code == 2


def test_a_data_directory_of_before_gets_the_secrets_that_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text(json.dumps({"RELAY_VIEWER_SECRET": SECRET}))
    made = token(tmp_path, "--run", "run-1", TELEMETRY_WEBHOOK_TOKEN="given")
    kept = json.loads((tmp_path / "secrets.json").read_text())
    assert kept["RELAY_VIEWER_SECRET"] == SECRET
    assert made.output.strip() == mint_run_token(kept["RELAY_RUN_TOKEN_SECRET"], "run-1")
