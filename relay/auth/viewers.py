"""Whom a viewer's token speaks for: a JWT, signed with the secret (HS256) or with a key of the key set
(RS256, ES256). Which algorithm goes with which key is fixed here; a token only chooses among these.
"""

import contextlib
import re
import time
from hashlib import sha256
from typing import Any, NamedTuple

import jwt
from jwt.exceptions import InvalidSignatureError, PyJWTError

from relay.auth.keyset import ALGORITHMS, KeySet, fingerprint_of
from relay.errors import Misconfigured, Unauthenticated
from relay.settings import Settings, several
from relay.stream.keys import RUN_ID

SHARED = "HS256"
MAX_BIGINT = (1 << 63) - 1
"""The highest id of a user, or of a conversation, that a database holds."""

REMEMBERED = 10_000
"""Tokens whose meaning is known, since viewers that were cut come back with the same one."""

_USER_ID = re.compile(r"[0-9]{1,19}", re.ASCII)
_RUN_ID = re.compile(RUN_ID)


class Caller(NamedTuple):
    """Who asks, until when in seconds since 1970, the runs that are theirs, where the token says so, and the
    fingerprint of the key that it is signed with, where that is one of a key set."""

    user_id: int
    expires: float
    runs: tuple[str, ...] | None = None
    key: str | None = None


class Viewers:
    """Checks tokens."""

    def __init__(self, settings: Settings) -> None:
        self._secrets = several(settings.viewer_secret)
        self._known: dict[bytes, Caller] = {}
        place = settings.viewer_jwks
        self._keys = KeySet(place, self._known.clear) if place else None
        self.source = self._keys.source if self._keys else None
        self._audience, self._issuer = settings.viewer_audience, settings.viewer_issuer
        self._required = ["exp", "sub"]
        self._required += ["aud"] if self._audience else []
        self._required += ["iss"] if self._issuer else []

    async def check(self, token: str | None) -> Caller:
        """Raises Misconfigured, Unauthenticated or, without its keys, Unavailable."""
        if not self._secrets and self._keys is None:
            raise Misconfigured(
                "The server has no RELAY_VIEWER_SECRET configured, so it can not tell viewers apart."
            )
        digest = sha256((token or "").encode("latin-1", "replace")).digest()
        caller = self._known.get(digest)
        if caller is None:
            caller = await self._read(token or "")
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[digest] = caller
        if caller.expires <= time.time():
            raise not_valid()
        return caller

    async def check_key(self, caller: Caller) -> None:
        """Raises Unauthenticated where the key that the caller's token is signed with was withdrawn since."""
        if caller.key is not None and not (self._keys and await self._keys.holds(caller.key)):
            raise not_valid()

    async def _read(self, token: str) -> Caller:
        try:
            head = jwt.get_unverified_header(token)
            if head["alg"] == SHARED:
                return _caller(self._shared_claims(token))
            key = await self._key(head)
            return _caller(self._claims(token, key, head["alg"]))._replace(key=fingerprint_of(key))
        except (PyJWTError, ValueError, TypeError, KeyError) as error:
            raise not_valid() from error

    async def _key(self, head: dict[str, Any]) -> jwt.PyJWK:
        """The only key that goes with the token's algorithm and name of a key. Raises ValueError."""
        if head["alg"] in ALGORITHMS and self._keys is not None:
            key = await self._keys.find(head.get("kid"), head["alg"])
            if key is not None:
                return key
        raise ValueError("there is no such key")

    def _shared_claims(self, token: str) -> dict[str, Any]:
        """By whichever secret it is signed with. Raises ValueError."""
        for secret in self._secrets:
            with contextlib.suppress(InvalidSignatureError):
                return self._claims(token, secret, SHARED)
        raise ValueError("there is no such secret")

    def _claims(self, token: str, key: Any, algorithm: str) -> dict[str, Any]:
        """Of a token that is valid. One that names an audience is not for us unless that is configured."""
        return jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=self._audience,
            issuer=self._issuer,
            options={"require": self._required},
        )


def _caller(claims: dict[str, Any]) -> Caller:
    """Raises ValueError."""
    user, runs = claims["sub"], claims.get("runs")
    if not _USER_ID.fullmatch(user) or int(user) > MAX_BIGINT:
        raise ValueError("no user has such an id")
    if runs is None:
        return Caller(int(user), float(claims["exp"]))
    if not isinstance(runs, list) or not all(isinstance(run, str) and _RUN_ID.fullmatch(run) for run in runs):
        raise ValueError("the runs are no list of names")
    return Caller(int(user), float(claims["exp"]), tuple(dict.fromkeys(runs)))


def not_valid() -> Unauthenticated:
    return Unauthenticated(
        "The viewer's token is missing, expired or not valid; "
        "send it as a bearer token or in the cookie relay_token."
    )


def mint_viewer_token(
    secrets: str, user_id: int, ttl_s: int, *, audience: str | None = None, issuer: str | None = None
) -> str:
    """A token with which `user_id` can view its runs for `ttl_s` seconds. Of several secrets, separated by
    blanks, the first one is used. `audience` and `issuer` are what the service asks for, if it does."""
    claims: dict[str, str | int] = {"sub": str(user_id), "exp": int(time.time()) + ttl_s}
    claims |= {name: value for name, value in (("aud", audience), ("iss", issuer)) if value}
    return jwt.encode(claims, secrets.split(maxsplit=1)[0], SHARED)
