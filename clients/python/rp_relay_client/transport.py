"""One connection to the relay, kept alive: a body out, an answer back."""

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rp_relay_client.secret import Secret

PATH = "/research-pipeline/events/batch"

# The first look-up of a host imports a codec. A fork in that moment would leave a child in which this
# import never ends, so it is done here, before there is a thread.
"relay".encode("idna")

_ANSWER_BYTES = 64 * 1024
_CUT = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, http.client.RemoteDisconnected)


class Address(NamedTuple):
    """Where the relay is."""

    tls: bool
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, base_url: str) -> "Address":
        """From `http://host[:port][/prefix]`. Raises ValueError, whose message does not quote the URL."""
        parts = urlsplit(base_url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must begin with http:// or https:// and name a host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("base_url must hold no user, password, query or fragment")
        tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix(PATH).removesuffix(PATH.rpartition("/")[0])
        return cls(tls, parts.hostname, parts.port or (443 if tls else 80), prefix + PATH)

    @property
    def directory(self) -> str:
        """A name for what waits for this relay."""
        words = f"{self.host}_{self.port}"
        return f"{re.sub('[^A-Za-z0-9._]', '_', words)}-{zlib.crc32(repr(tuple(self)).encode()):08x}"


class Answer(NamedTuple):
    """What the relay, or something before it, said. `problem` is empty where it is no problem document."""

    status: int
    retry_after: str | None
    problem: Mapping[str, Any]


class Transport:
    """For one thread; but `abort` may be called by any, and `abandon` in a forked child."""

    def __init__(self, address: Address, secret: Secret, timeout_s: float) -> None:
        self._address = address
        self._secret = secret
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None
        self._aborted = False

    def post(self, body: bytes, key: str, traceparent: str | None = None) -> Answer:
        """Sends a batch, as part of a trace where there is one. Raises OSError or HTTPException: then it may
        or may not have arrived."""
        fresh = self._connection is None
        try:
            return self._post(body, key, traceparent)
        except _CUT:
            self.close()
            if fresh or self._aborted:
                raise
        except BaseException:
            self.close()
            raise
        # The relay closed a connection that was idle, which it may. The key makes the repeat safe.
        try:
            return self._post(body, key, traceparent)
        except BaseException:
            self.close()
            raise

    def _post(self, body: bytes, key: str, traceparent: str | None) -> Answer:
        connection = self._connection = self._connection or self._connect()
        headers = {
            "Authorization": f"Bearer {self._secret.reveal()}",
            "Content-Type": "application/x-ndjson",
            "Idempotency-Key": key,
            **({"traceparent": traceparent} if traceparent else {}),
        }
        if connection.sock is None:
            connection.connect()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # Who refuses a large body may answer and close before all of it is sent: read on regardless.
            connection.request("POST", self._address.path, body, headers)
        response = connection.getresponse()
        content = response.read(_ANSWER_BYTES)
        if response.will_close or not response.isclosed():
            self.close()
        return Answer(response.status, response.headers["Retry-After"], _problem(response, content))

    def _connect(self) -> http.client.HTTPConnection:
        address = self._address
        connection: http.client.HTTPConnection
        if address.tls:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                address.host, address.port, timeout=self._timeout_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(address.host, address.port, timeout=self._timeout_s)
        connection.set_debuglevel(0)  # otherwise a program that raises it for all prints the token
        return connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abort(self) -> None:
        """Makes a `post` that waits for the network fail now, and not try again."""
        self._aborted = True
        if sock := self._socket():
            with contextlib.suppress(OSError):
                # Of the plain socket, since a TLS socket's own would take its state away from the reader.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Closes the child's copy of the connection, without a word to the relay."""
        if sock := self._socket():
            fd = sock.detach()
            if fd >= 0:
                os.close(fd)

    def _socket(self) -> socket.socket | None:
        connection = self._connection
        return connection.sock if connection is not None else None


def _problem(response: http.client.HTTPResponse, content: bytes) -> Mapping[str, Any]:
    if "json" not in response.headers.get("Content-Type", ""):
        return {}
    try:
        problem = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return problem if isinstance(problem, dict) else {}
