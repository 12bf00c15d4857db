"""The public keys of whoever signs viewers' tokens: a JSON Web Key Set (RFC 7517), from a file or a URL.

A token's own headers never say where a key is. They only name one of these.
"""

import asyncio
import logging
from collections.abc import Callable
from hashlib import sha256

import jwt

from relay.auth.reread import Reread
from relay.errors import Misconfigured, Unavailable

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "ES256")

ASK_AGAIN_S = 10.0
"""A key that is not known may be new. Whoever invents names of keys has the set read this often, no more."""


UNREAD = "The keys of viewers' tokens can not be read; try again later."


class KeySet:
    """The keys in force. `changed` is called after they were replaced."""

    def __init__(self, place: str, changed: Callable[[], None]) -> None:
        self.source = Reread("RELAY_VIEWER_JWKS", place, self._take)
        self._changed = changed
        self._keys: list[jwt.PyJWK] | None = None
        self._fingerprints: frozenset[str] = frozenset()
        self._asking = asyncio.Lock()
        self._asked = float("-inf")
        self._known = False
        """Whether the keys could be read when they were last asked for."""

    async def find(self, name: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of that name and for that algorithm; without a name, the only one there is.

        Raises Unavailable where no keys could be read so far.
        """
        key = self._get(name, algorithm)
        if key is None:
            await self._ask_again()
            key = self._get(name, algorithm)
        if self._keys is None:
            raise Unavailable(UNREAD)
        return key

    async def holds(self, fingerprint: str) -> bool:
        """Whether a key is still in force. It may also be one that another worker knew first.

        Raises Unavailable where that can not be said, since the keys could not be read when they were last.
        """
        if fingerprint not in self._fingerprints:
            await self._ask_again()
        held = fingerprint in self._fingerprints
        if not held and not self._known:
            raise Unavailable(UNREAD)
        return held

    def _get(self, name: str | None, algorithm: str) -> jwt.PyJWK | None:
        fitting = [
            key for key in self._keys or () if key.algorithm_name == algorithm and name in (None, key.key_id)
        ]
        return fitting[0] if len(fitting) == 1 else None

    async def _ask_again(self) -> None:
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if now - self._asked < ASK_AGAIN_S:
                return
            self._asked = now
            self._known = False
            try:
                await self.source.read()
            except Misconfigured as error:
                log.warning("%s", error)
            else:
                self._known = True

    def _take(self, content: bytes) -> None:
        """Raises ValueError."""
        try:
            keys = jwt.PyJWKSet.from_json(content.decode()).keys
        except Exception:  # whatever the library makes of it, KeyError and RecursionError among others
            raise ValueError("it is no JSON Web Key Set with a usable key") from None
        self._keys = [
            key for key in keys if key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig")
        ]
        self._fingerprints = frozenset(map(fingerprint_of, self._keys))
        self._changed()


def fingerprint_of(key: jwt.PyJWK) -> str:
    """Of the key itself, whatever the set calls it."""
    return sha256(key.Algorithm.to_jwk(key.key).encode()).hexdigest()
