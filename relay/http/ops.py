"""For whoever runs the service: is the process alive, and can it do its work?"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

Probe = Callable[[], Awaitable[str | None]]
"""Answers what is wrong with a dependency, or None."""

NEEDED = ("redis", "tailers")
"""Without PostgreSQL events are still taken and shown."""


def router(probes: Mapping[str, Probe]) -> APIRouter:
    """`/livez` and `/readyz`."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/livez", summary="The process answers")
    async def livez() -> Response:
        return JSONResponse({"status": "ok"})

    @routes.get(
        "/readyz",
        summary="The process can store and show events",
        responses={503: {"description": "Not now"}},
    )
    async def readyz() -> Response:
        """Redis decides, and whether this process hears of its news."""
        found = {name: await probe() for name, probe in probes.items()}
        ready = all(found[name] is None for name in NEEDED)
        checks = {name: problem or "ok" for name, problem in found.items()}
        return JSONResponse(
            {"status": "ok" if ready else "unavailable", "checks": checks}, 200 if ready else 503
        )

    return routes
