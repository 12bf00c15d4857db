"""Whom a viewer's token speaks for."""

import asyncio
import hmac
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pydantic import ValidationError

from relay.auth import mint_viewer_token
from relay.auth.keyset import ASK_AGAIN_S
from relay.auth.viewers import REMEMBERED, Caller, Viewers
from relay.errors import Misconfigured, Unauthenticated, Unavailable
from relay.settings import Settings

SECRET = "a-secret-of-at-least-32-bytes-for-hs256"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
LATER = ec.generate_private_key(ec.SECP256R1())
PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


LONG_S = 36_000
"""Longer than a whole suite, since some tokens are made when it is collected: what is wrong with one must be
the only thing."""


def encode(key: Any = SECRET, algorithm: str = "HS256", *, head: Any = None, **claims: Any) -> str:
    present = {"sub": "7", "exp": int(time.time()) + LONG_S, **claims}
    left = {name: value for name, value in present.items() if value is not None}
    return jwt.encode(left, key, algorithm, headers=head)


def published(*names: str) -> str:
    keys = {
        "rsa": json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key())),
        "ec": json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key())),
        "later": json.loads(jwt.algorithms.ECAlgorithm.to_jwk(LATER.public_key())),
        "shared": {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"},
    }
    return json.dumps({"keys": [{**keys[name], "kid": name} for name in names]})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "keys.json"
    made.write_text(published("rsa", "ec", "shared"))
    return made


async def opened(path: Path, **settings: Any) -> Viewers:
    viewers = Viewers(Settings(viewer_jwks=str(path), **settings))
    assert viewers.source
    await viewers.source.open()
    return viewers


def shared(**settings: Any) -> Viewers:
    return Viewers(Settings(viewer_secret=SECRET, **settings))


async def test_a_minted_token_speaks_for_its_user_until_it_ends() -> None:
    caller = await shared().check(mint_viewer_token(SECRET, 7, 60))
    assert caller.user_id == 7
    assert caller.runs is None
    assert 58 < caller.expires - time.time() <= 60


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        "nonsense",
        "ä.ä.ä",
        encode(exp=int(time.time()) - 1),
        encode(exp=None),
        encode(sub=None),
        encode(sub="somebody"),
        encode(sub="-7"),
        encode(sub="1_0"),
        encode(sub="٧"),
        encode(sub=str(1 << 63)),
        encode(key="another-secret-of-at-least-32-bytes-hs256"),
        encode(key="", algorithm="none"),
        encode(algorithm="HS384", key="x" * 48),
        encode(algorithm="HS512", key=SECRET + "x" * 32),
        encode(head={"crit": ["b64"], "b64": True}),
        encode(head={"crit": ["unheard-of"], "unheard-of": 1}),
        encode(aud="another service"),
        encode(nbf=int(time.time()) + LONG_S),
        encode(runs="run-1"),
        encode(runs=["run-1", 7]),
        encode(runs=["{0}:log"]),
        encode(RSA, "RS256", head={"kid": "rsa"}),
    ],
)
async def test_any_other_token_speaks_for_nobody(token: str | None) -> None:
    with pytest.raises(Unauthenticated):
        await shared().check(token)


async def test_a_new_and_an_old_secret_are_both_valid_until_the_old_one_is_dropped() -> None:
    old, new = "an-old-secret-of-at-least-32-bytes-hs256", "a-new-secret-of-at-least-32-bytes-hs256"
    both, later = (Viewers(Settings(viewer_secret=secrets)) for secrets in (f"{new} {old}", new))
    made = mint_viewer_token(f"{new} {old}", 7, 60)
    for viewers, token in ((both, encode(old)), (both, encode(new)), (both, made), (later, made)):
        assert (await viewers.check(token)).user_id == 7
    for viewers, token in ((later, encode(old)), (both, encode()), (both, encode(f"{new} {old}"))):
        with pytest.raises(Unauthenticated):
            await viewers.check(token)
    with pytest.raises(Unauthenticated):
        await both.check(encode(old, exp=int(time.time()) - 1))


async def test_without_a_secret_and_without_keys_nobody_can_be_told_apart() -> None:
    with pytest.raises(Misconfigured, match="RELAY_VIEWER_SECRET"):
        await Viewers(Settings()).check(encode())


async def test_an_audience_and_an_issuer_are_asked_for_where_they_are_set() -> None:
    viewers = shared(viewer_audience="relay", viewer_issuer="https://id")
    await viewers.check(encode(aud=["relay", "other"], iss="https://id"))
    for claims in ({"aud": "relay"}, {"iss": "https://id"}, {"aud": "other", "iss": "https://id"}, {}):
        with pytest.raises(Unauthenticated):
            await viewers.check(encode(**claims))


async def test_a_token_may_say_itself_which_runs_are_its_own() -> None:
    assert (await shared().check(encode(runs=["b", "a", "b"]))).runs == ("b", "a")
    assert (await shared().check(encode(runs=[]))).runs == ()


async def test_keys_of_both_kinds_are_taken_each_with_its_own_algorithm(path: Path) -> None:
    viewers = await opened(path)
    for key, algorithm, name in ((RSA, "RS256", "rsa"), (EC, "ES256", "ec")):
        assert (await viewers.check(encode(key, algorithm, head={"kid": name}))).user_id == 7
        assert (await viewers.check(encode(key, algorithm))).user_id == 7  # it is the only one
    shared_key = "secret-secret-secret-secret-secret"
    wrong = [
        encode(RSA, "RS512", head={"kid": "rsa"}),
        encode(RSA, "PS256", head={"kid": "rsa"}),
        encode(EC, "ES256", head={"kid": "rsa"}),
        encode(EC, "ES256", head={"kid": "unknown"}),
        encode(LATER, "ES256", head={"kid": "ec"}),
        encode(LATER, "ES256", head={"kid": "ec", "jku": "https://evil", "jwk": {"kty": "EC"}}),
        encode(shared_key, head={"kid": "shared"}),
        signed_with_the_public_key(),
    ]
    for token in wrong:
        with pytest.raises(Unauthenticated):
            await viewers.check(token)
    with pytest.raises(Unauthenticated):
        await (await opened(path, viewer_secret=SECRET)).check(signed_with_the_public_key())


def signed_with_the_public_key() -> str:
    """The old trick: an HMAC whose secret is what everybody may know. The library refuses to make it."""
    head, claims, _ = encode(SECRET, head={"kid": "rsa"}).split(".")
    made = hmac.digest(PEM, f"{head}.{claims}".encode(), "sha256")
    return f"{head}.{claims}.{jwt.utils.base64url_encode(made).decode()}"


async def test_a_key_that_is_not_known_is_asked_for_at_once_and_then_not_for_a_while(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewers = await opened(path)
    new = encode(LATER, "ES256", head={"kid": "later"})
    old = encode(EC, "ES256", head={"kid": "ec"})
    await viewers.check(old)
    path.write_text(published("later"))
    assert (await viewers.check(new)).user_id == 7
    with pytest.raises(Unauthenticated):  # also what was valid a moment ago: its key is gone
        await viewers.check(old)
    path.write_text(published("ec", "later"))
    with pytest.raises(Unauthenticated):
        await viewers.check(old)
    assert viewers._keys
    viewers._keys._asked -= ASK_AGAIN_S
    assert (await viewers.check(old)).user_id == 7


async def test_who_was_let_in_by_a_key_that_is_withdrawn_is_let_in_no_more(path: Path) -> None:
    viewers = await opened(path, viewer_secret=SECRET)
    assert viewers.source
    tokens = [encode(EC, "ES256"), encode(RSA, "RS256"), encode()]
    withdrawn, renamed, shared_one = [await viewers.check(token) for token in tokens]
    path.write_text(published("rsa").replace('"kid": "rsa"', '"kid": "the same, by another name"'))
    await viewers.source.read()
    with pytest.raises(Unauthenticated):
        await viewers.check_key(withdrawn)
    with pytest.raises(Unauthenticated):
        await viewers.check(tokens[0])
    for caller in (renamed, shared_one):
        await viewers.check_key(caller)


async def test_a_key_that_another_worker_knew_first_is_asked_for(path: Path) -> None:
    first, second = await opened(path), await opened(path)
    path.write_text(published("later"))
    caller = await first.check(encode(LATER, "ES256", head={"kid": "later"}))
    await second.check_key(caller)


async def test_keys_that_were_never_there_are_the_server_s_fault_not_the_viewer_s() -> None:
    viewers = Viewers(Settings(viewer_jwks="http://127.0.0.1:1/keys", viewer_secret=SECRET))
    assert viewers.source
    await viewers.source.open()
    with pytest.raises(Unavailable):
        await viewers.check(encode(EC, "ES256", head={"kid": "ec"}))
    await viewers.check(encode())


class Provider(BaseHTTPRequestHandler):
    """An identity provider that publishes its keys, and counts who asks."""

    asked = 0

    def do_GET(self) -> None:
        Provider.asked += 1
        if self.path == "/no-http":
            self.wfile.write(b"nonsense")
            return
        path, _, elsewhere = self.path.partition("?")
        self.send_response({"/keys": 200, "/moved": 302}.get(path, 500))
        self.send_header("location", elsewhere)
        self.end_headers()
        self.wfile.write(published("ec").encode())

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def provider() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Provider) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_keys_come_from_a_url_and_many_who_need_them_ask_once(provider: str) -> None:
    viewers = Viewers(Settings(viewer_jwks=f"{provider}/keys"))
    before = Provider.asked
    good = [encode(EC, "ES256", head={"kid": "ec"}, jti=str(number)) for number in range(20)]
    bad = [encode(LATER, "ES256", head={"kid": f"invented-{number}"}) for number in range(20)]
    answers = await asyncio.gather(*map(viewers.check, good + bad), return_exceptions=True)
    assert [isinstance(answer, Caller) for answer in answers] == [True] * 20 + [False] * 20
    assert all(isinstance(answer, Unauthenticated) for answer in answers[20:])
    assert Provider.asked == before + 1


@pytest.mark.parametrize("place", ["/else", "/no-http"])
async def test_a_provider_that_fails_is_not_the_end(
    provider: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    viewers = Viewers(Settings(viewer_jwks=provider + place))
    assert viewers.source
    await viewers.source.open()
    assert "RELAY_VIEWER_JWKS" in caplog.text


async def test_keys_that_moved_are_followed_within_their_origin_and_no_further(provider: str) -> None:
    others = (
        provider.replace("127.0.0.1", "localhost"),
        provider.replace("http:", "https:"),
        "http://127.0.0.1:1",
    )
    for elsewhere in others:
        source = Viewers(Settings(viewer_jwks=f"{provider}/moved?{elsewhere}/keys")).source
        assert source
        with pytest.raises(Misconfigured, match="redirected to another origin"):
            await source.read()
    moved = Viewers(Settings(viewer_jwks=f"{provider}/moved?/keys"))
    assert (await moved.check(encode(EC, "ES256", head={"kid": "ec"}))).user_id == 7


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"keys": []}', '{"keys": [{"kty": "?"}]}', "\ud800"])
async def test_a_key_set_that_is_none_changes_nothing(path: Path, content: str) -> None:
    viewers = await opened(path)
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    assert viewers.source
    with pytest.raises(Misconfigured, match="RELAY_VIEWER_JWKS"):
        await viewers.source.read()
    await viewers.check(encode(EC, "ES256", head={"kid": "ec"}))


@pytest.mark.parametrize(
    "place", ["http://id.example.com/keys", "ftp://id/keys", "http://localhost.evil/keys"]
)
def test_keys_do_not_come_by_a_way_that_others_can_change(place: str) -> None:
    with pytest.raises(ValidationError, match="https"):
        Settings(viewer_jwks=place)


@pytest.mark.parametrize(
    "origins", ["*", "null", "https://a.example/", "https://A.example", "https://a b", "x"]
)
def test_what_is_no_origin_is_not_allowed_as_one(origins: str) -> None:
    with pytest.raises(ValidationError, match="An origin has to be"):
        Settings.model_validate({"allowed_origins": origins})
    allowed = Settings.model_validate({"allowed_origins": "https://a.example http://b:81"}).allowed_origins
    assert allowed == {"https://a.example", "http://b:81"}


async def test_what_is_remembered_of_tokens_is_bounded() -> None:
    viewers = shared()
    viewers._known.update({b"%d" % number: Caller(1, 0) for number in range(REMEMBERED)})
    await viewers.check(encode())
    assert len(viewers._known) == 1
