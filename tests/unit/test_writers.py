"""Who may write: tokens that come and go, tokens of one run, and signatures."""

import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import ValidationError
from standardwebhooks import Webhook

from relay.auth.writers import FOR_EVER, REMEMBERED, SIGNED, Tokens, mint_run_token
from relay.errors import Forbidden, Misconfigured, Unauthenticated
from relay.settings import Settings
from relay.stream.entry import NewEvent

OLD, NEW = "secret-of-last-year-0123456789012345", "secret-of-this-year-0123456789012345"
SIGNING = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'


def tokens(**settings: object) -> Tokens:
    return Tokens(Settings.model_validate({"TELEMETRY_WEBHOOK_TOKEN": "a token", **settings}))


def bearer(token: str | bytes) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + (token.encode() if isinstance(token, str) else token)}


def listed(token: str, **more: object) -> dict[str, object]:
    return {"name": token, "sha256": sha256(token.encode()).hexdigest(), **more}


def moment(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "tokens.json"
    made.write_text("[]")
    return made


async def opened(path: Path, *entries: dict[str, object]) -> Tokens:
    path.write_text(json.dumps(entries))
    made = tokens(webhook_tokens=path)
    assert made.source
    await made.source.open()
    return made


def test_the_service_s_token_is_taken_again_and_again_and_nothing_near_it() -> None:
    made = tokens()
    for header in (b"Bearer a token", b"bearer  a token "):
        assert made.check({b"authorization": header}) is FOR_EVER
        assert made.check({b"authorization": header}) is FOR_EVER
    for wrong in (b"", b"Bearer", b"Basic a token", b"Bearer a toke", b"Bearer a token\xe9", b"\xff"):
        with pytest.raises(Unauthenticated):
            made.check({b"authorization": wrong})
    with pytest.raises(Unauthenticated):
        made.check({})


def test_without_any_token_the_server_says_that_it_is_not_configured() -> None:
    for headers in ({}, bearer("a token")):
        with pytest.raises(Misconfigured, match="TELEMETRY_WEBHOOK_TOKEN"):
            Tokens(Settings()).check(headers)


async def test_several_tokens_are_valid_at_once_each_in_its_time(path: Path) -> None:
    made = await opened(
        path,
        listed("next"),
        listed("over", expires=moment(-1)),
        listed("early", not_before=moment(60)),
        listed("now", not_before=moment(-60), expires=moment(60)),
    )
    assert made.check(bearer("a token")) is FOR_EVER
    assert [made.check(bearer(token)).name for token in ("next", "now")] == ["next", "now"]
    for token in ("over", "early", "neither"):
        with pytest.raises(Unauthenticated):
            made.check(bearer(token))


async def test_a_token_ends_also_where_it_was_used_before(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await opened(path, listed("now", expires=moment(60)))
    made.check(bearer("now"))
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(Unauthenticated):
        made.check(bearer("now"))


async def test_a_token_that_is_struck_from_the_file_is_refused_once_it_is_read_again(path: Path) -> None:
    made = await opened(path, listed("old"), listed("new"))
    made.check(bearer("old"))
    path.write_text(json.dumps([listed("new")]))
    assert made.source
    await made.source.read()
    made.check(bearer("new"))
    with pytest.raises(Unauthenticated):
        made.check(bearer("old"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "Invalid JSON"),
        ('{"name": "x"}', "valid array"),
        (json.dumps([listed("x", expire=moment(60))]), "0.expire: Extra inputs"),
        (json.dumps([{"name": "x", "sha256": "secret"}]), "0.sha256: String should match"),
        (json.dumps([listed("x", expires="2027-01-01T00:00:00")]), "timezone"),
        (None, "No such file"),
    ],
)
async def test_a_file_that_is_not_right_changes_nothing_and_says_where(
    path: Path, content: str | None, why: str
) -> None:
    made = await opened(path, listed("kept"))
    path.unlink() if content is None else path.write_text(content)
    assert made.source
    with pytest.raises(Misconfigured, match=f"RELAY_WEBHOOK_TOKENS.*{why}") as refused:
        await made.source.read()
    assert "secret" not in str(refused.value)
    made.check(bearer("kept"))
    with pytest.raises(Misconfigured):
        await made.source.open()


def test_a_run_s_token_is_its_name_under_the_secret() -> None:
    token = mint_run_token(f"{NEW} {OLD}", "run-1.a:b")
    mac = hmac.new(NEW.encode(), b"run-1.a:b", sha256).digest()
    assert token == f"run.run-1.a:b.{urlsafe_b64encode(mac).decode().rstrip('=')}"
    made = tokens(run_token_secret=f"{NEW} {OLD}")
    for secret in (NEW, OLD):
        grant = made.check(bearer(mint_run_token(secret, "run-1.a:b")))
        assert grant.run_id == "run-1.a:b"


def test_a_run_s_token_writes_to_its_run_and_makes_none_known() -> None:
    grant = tokens(run_token_secret=NEW).check(bearer(mint_run_token(NEW, "mine")))
    mine, other = NewEvent("mine", "run_log", b"{}"), NewEvent("mine2", "run_log", b"{}")
    grant.check([mine, mine])
    for events in ([other], [mine, other]):
        with pytest.raises(Forbidden):
            grant.check(events)
    with pytest.raises(Forbidden):
        grant.check_unbounded()
    FOR_EVER.check([mine, other])


@pytest.mark.parametrize(
    "token",
    [
        mint_run_token("another secret", "mine"),
        mint_run_token(NEW, "mine").replace("mine", "other"),
        mint_run_token(NEW, "mine")[:-1],
        mint_run_token(NEW, "mine") + "=",
        mint_run_token(NEW, "mine").removeprefix("run."),
        mint_run_token(NEW, ""),
        mint_run_token(NEW, "{0}:log"),
        mint_run_token(NEW, "a" * 129),
        mint_run_token(NEW, "ä"),
        "run..",
    ],
)
def test_no_other_text_is_a_run_s_token(token: str) -> None:
    with pytest.raises(Unauthenticated):
        tokens(run_token_secret=NEW).check(bearer(token))
    with pytest.raises(Unauthenticated):
        tokens().check(bearer(mint_run_token(NEW, "mine")))


def test_what_is_remembered_is_bounded_and_holds_nothing_that_was_refused() -> None:
    made = tokens(run_token_secret=NEW)
    with pytest.raises(Unauthenticated):
        made.check(bearer("wrong"))
    assert not made._known
    for number in range(REMEMBERED + 1):
        made.check(bearer(mint_run_token(NEW, f"run-{number}")))
    assert len(made._known) == 1


def signed(secret: str = SIGNING, *, age_s: float = 0, **more: bytes) -> dict[bytes, bytes]:
    at = datetime.now(UTC) - timedelta(seconds=age_s)
    signature = Webhook(secret).sign("msg_1", at, BODY.decode())
    headers = {"id": b"msg_1", "timestamp": b"%d" % at.timestamp(), "signature": signature.encode(), **more}
    return {b"webhook-" + name.encode(): value for name, value in headers.items()}


def test_a_signature_stands_for_its_body_under_any_of_the_secrets() -> None:
    made = tokens(webhook_signing_secret=f"whsec_{'A' * 32} {SIGNING}")
    assert made.check(signed()) is SIGNED
    made.verify(signed(), BODY)
    made.verify(signed(signature=b"v1,AAAA " + signed()[b"webhook-signature"]), BODY)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (signed, BODY + b" "),
        (signed, b"\xff"),
        (lambda: signed(secret="A" * 32), BODY),
        (lambda: signed(age_s=400), BODY),
        (lambda: signed(age_s=-400), BODY),
        (lambda: signed(id=b"msg_2"), BODY),
        (lambda: signed(timestamp=b"soon"), BODY),
        (lambda: signed(timestamp=b"nan"), BODY),
        (lambda: signed(signature=b"v1"), BODY),
        (lambda: signed(signature=b"v1,?"), BODY),
        (lambda: signed(signature=b""), BODY),
        (lambda: signed(signature=b"\xff,\xff"), BODY),
        (lambda: signed(signature=signed()[b"webhook-signature"].replace(b"v1", b"v2")), BODY),
    ],
)
def test_no_other_signature_does(headers: Callable[[], dict[bytes, bytes]], body: bytes) -> None:
    with pytest.raises(Unauthenticated):
        tokens(webhook_signing_secret=SIGNING).verify(headers(), body)


def test_half_a_signature_or_one_that_nobody_can_check_is_none() -> None:
    half = {name: value for name, value in signed().items() if name != b"webhook-timestamp"}
    for made, headers in ((tokens(webhook_signing_secret=SIGNING), half), (tokens(), signed())):
        with pytest.raises(Unauthenticated):
            made.check(headers)


@pytest.mark.parametrize("secret", ["short", "whsec_short", f"whsec_{'ä' * 40}", f"{SIGNING} short"])
def test_a_signing_secret_that_is_none_is_refused_without_being_repeated(secret: str) -> None:
    with pytest.raises(ValidationError, match="at least 24 bytes") as refused:
        Settings(webhook_signing_secret=secret)
    assert secret not in str(refused.value.errors(include_input=False))
