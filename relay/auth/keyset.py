"""The public keys of whoever signs viewers' tokens: a JSON Web Key Set (RFC 7517), from a file or a URL.

A token's own headers never say where a key is. They only name one of these.
"""

import asyncio
import logging
from collections.abc import Callable
from hashlib import sha256

import jwt
from jwt.exceptions import PyJWTError

from relay.auth.reread import Reread
from relay.errors import Misconfigured, Unavailable

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "ES256")

ASK_AGAIN_S = 10.0
"""A key that is not known may be new. Whoever invents names of keys has the set read this often, no more."""


class KeySet:
    """The keys in force. `changed` is called after they were replaced."""

    def __init__(self, place: str, changed: Callable[[], None]) -> None:
        self.source = Reread("RELAY_VIEWER_JWKS", place, self._take)
        self._changed = changed
        self._keys: list[jwt.PyJWK] | None = None
        self._fingerprints: frozenset[str] = frozenset()
        self._asking = asyncio.Lock()
        self._asked = float("-inf")

    async def find(self, name: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of that name and for that algorithm; without a name, the only one there is.

        Raises Unavailable where no keys could be read so far.
        """
        key = self._get(name, algorithm)
        if key is None:
            await self._ask_again()
            key = self._get(name, algorithm)
        if self._keys is None:
            raise Unavailable("The keys of viewers' tokens can not be read; try again later.")
        return key

    async def holds(self, fingerprint: str) -> bool:
        """Whether a key is still in force. It may also be one that another worker knew first."""
        if fingerprint not in self._fingerprints:
            await self._ask_again()
        return fingerprint in self._fingerprints

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
            try:
                await self.source.read()
            except Misconfigured as error:
                log.warning("%s", error)

    def _take(self, content: bytes) -> None:
        """Raises ValueError."""
        try:
            keys = jwt.PyJWKSet.from_json(content.decode()).keys
        except (PyJWTError, AttributeError, TypeError, ValueError):
            raise ValueError("it is no JSON Web Key Set with a usable key") from None
        self._keys = [
            key for key in keys if key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig")
        ]
        self._fingerprints = frozenset(map(fingerprint_of, self._keys))
        self._changed()


def fingerprint_of(key: jwt.PyJWK) -> str:
    """Of the key itself, whatever the set calls it."""
    return sha256(key.Algorithm.to_jwk(key.key).encode()).hexdigest()
