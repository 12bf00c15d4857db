"""The web application, put together. The only module that knows everything.

`create_app` opens nothing. The lifespan opens Redis and PostgreSQL, then starts what lives on them, and
ends in the opposite order.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import redis.exceptions
from fastapi import FastAPI
from starlette.types import ASGIApp

from relay import __version__, connect, durability, exposition, reasons, tracing
from relay.auth import Ownership, tickets
from relay.auth.reread import Reread
from relay.auth.tickets import Tickets
from relay.auth.viewers import Viewers
from relay.auth.writers import Tokens
from relay.background import kept_up
from relay.connect import Database
from relay.errors import DatabaseUnavailable, NotStored, RelayError
from relay.history import History
from relay.http import document, ops, problems, webhooks
from relay.http import history as history_routes
from relay.http import live as live_routes
from relay.http.access import Access
from relay.http.conversation import ConversationStream
from relay.http.fastlane import FastLane, Hook
from relay.http.figures import Figures
from relay.http.guard import STATE, Guard
from relay.http.origins import CrossOrigin
from relay.http.recheck import Recheck
from relay.http.seats import Seats
from relay.http.stream import RunStream
from relay.http.traced import TracedWebhook, traced_publisher
from relay.http.viewing import Shard
from relay.hub import Hub
from relay.link import SharedLink
from relay.listener import listening
from relay.settings import Settings
from relay.stream.publish import Publisher
from relay.stream.replay import Replay
from relay.stream.tail import Tailer

if TYPE_CHECKING:
    from relay.spans import Spans

log = logging.getLogger(__name__)

PROBE_S = 0.5
"""How long PostgreSQL may take to show that it is there, and the event log, where it took no events, that it
does now. A worker is ready without either, and a load balancer that waits for a second is to hear so."""


@dataclass(frozen=True)
class Services:
    """What lives as long as the application runs."""

    links: Sequence[SharedLink]
    """Of each shard."""
    database: Database
    publisher: Publisher
    replay: Replay
    history: History
    ownership: Ownership
    tickets: Tickets
    shards: list[Shard]
    guard: Guard


@contextlib.asynccontextmanager
async def running(
    settings: Settings, sources: Sequence[Reread], spans: "Spans | None" = None
) -> AsyncIterator[Services]:
    """Opens the connections and runs the background tasks of one worker."""
    redis_url = settings.redis_url.get_secret_value()
    async with contextlib.AsyncExitStack() as stack:
        if spans:
            stack.enter_context(spans.exporting())
        for source in sources:
            await source.open()
            await stack.enter_async_context(kept_up("reread", source.follow))
        links = connect.shared_links(redis_url, settings.shards)
        for link in set(links):
            stack.push_async_callback(link.close)
        database = Database(settings.database_url.get_secret_value(), settings.database_threads)
        stack.callback(database.close)
        history = History(database)
        publisher = (traced_publisher(spans) if spans else Publisher)(
            lambda shard: connect.append_link(redis_url, settings.waitaof, shard),
            history.highest,
            shards=settings.shards,
            deadline_s=settings.append_deadline_s,
            remember_ms=int(settings.idempotency_hours * 3_600_000),
            live_runs=settings.live_runs,
            known_keys=settings.idempotency_keys,
        )
        stack.push_async_callback(publisher.close)
        shards = []
        for shard in range(settings.shards):
            hub = Hub()
            tailer = Tailer(lambda shard: connect.tail_link(redis_url, shard), hub, shard)
            shards.append(Shard(hub, tailer))
            keep_alive = partial(hub.keep_alive, settings.keep_alive_s)
            await stack.enter_async_context(kept_up("tailer", tailer.run))
            await stack.enter_async_context(kept_up("keep_alive", keep_alive))
        guard = Guard(settings)
        await stack.enter_async_context(kept_up("sweep", guard.sweep))
        try:
            await publisher.open()
        except NotStored:
            log.warning("the event log could not be opened yet; it is tried again with each event")
        yield Services(
            links,
            database,
            publisher,
            Replay(links, history, settings.replay_page),
            history,
            Ownership(database, links, settings),
            Tickets(links[tickets.SHARD]),
            shards,
            guard,
        )


def create_app(settings: Settings | None = None) -> ASGIApp:
    """The ASGI application, for tests and for another ASGI server: `relay serve` is the way to run it.

    What that adds is then missing: the look at what is insecure before the start, logs without messages of
    drivers, limits of the time and size of a request's head. And an access log, which uvicorn has by default
    (`--no-access-log`), holds the tickets in URLs.
    """
    settings = settings or Settings()
    services: list[Services] = []

    def now() -> Services:
        return services[0]

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Guard]]:
        async with running(settings, sources, spans) as started:
            services.append(started)
            loop = asyncio.get_running_loop()
            figures = Figures(loop, health, started.links, started.shards, seats)
            pages = ops.pages(loop, app, health, exposition.page(figures.collect))
            recheck = Recheck(access, (shard.hub for shard in started.shards), settings.access_recheck_s)
            async with kept_up("recheck", recheck.run):
                with listening(settings.ops_listen, pages):
                    yield {STATE: started.guard}
            services.clear()

    spans = tracing.spans(settings, "relay")
    app = _framework(lifespan)
    tokens, viewers = Tokens(settings), Viewers(settings)
    sources = [source for source in (tokens.source, viewers.source) if source]
    access = Access(settings, viewers, lambda: now().tickets, lambda: now().ownership)
    writers = webhooks.Writers(settings, tokens)
    hooks: Mapping[str, Hook] = webhooks.webhooks(settings, writers, lambda: now().publisher)
    if spans:
        hooks = {path: TracedWebhook(hook, path, spans) for path, hook in hooks.items()}
    seats = Seats(settings)
    live = RunStream(settings, access, seats, lambda: now().replay, lambda: now().shards)
    app.include_router(webhooks.router(settings, writers, hooks, lambda: now().ownership))
    app.include_router(history_routes.router(lambda: now().history, lambda: now().replay, access, settings))
    health = _health(settings, now)
    app.include_router(ops.router(health))
    if settings.api_docs:
        app.include_router(ops.documentation(app))
    conversation = ConversationStream(settings, access, seats, lambda: now().replay, lambda: now().shards)
    app.include_router(live_routes.router(live, conversation, access))
    problems.install(app)
    document.install(app)
    paper = history_routes.whole_paper(lambda: now().history, access)

    def crossing(inner: ASGIApp) -> ASGIApp:
        return CrossOrigin(inner, settings.allowed_origins) if settings.allowed_origins else inner

    return FastLane(
        app,
        {path: hook for path, hook in hooks.items() if "{" not in path},
        live={"/events": live},
        plain={history_routes.PAPER: paper},
        crossing=crossing,
    )


def _framework(lifespan: Any) -> FastAPI:
    return FastAPI(
        title="rp-relay",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,  # we have pages of our own
        generate_unique_id_function=document.operation_id,
        # Its own would export URLs with the tickets in them, and what exceptions say.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )


def _health(settings: Settings, now: Callable[[], Services]) -> ops.Health:
    probes: dict[str, ops.Probe] = {
        "redis": lambda: _redis(now()),
        "tailers": lambda: _tailers(now()),
        "append": lambda: _append(now()),
        "postgres": lambda: _postgres(now()),
    }

    def needed() -> Collection[str]:
        # One that never could store may be new, beside others that can: it is to get no events. To take out
        # those that could would only cost the viewers.
        return ops.NEEDED if now().publisher.ever_stored else (*ops.NEEDED, "append")

    return ops.Health(probes, lambda: durability.in_force(now().links, settings.waitaof), needed)


async def _redis(services: Services) -> str | None:
    try:
        await asyncio.gather(*(link.ask("PING") for link in set(services.links)))
    except redis.exceptions.AuthenticationError as error:
        return reasons.why(error)
    except (redis.exceptions.RedisError, OSError):
        return "Redis does not answer"
    return None


async def _tailers(services: Services) -> str | None:
    if any(shard.tailer.deaf for shard in services.shards):
        return "Redis does not answer the connection that new events come over; viewers wait for it"
    return None


async def _append(services: Services) -> str | None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PROBE_S):
            return await services.publisher.problem()
    return services.publisher.reason


async def _postgres(services: Services) -> str | None:
    try:
        async with asyncio.timeout(PROBE_S):
            await services.database.rows("SELECT 1", {})
    except DatabaseUnavailable as error:
        return reasons.why(error) if reasons.known(error) else "PostgreSQL does not answer"
    except (RelayError, TimeoutError):
        return "PostgreSQL does not answer"
    return None
