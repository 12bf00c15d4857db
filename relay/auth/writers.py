"""Who may write, and to which runs.

There are three kinds of proof. A *token* of the service writes to every run: the one of
TELEMETRY_WEBHOOK_TOKEN, and those of a file, which come and go without a restart. A *run token* is made from
a secret and the name of a run, `run.<run_id>.<HMAC-SHA256, base64url>`, and writes to that run only: for
rented machines. A *signature* in the manner of Standard Webhooks speaks for one body.

Tokens are compared as SHA-256 digests, in constant time, whatever their bytes and length. What an
`Authorization` header was found to stand for is remembered under the header's digest, so that the usual
request costs one digest and one look-up.
"""

import hmac
import math
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from hashlib import blake2b, sha256
from typing import Annotated, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from relay.auth.reread import Reread
from relay.errors import Forbidden, Misconfigured, RelayError, Unauthenticated
from relay.settings import Settings, mistakes, several
from relay.stream.entry import NewEvent
from relay.stream.keys import RUN_ID

REMEMBERED = 10_000
"""Headers whose meaning is known. When there are too many, all are forgotten: most are of runs long over."""

SIGNATURE_HEADERS = (b"webhook-id", b"webhook-timestamp", b"webhook-signature")

_RUN_TOKEN = re.compile(rb"run\.(%b)\.[A-Za-z0-9_-]{43}" % RUN_ID.encode())


class Grant(NamedTuple):
    """What a token allows, and from when to when, in seconds since 1970. Without `run_id`: all runs."""

    name: str
    run_id: str | None = None
    not_before: float = -math.inf
    expires: float = math.inf

    def check(self, events: Iterable[NewEvent]) -> None:
        """Raises Forbidden where an event is of another run."""
        if self.run_id is not None and any(event.run_id != self.run_id for event in events):
            raise Forbidden("This token is for one run, and an event is of another one.")

    def own(self, key: str | None) -> str | None:
        """The idempotency key, apart from everybody else's where it is a run's token: who finds one must not
        use up the keys of other runs. (No key that is sent has a blank.)"""
        return key if key is None or self.run_id is None else f"{self.run_id} {key}"

    def check_unbounded(self) -> None:
        """Raises Forbidden unless it is a token of the service."""
        if self.run_id is not None or self is SIGNED:
            raise Forbidden(
                "This takes a token of the service: a run's own one, or a signature, sends events."
            )


SIGNED = Grant("signature")
"""What a signature allows. That it is there says nothing yet: see `Tokens.verify`."""

FOR_EVER = Grant("TELEMETRY_WEBHOOK_TOKEN")


class _Listed(BaseModel):
    """A token in the file."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    not_before: AwareDatetime | None = None
    expires: AwareDatetime | None = None

    def grant(self) -> Grant:
        return Grant(
            self.name,
            not_before=self.not_before.timestamp() if self.not_before else -math.inf,
            expires=self.expires.timestamp() if self.expires else math.inf,
        )


_FILE = TypeAdapter(list[_Listed])


class Tokens:
    """All that is accepted now."""

    def __init__(self, settings: Settings) -> None:
        token = settings.webhook_token
        self._own = [(_digest(token.get_secret_value().encode()), FOR_EVER)] if token else []
        self._listed: list[tuple[bytes, Grant]] = []
        self._run_secrets = several(settings.run_token_secret)
        self._signatures = [Webhook(secret) for secret in several(settings.webhook_signing_secret)]
        self._known: dict[bytes, Grant] = {}
        path = settings.webhook_tokens
        self.source = Reread("RELAY_WEBHOOK_TOKENS", str(path), self._take) if path else None
        self._configured = bool(token or settings.webhook_tokens or self._run_secrets or self._signatures)

    def _take(self, content: bytes) -> None:
        """Replaces the tokens of the file. Raises ValueError."""
        try:
            listed = _FILE.validate_json(content)
        except ValidationError as error:
            raise ValueError(mistakes(error)) from None
        self._listed = [(bytes.fromhex(token.sha256), token.grant()) for token in listed]
        self._known.clear()

    def check(self, headers: Mapping[bytes, bytes]) -> Grant:
        """What the request may do, by its token; SIGNED where there is a signature instead.

        Raises Misconfigured or Unauthenticated.
        """
        authorization = headers.get(b"authorization")
        if authorization is None:
            return self._unsigned(headers)
        digest = blake2b(authorization, digest_size=32).digest()  # quicker than by way of OpenSSL
        grant = self._known.get(digest) or self._find(digest, authorization)
        if grant is not FOR_EVER and not grant.not_before <= time.time() < grant.expires:
            raise self._refused()
        return grant

    def verify(self, headers: Mapping[bytes, bytes], body: bytes) -> None:
        """Raises Unauthenticated where no signature is valid for this body, or it is older than 5 minutes."""
        named = {name.decode(): headers[name].decode("latin-1") for name in SIGNATURE_HEADERS}
        for signature in self._signatures:
            try:
                signature.verify(body, named, json_parse=False)
            except (WebhookVerificationError, ValueError):
                continue
            return
        raise Unauthenticated("The webhook's signature is not valid for this body, or is too old.")

    def _unsigned(self, headers: Mapping[bytes, bytes]) -> Grant:
        if self._signatures and all(name in headers for name in SIGNATURE_HEADERS):
            return SIGNED
        raise self._refused()

    def _find(self, digest: bytes, authorization: bytes) -> Grant:
        scheme, _, token = authorization.partition(b" ")
        grant = self._meaning(token.strip()) if scheme.lower() == b"bearer" else None
        if grant is None:
            raise self._refused()
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[digest] = grant
        return grant

    def _meaning(self, token: bytes) -> Grant | None:
        presented = _digest(token)
        for wanted, grant in (*self._own, *self._listed):
            if hmac.compare_digest(presented, wanted):
                return grant
        if not (match := _RUN_TOKEN.fullmatch(token)):
            return None
        run_id = match[1].decode()
        made = [_digest(mint_run_token(secret, run_id).encode()) for secret in self._run_secrets]
        if any(hmac.compare_digest(presented, wanted) for wanted in made):
            return Grant("run token", run_id)
        return None

    def _refused(self) -> RelayError:
        if not self._configured:
            return Misconfigured(
                "The server has no TELEMETRY_WEBHOOK_TOKEN configured, so it accepts no events."
            )
        return Unauthenticated(
            "The webhook token is missing or wrong; send it as 'Authorization: Bearer <token>'."
        )


def mint_run_token(secrets: str, run_id: str) -> str:
    """A token that writes to one run. Of several secrets, separated by blanks, the first one is used."""
    mac = hmac.digest(secrets.split(maxsplit=1)[0].encode(), run_id.encode(), "sha256")
    return f"run.{run_id}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def _digest(text: bytes) -> bytes:
    return sha256(text).digest()
