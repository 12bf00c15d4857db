"""Who is let in, and what a run looks like to them."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from pydantic import SecretStr

from relay import auth
from relay.auth import Run
from relay.errors import Misconfigured, Unauthenticated

SECRET = SecretStr("a-secret-of-at-least-32-bytes-for-hs256")
TOKEN = SecretStr("a token")


def encode(key: str = SECRET.get_secret_value(), algorithm: str = "HS256", **claims: Any) -> str:
    return jwt.encode({"sub": "7", "exp": time.time() + 60} | claims, key, algorithm)


def test_a_minted_token_speaks_for_its_user() -> None:
    assert auth.viewer(SECRET, auth.mint_viewer_token(SECRET.get_secret_value(), 7, 60)) == 7


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        "nonsense",
        encode(exp=time.time() - 1),
        encode(exp=None),
        encode(sub="somebody"),
        encode(key="another-secret-of-at-least-32-bytes-hs256"),
        jwt.encode({"sub": "7"}, SECRET.get_secret_value(), "HS256"),
        jwt.encode({"exp": time.time() + 60}, SECRET.get_secret_value(), "HS256"),
        jwt.encode({"sub": "7", "exp": time.time() + 60}, None, "none"),
        encode(algorithm="HS384", key="x" * 48),
    ],
)
def test_any_other_token_speaks_for_nobody(token: str | None) -> None:
    with pytest.raises(Unauthenticated):
        auth.viewer(SECRET, token)


def test_the_writers_token_is_compared_whatever_its_bytes() -> None:
    auth.check_writer(TOKEN, b"Bearer a token")
    auth.check_writer(TOKEN, b"bearer  a token ")
    for wrong in (None, b"", b"Bearer", b"Basic a token", b"Bearer a toke", b"Bearer a token\xe9", b"\xff"):
        with pytest.raises(Unauthenticated):
            auth.check_writer(TOKEN, wrong)


def test_without_secrets_nobody_is_let_in() -> None:
    with pytest.raises(Misconfigured, match="TELEMETRY_WEBHOOK_TOKEN"):
        auth.check_writer(None, b"Bearer a token")
    with pytest.raises(Misconfigured, match="RELAY_VIEWER_SECRET"):
        auth.viewer(None, encode())


def run(status: str, heard_s_ago: float | None) -> Run:
    heard = None if heard_s_ago is None else datetime.now(UTC) - timedelta(seconds=heard_s_ago)
    return Run("run-1", 1, status, None, "", None, heard.isoformat() if heard else None)


@pytest.mark.parametrize(
    ("status", "heard_s_ago", "stale"),
    [
        ("running", 301, True),
        ("running", 299, False),
        ("running", None, False),
        ("pending", 301, False),
        ("completed", 301, False),
    ],
)
def test_a_run_is_stale_when_it_is_under_way_and_silent(
    status: str, heard_s_ago: float | None, stale: bool
) -> None:
    assert run(status, heard_s_ago).shown({}, 300)["stale"] is stale


def test_what_is_not_archived_yet_counts_unless_the_run_is_over() -> None:
    news = {"status": "running", "last_heartbeat_at": datetime.now(UTC).isoformat()}
    assert run("pending", None).shown(news, 300)["status"] == "running"
    assert run("running", 1000).shown(news, 300)["stale"] is False
    assert run("cancelled", None).shown(news, 300)["status"] == "cancelled"
