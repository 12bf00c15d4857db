"""A token that does not show itself: not in a repr, not in a log, not in a pickle on disk."""

import hashlib
import hmac
import logging
import multiprocessing
import os
import re
import secrets

_log = logging.getLogger(__package__)

ENVIRONMENT = "TELEMETRY_WEBHOOK_TOKEN"

_TOKEN = re.compile(r"[\x21-\x7e]+")
_NONCE = _PROOF = 16


class Secret:
    """A bearer token. Raises ValueError for what no header can hold; the message does not quote it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        value = value.strip()
        if not _TOKEN.fullmatch(value):
            raise ValueError("the token must be visible ASCII characters, and at least one")
        self._value = value

    def reveal(self) -> str:
        """The token itself."""
        return self._value

    def hide(self, text: str) -> str:
        """The text without the token."""
        return text.replace(self._value, "***")

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> "tuple[object, tuple[bytes]]":
        return _unsealed, (_seal(self._value.encode()),)


def _seal(value: bytes) -> bytes:
    """The value under the key that a process shares with its children, and that is never stored.

    So an emitter can be handed to worker processes, and a checkpoint that happens to hold one does not
    give the token away.
    """
    nonce = secrets.token_bytes(_NONCE)
    hidden = _mask(value, nonce)
    return nonce + _proof(nonce + hidden) + hidden


def _unsealed(sealed: bytes) -> Secret:
    """The secret, if a process of this family sealed it; otherwise that of the environment.

    Where there is neither, a wrong one: loading a checkpoint must not fail for the sake of telemetry.
    """
    nonce, proof, hidden = sealed[:_NONCE], sealed[_NONCE : _NONCE + _PROOF], sealed[_NONCE + _PROOF :]
    if hmac.compare_digest(proof, _proof(nonce + hidden)):
        return Secret(_mask(hidden, nonce).decode())
    if ENVIRONMENT not in os.environ:
        _log.warning("An emitter was pickled by another program; set %s to use it in this one.", ENVIRONMENT)
    return Secret(os.environ.get(ENVIRONMENT, "unknown"))


def _mask(value: bytes, nonce: bytes) -> bytes:
    stream = hashlib.shake_256(b"mask" + nonce + _family()).digest(len(value))
    return bytes(a ^ b for a, b in zip(value, stream, strict=True))


def _proof(data: bytes) -> bytes:
    return hmac.digest(_family(), b"proof" + data, "sha256")[:_PROOF]


def _family() -> bytes:
    return bytes(multiprocessing.current_process().authkey)
