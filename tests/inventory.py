"""What is answered at all: the methods and paths of whichever `relay` and `persister` are imported.

Also a program, which prints that as JSON: so other installations can be asked. It uses the product alone.
"""

import asyncio
import json
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

import relay
from persister import health
from relay.app import create_app
from relay.http import ops
from relay.http.fastlane import FastLane
from relay.listener import Page
from relay.settings import Settings

Inventory = set[tuple[str, str]]
"""Methods and paths."""


def public(*, api_docs: bool) -> Inventory:
    """What users and pipelines reach: by the router, and by the fast lane in front of it."""
    lane: Any = create_app(Settings(api_docs=api_docs))
    assert isinstance(lane, FastLane)
    routes = iter_route_contexts(lane._app.routes)  # type: ignore[attr-defined]
    found = {(method, str(route.path)) for route in routes for method in route.methods or ["?"]}
    return found | {("POST", path.decode()) for path in lane.shortcuts}


def of_the_private_listeners() -> dict[str, Inventory]:
    """What operators reach, of a web worker and of a persister."""
    loop = asyncio.new_event_loop()
    try:
        durability: Any = None
        pages = {
            "web": ops.pages(loop, FastAPI(), ops.Health({}, durability), lambda: Page(200, "", b"")),
            "persister": health.pages([], 1.0),
        }
        return {of: {("GET", path) for path in made} for of, made in pages.items()}
    finally:
        loop.close()


def everything() -> dict[str, list[list[str]]]:
    """By who answers it."""
    users, documented = public(api_docs=False), public(api_docs=True)
    found = {"users": users, "developers": documented - users, **of_the_private_listeners()}
    return {who: sorted(map(list, inventory)) for who, inventory in found.items()}


if __name__ == "__main__":
    print(json.dumps({"package": relay.__file__, "inventory": everything()}))  # noqa: T201
