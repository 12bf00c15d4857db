"""For whoever runs the service: is the process alive, and can it do its work?"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

Probe = Callable[[], Awaitable[str | None]]
"""Answers what is wrong with a dependency, or None."""


def router(probes: Mapping[str, Probe]) -> APIRouter:
    """`/livez` and `/readyz`."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/livez", summary="The process answers")
    async def livez() -> Response:
        return JSONResponse({"status": "ok"})

    @routes.get(
        "/readyz", summary="The process can store events", responses={503: {"description": "Not now"}}
    )
    async def readyz() -> Response:
        """Redis decides: without PostgreSQL events are still taken and shown."""
        found = {name: await probe() for name, probe in probes.items()}
        ready = found["redis"] is None
        checks = {name: problem or "ok" for name, problem in found.items()}
        return JSONResponse(
            {"status": "ok" if ready else "unavailable", "checks": checks}, 200 if ready else 503
        )

    return routes
