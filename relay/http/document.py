"""The OpenAPI document: what the routes do not say by themselves, so that it can be taken at its word."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from relay.auth import MAX_BIGINT
from relay.http.problems import MEDIA_TYPE
from relay.stream.keys import RUN_ID

WRITER, VIEWER, COOKIE = "webhookToken", "viewerToken", "viewerCookie"

_SCHEMES = {
    WRITER: {"type": "http", "scheme": "bearer", "description": "TELEMETRY_WEBHOOK_TOKEN"},
    VIEWER: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    COOKIE: {"type": "apiKey", "in": "cookie", "name": "relay_token", "description": "The same token"},
}

_PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "pattern": "^urn:rp-relay:problem:"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {"type": "object", "required": ["loc", "msg", "type"]},
        },
    },
}

_WRITING = {
    400: "The body is not JSON, or the request is malformed",
    401: "The token is missing or wrong",
    403: "The token is for one run, and this is of another one",
    409: "It contradicts what is stored",
    413: "The body is too large",
    415: "The body has another type",
    422: "The body does not have the right form",
    429: "A limit is reached: send it again later, after Retry-After",
    500: "The server has no token configured",
    503: "Not stored, or the outcome is unknown: send it again",
}

_READING = {
    400: "The conversation's id is not positive, or the request is malformed",
    401: "The viewer's token is missing, expired or not valid",
    403: "The conversation is another user's, or the cookie comes from another origin",
    404: "There is no such conversation or run",
    422: "A parameter is not valid",
    500: "The server has no secret configured",
    503: "A store is away: try again later",
}

_LIVE = {
    406: "The client does not take event streams",
    429: "Too many streams are open, or tickets asked for",
}

_COMMON = {408: "The request did not arrive in time", 431: "The headers are too large"}

RUN_PARAMETER = {"type": "string", "pattern": f"^{RUN_ID}$"}
CONVERSATION_PARAMETER = {"type": "integer", "minimum": 1, "maximum": MAX_BIGINT}


def body_of(adapter: TypeAdapter[Any], *, flat: bool = False) -> dict[str, Any]:
    """The schema of a body. `flat`: the event's fields may also stand beside the others."""
    schema = adapter.json_schema()
    if not flat:
        return schema
    definitions = schema.pop("$defs")
    event = definitions[schema["properties"]["event"]["$ref"].rpartition("/")[2]]
    beside = {name: value for name, value in schema["properties"].items() if name != "event"}
    required = [name for name in schema["required"] if name != "event"] + event.get("required", [])
    alone = {
        "type": "object",
        "properties": {**event["properties"], **beside},
        "required": required,
        "not": {"required": ["event"]},
    }
    return {"anyOf": [alone, schema], "$defs": definitions}


def operation_id(route: APIRoute) -> str:
    """The path in words; it has one operation. (FastAPI takes a method from a set, which has no order.)"""
    return re.sub(r"\W+", "_", route.path_format).strip("_")


def install(app: FastAPI) -> None:
    """Makes the application's document the whole one, once somebody asks for it."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            with warnings.catch_warnings(action="ignore"):  # that GET and HEAD are one operation
                app.openapi_schema = _completed(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    components["securitySchemes"] = _SCHEMES
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = _PROBLEM
    for operations in document["paths"].values():
        for method, operation in operations.items():
            _complete(operation, method)
            _hoist(operation, schemas)
    return document


def _complete(operation: dict[str, Any], method: str) -> None:
    if method == "head":
        operation["operationId"] += "_head"
    (tag,) = operation["tags"]
    refusals = {
        "pipeline": _WRITING,
        "history": _READING,
        "live": _READING | _LIVE,
    }.get(tag, {})
    if refusals:
        operation["security"] = [{WRITER: []}] if tag == "pipeline" else [{VIEWER: []}, {COOKIE: []}]
    for status, what in sorted((refusals | _COMMON).items()):
        operation["responses"][str(status)] = _refusal(what)


def _refusal(what: str) -> Mapping[str, Any]:
    return {
        "description": what,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _hoist(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Moves the definitions inside a body's schema to where references in the document point to."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schemas |= {name: _moved(value) for name, value in content["schema"].pop("$defs", {}).items()}
        content["schema"] = _moved(content["schema"])


def _moved(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _moved(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_moved(member) for member in value]
    return value.replace("#/$defs/", "#/components/schemas/") if isinstance(value, str) else value
