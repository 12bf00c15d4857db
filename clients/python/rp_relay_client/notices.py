"""What the client says in the log: little, once, and never the token."""

import contextlib
import logging
from collections import defaultdict

from rp_relay_client.secret import Secret

LOGGER = "rp_relay_client"

_log = logging.getLogger(LOGGER)
_DISTINCT = 20
"""How much is said of one matter: what others have to say must not make one thing unheard."""


class Notices:
    """The log of one emitter."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self._said: defaultdict[str, set[str]] = defaultdict(set)

    def once(self, text: str, matter: str = "") -> None:
        """Warns, but not twice of the same, nor of more than a few things in one matter; then says that."""
        said = self._said[matter]
        if text not in said and len(said) < _DISTINCT:
            said.add(text)
            self.warn(text)
            if len(said) == _DISTINCT:
                self.warn(f"{matter or 'Warnings'}: whatever else there is, is not said; see stats().")

    def once_of(self, what: str, error: Exception) -> None:
        """The same about an error, of which nothing is known, not even whether it can say what it is.

        Nor does it raise what a handler of the pipeline's raises.
        """
        with contextlib.suppress(Exception):
            self.once(f"{what}: {type(error).__name__}: {error}", what)

    def warn(self, text: str) -> None:
        _log.warning("%s", self._clean(text))

    def info(self, text: str) -> None:
        _log.info("%s", self._clean(text))

    def _clean(self, text: str) -> str:
        """One line, without the token: part of it may come from the network."""
        return "".join(c if c.isprintable() else "?" for c in self._secret.hide(text))[:500]
