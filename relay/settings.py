"""What an operator can set, each with its reason. Read from the environment, never changed afterwards."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from relay.addresses import check_postgres, check_redis
from relay.errors import Misconfigured
from relay.listener import ADDRESS
from relay.logs import Format, Level
from relay.stream.entry import LARGEST_BODY
from relay.stream.keys import MAX_SHARDS

_SIGNING_SECRET = re.compile(r"(whsec_)?[A-Za-z0-9+/]{32,}={0,2}")
_KEYS_URL = re.compile(r"https://|http://(127\.0\.0\.1|localhost)[:/]")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?")


PLAIN = ("REDIS_URL", "DATABASE_URL", "OTEL_EXPORTER_OTLP_ENDPOINT", "TELEMETRY_WEBHOOK_TOKEN")
"""The variables without the prefix."""


def _plain(name: str) -> AliasChoices:
    """A variable that is named without the prefix, since pipelines and platforms already set it so."""
    return AliasChoices(name.lower(), name)


def variable(field: str) -> str:
    """The environment variable of a field, by the field's name or, where it has one, its alias."""
    name = field.upper()
    return name if name in PLAIN else f"RELAY_{name}"


def explain(error: ValidationError) -> str:
    """What is wrong with the settings, in a line, by the names of variables and without their values."""
    said = dict.fromkeys(_sentence(item["loc"], item) for item in error.errors())
    return f"The settings are not valid: {'; '.join(said)}"


def _sentence(loc: tuple[int | str, ...], item: Mapping[str, Any]) -> str:
    name = variable(str(loc[0]))
    cause = item.get("ctx", {}).get("error")
    sentence = str(cause) if isinstance(cause, ValueError) else item["msg"]
    return sentence if name in sentence else f"{name}: {sentence}"


def shaped(pattern: str, form: str) -> AfterValidator:
    """Text that has to match, whole. What it should look like is said in words, and not by the pattern."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"It has to be {form}")
        return text

    return AfterValidator(check)


Address = Annotated[str, shaped(ADDRESS, "`host:port`, such as 127.0.0.1:9464")]
_Files = Annotated[str, shaped("[01],[0-9]", "`local,replicas`, such as 1,1 or 1,0")]
_Statement = Annotated[
    str,
    shaped(
        r"([^%]|%%|%\(conversation_id\)s)*",
        "a statement whose only parameter is %(conversation_id)s, and which has %% for any other %",
    ),
]
_Endpoint = Annotated[str, shaped(r"(https?://[^\s/]\S*)?", "http://host:4318, or the same with https")]


def mistakes(error: ValidationError) -> str:
    """Where the mistakes are and what they are, in a line, without what was given."""
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())


def several(secrets: SecretStr | None) -> list[str]:
    """The secrets of a setting that may hold more than one, separated by blanks: the new and the old one."""
    return secrets.get_secret_value().split() if secrets else []


Check = Literal["secret", "redis-password", "redis-file", "redis-eviction", "postgres-password", "embedded"]
"""What is looked at before a process starts."""


def _names(value: Any) -> Any:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


class StoreSettings(BaseSettings):
    """Where the stores are: the same for every process of a deployment."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="RELAY_",
        extra="ignore",
        hide_input_in_errors=True,  # whoever prints one, it holds no secret
    )

    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        validation_alias=_plain("REDIS_URL"),
        description="The Redis or Valkey that holds the logs. It must keep an append-only file: what "
        "it loses, is lost. `redis+sentinel://` and `redis+cluster://` name those who know where it is.",
    )
    database_url: SecretStr = Field(
        SecretStr("postgresql://postgres@127.0.0.1:5432/postgres"),
        validation_alias=_plain("DATABASE_URL"),
        description="The PostgreSQL that holds the archive, as a libpq URL.",
    )
    waitaof: _Files | None = Field(
        None,
        description="`local,replicas`: the files, the server's own and those of its replicas, that have to "
        "hold an event before it is acknowledged or archived. `1,1` where a replica may take over from a "
        "lost primary, `1,0` where the server syncs its file only every second.",
    )
    otlp_endpoint: _Endpoint | None = Field(
        None,
        validation_alias=_plain("OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="Where traces go, by OTLP over HTTP: those of requests with a `traceparent`. Without it "
        "there are none, and nothing that makes them is loaded.",
    )
    log_format: Format = Field(
        "json",
        description="How logs look, on stderr: an object a line for programs, or text for people, as "
        "`relay up` has them.",
    )
    log_level: Level = Field(
        "info",
        description="From which level on something is logged: `warning` leaves out what goes well.",
    )
    shards: int = Field(
        1,
        ge=1,
        le=MAX_SHARDS,
        description="How many logs the runs spread over, each with tailers and persisters of its own. "
        "Never lower it, and raise it only while no run is under way: a run's events stay in its shard.",
    )
    allow_insecure: Annotated[frozenset[Check], NoDecode, BeforeValidator(_names)] = Field(
        frozenset(),
        description="Weaknesses to start with all the same, by name with commas between them: somebody has "
        "to have decided on each.",
    )

    @field_validator("redis_url", "database_url")
    @classmethod
    def _understood(cls, url: SecretStr, info: ValidationInfo) -> SecretStr:
        check = check_redis if info.field_name == "redis_url" else check_postgres
        try:
            check(url.get_secret_value())
        except Misconfigured as error:
            raise ValueError(str(error)) from None
        return url


class Settings(StoreSettings):
    """The web service."""

    ops_listen: Address | None = Field(
        None,
        description="`host:port` of the private listener, with /metrics, /readyz, /livez and /docs: for "
        "operators, never an address that users reach. Each worker takes a port of its own, the first free "
        "one from there on. Without it there is none.",
    )

    webhook_token: SecretStr | None = Field(
        None,
        validation_alias=_plain("TELEMETRY_WEBHOOK_TOKEN"),
        description="What pipelines present as a bearer token. Without it every webhook answers 500.",
    )
    webhook_tokens: FilePath | None = Field(
        None,
        description="A JSON file of more such tokens, each with its name, its SHA-256 and from when to when "
        "it is valid. It is read again every few seconds, so that a token can be struck without a restart.",
    )
    run_token_secret: SecretStr | None = Field(
        None,
        description="What the tokens of single runs are made with, so that a token that leaks from a rented "
        "machine writes to its own run only. A new and an old secret, separated by a blank, are both valid.",
    )
    webhook_signing_secret: SecretStr | None = Field(
        None,
        description="The secret of senders who sign in the manner of Standard Webhooks, `whsec_` and base64, "
        "instead of presenting a token. Several, separated by blanks, are all valid.",
    )
    viewer_secret: SecretStr | None = Field(
        None,
        description="The HS256 key of viewers' tokens. A new and an old one, separated by a blank, are both "
        "valid. Without any, and without a key set, no viewer can be told from another, and all get 500.",
    )
    viewer_jwks: str | None = Field(
        None,
        min_length=1,
        description="The key set (JWKS) of an identity provider that signs viewers' tokens with RS256 or "
        "ES256: an https URL or a file. It is read again by itself, so the provider may change its keys.",
    )
    viewer_audience: str | None = Field(
        None,
        description="What viewers' tokens must have as `aud`, where the same keys sign for other services as "
        "well. Without it no token may name an audience.",
    )
    viewer_issuer: str | None = Field(None, description="What viewers' tokens must have as `iss`.")
    allowed_origins: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="Origins of pages, `https://app.example.com`, separated by blanks, that may read with a "
        "script, and that the cookie is taken from. A page of the relay's own origin needs no entry.",
    )
    conversation_sql: _Statement | None = Field(
        None,
        description="Where an application has its own tables: a SELECT of `user_id` for "
        "`%(conversation_id)s`. One statement, since a user's right is checked with it.",
    )
    runs_sql: _Statement | None = Field(
        None,
        description="The same for the runs of `%(conversation_id)s`: a SELECT of `run_id`, `status`, "
        "`error_message`, `created_at`, `finished_at` and `last_heartbeat_at`.",
    )
    event_bytes: int = Field(
        256 * 1024,
        gt=0,
        le=LARGEST_BODY,
        description="The largest body of one event: room for a long review, not for a file.",
    )
    batch_bytes: int = Field(
        8 * 1024 * 1024,
        gt=0,
        description="The largest body of a batch; it is held in memory until it is stored.",
    )
    batch_events: int = Field(
        1000,
        gt=0,
        description="Events in one batch: the function that stores them blocks Redis while it runs.",
    )
    body_timeout_s: float = Field(
        10, gt=0, description="How long a sender may take over a body, so that slow ones do not pile up."
    )
    header_timeout_s: float = Field(
        10,
        gt=0,
        description="How long a client may take over a request's headers, and over connecting without a "
        "request: a connection that says nothing costs as much as one that does.",
    )
    header_bytes: int = Field(
        32 * 1024,
        gt=0,
        description="The largest head of a request, its line and headers together: room for the cookies of "
        "a page, not for a memory full of them.",
    )
    header_count: int = Field(
        100, gt=0, description="Headers of one request: browsers behind proxies send about thirty."
    )
    requests_per_s: float = Field(
        0,
        ge=0,
        description="Requests that one webhook token may make in a second at one worker, with bursts of "
        "as many; 0 is no limit, since a pipeline that is refused for its speed loses time, and a "
        "full log refuses by itself.",
    )
    live_runs: int = Field(
        20_000,
        gt=0,
        description="Runs of one shard that may have a log in Redis at the same time: each takes about 5 kB "
        "for its first event, so a flood of made-up run ids ends at about 100 MB.",
    )
    viewers_per_user: int = Field(
        8_000,
        gt=0,
        description="Streams that one user may have open at one worker, so that nobody takes all places. A "
        "run's viewers are one user, its owner, on however many screens.",
    )
    viewers_per_worker: int = Field(
        20_000,
        gt=0,
        description="Streams open at one worker: each takes about 20 kB and a file. What the limit of open "
        "files leaves counts where it is less.",
    )
    api_docs: bool = Field(
        False,
        description="Whether users' address has /openapi.json and /docs too: for developers, so `relay up` "
        "turns it on; in production an inventory of all paths is nobody's business.",
    )
    append_deadline_s: float = Field(
        2.8,
        gt=0,
        description="How long the webhook waits for Redis: an answer within 3 s keeps pipelines going.",
    )
    idempotency_hours: float = Field(
        24, gt=0, description="How long an Idempotency-Key is remembered: longer than any client retries."
    )
    idempotency_keys: int = Field(
        4_000_000,
        gt=1,
        description="Idempotency-Keys that a shard remembers at most: each takes 90 bytes of Redis, and "
        "the newest half of so many is always remembered.",
    )
    keep_alive_s: float = Field(
        15,
        gt=0,
        description="How often an idle stream gets a comment: below the idle time-out of common proxies.",
    )
    replay_page: int = Field(
        512,
        gt=0,
        description="Events that a viewer who comes back is sent at a time: so many are held in memory for "
        "each that comes back at once, and a smaller page asks Redis more often.",
    )
    viewer_buffer_bytes: int = Field(
        256 * 1024, gt=0, description="What may wait for one viewer in memory before it counts as slow."
    )
    slow_viewer_s: float = Field(
        10, gt=0, description="How long a viewer may stay slow before it is cut; it resumes by id."
    )
    stale_after_s: float = Field(
        300, gt=0, description="How long nothing may be heard of a run before it is shown as stale."
    )
    access_cache_s: float = Field(
        5,
        ge=0,
        description="How long a worker trusts what it read about a run's owner, so that many viewers "
        "cost one query.",
    )
    access_recheck_s: float = Field(
        15,
        gt=0,
        description="How often it is looked up whether a run that is watched is still its viewers' own: once "
        "for all of them, so that who lost it sees no more of it within half a minute.",
    )
    database_threads: int = Field(
        4, gt=0, description="Database calls under way at once in one worker; each has its own connection."
    )

    @field_validator("webhook_signing_secret")
    @classmethod
    def _signs(cls, secrets: SecretStr | None) -> SecretStr | None:
        if not all(_SIGNING_SECRET.fullmatch(secret) for secret in several(secrets)):
            raise ValueError("A signing secret has to be at least 24 bytes in base64, with or without whsec_")
        return secrets

    @field_validator("viewer_jwks")
    @classmethod
    def _encrypted(cls, place: str | None) -> str | None:
        if place and "://" in place and not _KEYS_URL.match(place):
            raise ValueError(
                "Keys have to come by https, or from this machine: others could put in their own"
            )
        return place

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _origins(cls, origins: object) -> object:
        found = origins.split() if isinstance(origins, str) else origins
        if isinstance(found, list) and not all(_ORIGIN.fullmatch(origin) for origin in found):
            raise ValueError(
                "An origin has to be https://host or https://host:port, in small letters, without a path"
            )
        return found
