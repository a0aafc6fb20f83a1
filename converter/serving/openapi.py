"""The OpenAPI document, made of the table of routes and the types of what they take and give."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from converter.serving.openai import Error
from converter.serving.route import Route
from converter.version import VERSION

REFERENCES = "#/components/schemas/{name}"
ERRORS = {
    "400": "What was asked cannot be done; the sentence says why.",
    "401": "There is no API key, or another one.",
    "403": "The page that asks is another's.",
    "404": "There is no such model.",
    "408": "The body did not come in time.",
    "413": "The body is too long.",
    "415": "The body is no JSON by its header.",
    "429": "As many requests wait as may; try again after the time in Retry-After.",
    "500": "The server failed.",
    "503": "The server is being shut down.",
    "504": "The request took longer than it may.",
}


@cache
def document_of(routes: tuple[Route, ...]) -> bytes:
    """Return the document, as JSON."""
    types = {kind for route in routes for kind in (route.takes, route.gives, route.streams) if isinstance(kind, type)}
    ordered = [Error, *sorted(types, key=lambda kind: kind.__name__)]
    schemas, components = msgspec.json.schema_components(ordered, ref_template=REFERENCES)
    named: dict[Any, Any] = dict(zip(ordered, schemas, strict=True))
    for route in routes:
        if route.takes is not None:  # a field that is unknown is refused
            components[route.takes.__name__]["additionalProperties"] = False
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, named)
    document = {
        "openapi": "3.1.0",
        "info": {"title": "gpt2onnx", "version": VERSION, "description": "A GPT-2 in ONNX Runtime, as OpenAI's API."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }
    return msgspec.json.encode(document)


def _operation(route: Route, named: dict[Any, Any]) -> dict[str, Any]:
    names = route.pattern.groupindex
    gives = route.gives if isinstance(route.gives, str) else "application/json"
    shape = {"schema": named[route.gives]} if not isinstance(route.gives, str) else {}
    content: dict[str, Any] = {gives: shape}
    if route.streams is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": named[Error]}}
    return {
        "operationId": f"{route.method.lower()}{route.path.replace('/', '_')}",
        "summary": (inspect.getdoc(route.handler) or "").partition("\n")[0],
        "security": [{}] if route.is_open else [{"key": []}, {}],
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names],
        **({"requestBody": _body(named[route.takes])} if route.takes is not None else {}),
        "responses": {
            "200": {"description": "What was asked for.", "content": content},
            **{status: {"description": text, "content": error} for status, text in _errors(route)},
        },
    }


def _body(schema: Any) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _errors(route: Route) -> Sequence[tuple[str, str]]:
    """Return what may go wrong with a route."""
    takes = {"400", "404", "408", "413", "415", "429", "503", "504"} if route.takes else set()
    wanted = {"403", "500"} | takes | (set() if route.is_open else {"401"}) | ({"404"} if "{" in route.path else set())
    return [(status, text) for status, text in ERRORS.items() if status in wanted]
