"""What a file or a URL says, read again and again: whoever changes it needs no restart."""

import asyncio
import logging
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, build_opener

from relay.errors import Misconfigured

log = logging.getLogger(__name__)

FILE_PERIOD_S = 5.0
"""A token that is struck from a file is refused this long after at most."""

URL_PERIOD_S = 30.0
"""Keys are published well before they are used, and one that nobody knows yet is asked for at once; but one
that is withdrawn has to be refused soon."""

URL_TIMEOUT_S = 2.5
MAX_BYTES = 1 << 20


class _Unusable(Exception):
    """Why content that came is not taken, in words for the operator."""


class Reread:
    """One file or URL, the value of a setting.

    `take` gets the content, at first and whenever it has changed, and raises ValueError where it is not
    valid, in words that do not repeat it.
    """

    def __init__(self, setting: str, place: str, take: Callable[[bytes], None]) -> None:
        self._setting = setting
        self._place = place
        self._take = take
        self._taken: bytes | None = None
        self.remote = place.startswith(("https://", "http://"))

    async def open(self) -> None:
        """Reads it for the first time. Raises Misconfigured for a file; a URL may be away for a while."""
        try:
            await self.read()
        except Misconfigured as error:
            if not self.remote:
                raise
            log.warning("%s It is asked again.", error)

    async def read(self) -> None:
        """Takes the content, where it is new. Raises Misconfigured."""
        try:
            content = await asyncio.to_thread(_url if self.remote else _file, self._place)
        except _Unusable as error:
            raise self._unusable(str(error)) from None
        except (OSError, HTTPException, ValueError) as error:
            raise self._unusable(getattr(error, "strerror", None) or type(error).__name__) from None
        if content == self._taken:
            return
        try:
            self._take(content)
        except ValueError as error:
            raise self._unusable(str(error)) from None
        self._taken = content

    async def follow(self) -> NoReturn:
        """Reads it again, for ever. What can not be read changes nothing."""
        while True:
            await asyncio.sleep(URL_PERIOD_S if self.remote else FILE_PERIOD_S)
            try:
                await self.read()
            except Misconfigured as error:
                log.warning("%s What was read last stays in force.", error)

    def _unusable(self, why: str) -> Misconfigured:
        return Misconfigured(f"What {self._setting} names can not be used: {why}.")


def _file(path: str) -> bytes:
    return Path(path).read_bytes()


class _SameOrigin(HTTPRedirectHandler):
    """Follows a redirect within the origin of the setting. Any other would have a key set come from where
    nobody said that it may, or by a way on which others can change it."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            raise _Unusable("it is redirected to another origin; name the place itself")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _url(url: str) -> bytes:
    with build_opener(_SameOrigin).open(url, timeout=URL_TIMEOUT_S) as answer:
        content: bytes = answer.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise _Unusable(f"it is longer than {MAX_BYTES} bytes")
    return content
