"""For whoever runs the service: is the process alive, and can it do its work?"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic_core import to_json
from starlette.responses import Response

from relay.headers import PRIVATE
from relay.listener import Page, Pages, document

T = TypeVar("T")

Probe = Callable[[], Awaitable[str | None]]
"""Answers what is wrong with a dependency, or None."""

NEEDED = ("redis", "tailers")
"""Without PostgreSQL events are still taken and shown. And where none can be stored, viewers still see those
that were."""

LIVE_S = 5.0
"""How long the event loop may be busy before the worker counts as dead."""

READY_S = 8.0

FRESH_S = 1.0
"""How old an answer to `/readyz` may be, so that who asks often does not keep the stores busy."""


class Health:
    """What a worker can say of itself. `needed` answers which probes have to be well for it to be ready.
    `durability` answers how the event log keeps what it is given, and is not asked while that is away."""

    def __init__(
        self,
        probes: Mapping[str, Probe],
        durability: Callable[[], Awaitable[Mapping[str, Any]]],
        needed: Callable[[], Collection[str]] = lambda: NEEDED,
    ) -> None:
        self._probes = probes
        self._needed = needed
        self._durability = durability
        self._answer: asyncio.Task[tuple[int, Mapping[str, Any]]] | None = None
        self._answered = 0.0

    async def problems(self) -> Mapping[str, str | None]:
        """What is wrong with each dependency, or None. All are asked at once."""
        found = await asyncio.gather(*(probe() for probe in self._probes.values()))
        return dict(zip(self._probes, found, strict=True))

    async def ready(self) -> tuple[int, Mapping[str, Any]]:
        """Redis decides, whether this process hears of its news, and whether it ever could store. Who asks
        while an answer is being made, or soon after, gets the same."""
        if self._answer is None or (self._answer.done() and time.monotonic() - self._answered > FRESH_S):
            self._answer = asyncio.create_task(self._ready())
        return await asyncio.shield(self._answer)

    async def _ready(self) -> tuple[int, Mapping[str, Any]]:
        found = await self.problems()
        ready = all(found[name] is None for name in self._needed())
        well = "degraded" if any(found.values()) else "ok"
        said: dict[str, Any] = {
            "status": well if ready else "unavailable",
            "checks": {name: problem or "ok" for name, problem in found.items()},
        }
        if found["redis"] is None:
            said["durability"] = await self._durability()
        self._answered = time.monotonic()
        return (200 if ready else 503), said


async def live() -> tuple[int, Mapping[str, Any]]:
    """That it is said at all is what counts."""
    return 200, {"status": "ok"}


def router(health: Health) -> APIRouter:
    """`/livez` and `/readyz`, for load balancers, among the public paths."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/livez", summary="The process answers")
    async def livez() -> Response:
        return _answer(document(*await live()))

    @routes.get(
        "/readyz",
        summary="The process can store and show events",
        responses={503: {"description": "Not now"}},
    )
    async def readyz() -> Response:
        """Redis decides, whether this process hears of its news, and whether it ever could store."""
        return _answer(document(*await health.ready()))

    return routes


def documentation(app: FastAPI) -> APIRouter:
    """`/openapi.json` and `/docs` among the public paths, for developers."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/openapi.json")
    async def schema() -> Response:
        return _answer(_schema(app))

    @routes.get("/docs")
    async def docs() -> Response:
        return _answer(_docs(app))

    return routes


def pages(
    loop: asyncio.AbstractEventLoop, app: FastAPI, health: Health, figures: Callable[[], Page]
) -> Pages:
    """What the private listener of a worker has."""
    return {
        "/livez": _said(on_loop(loop, live, LIVE_S)),
        "/readyz": _said(on_loop(loop, health.ready, READY_S)),
        "/metrics": figures,
        "/openapi.json": lambda: _schema(app),
        "/docs": lambda: _docs(app),
    }


def on_loop(
    loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, T]], timeout_s: float
) -> Callable[[], T]:
    """`work` on the event loop, for another thread. Raises TimeoutError where the loop is busy for longer."""

    def ask() -> T:
        asked = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            return asked.result(timeout_s)
        finally:
            asked.cancel()

    return ask


def _said(ask: Callable[[], tuple[int, Mapping[str, Any]]]) -> Callable[[], Page]:
    def page() -> Page:
        try:
            return document(*ask())
        except TimeoutError:
            return document(503, {"status": "the event loop does not get to it"})

    return page


def _answer(page: Page) -> Response:
    answer = Response(page.body, page.status, media_type=page.media_type)
    answer.raw_headers.extend(PRIVATE)
    return answer


def _schema(app: FastAPI) -> Page:
    return Page(200, "application/json", to_json(app.openapi()))


def _docs(app: FastAPI) -> Page:
    html = get_swagger_ui_html(openapi_url="openapi.json", title=app.title)
    return Page(200, "text/html; charset=utf-8", bytes(html.body))
