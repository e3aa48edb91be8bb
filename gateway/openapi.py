"""The inference routes in the OpenAPI document. They are plain ASGI, so FastAPI cannot describe them."""

from typing import Any

from gateway.errors import IDEMPOTENCY_KEY
from gateway.request import AnswerForm, RouteSpec, ServiceTier
from gateway.routes import ROUTES

_ERRORS = {
    "400": "Not accepted; `error.param` names the parameter",
    "401": "No valid key",
    "404": "No such model for this key",
    "409": "A request with this Idempotency-Key runs, was carried out (see error.receipt), or got lost",
    "413": "Body too large",
    "422": "Another request came with this Idempotency-Key",
    "429": "A limit is reached; see retry-after-ms and x-should-retry",
    "502": "The engine failed, or its answer cannot be understood",
    "503": "No instance or no capacity now, or limits that cannot be checked",
}


_IDEMPOTENCY: dict[str, Any] = {
    "name": IDEMPOTENCY_KEY,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x21-\x7e]+$"},
    "description": "Of all requests of the account under one key, in 24 hours, one is carried out.",
}


def inference_paths() -> dict[str, Any]:
    """Path items of all inference routes."""
    return {route.facts.path: {"post": _operation(route)} for route in ROUTES.values()}


def _operation(route: RouteSpec) -> dict[str, Any]:
    properties: dict[str, Any] = {"model": {"type": "string"}}
    if route.generates:
        properties["stream"] = {"type": "boolean", "default": False}
    if route.metered:
        properties["service_tier"] = _tier(route)
    body = {
        "type": "object",
        "required": ["model", *route.required],
        "properties": properties,
        "additionalProperties": True,
    }
    responses: dict[str, Any] = {"200": {"description": "The answer, whole or as server-sent events"}}
    responses |= {status: {"description": text} for status, text in _ERRORS.items()}
    return {
        "summary": route.summary,
        "operationId": route.name.value,
        "tags": ["inference"],
        "security": [{"bearer": []}, {"x-api-key": []}],
        "parameters": [_IDEMPOTENCY] if route.metered else [],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": responses,
    }


def _tier(route: RouteSpec) -> dict[str, Any]:
    own, said = (
        (["standard_only"], "usage.service_tier")
        if route.answer is AnswerForm.MESSAGE
        else ([], "service_tier")
    )
    return {
        "type": "string",
        "enum": [*ServiceTier, *own],
        "default": "auto",
        "description": (
            "priority: the capacity of your contract only; default: shared fairly; flex: idle capacity, "
            "the first to be preempted; "
            f"auto: your contract's capacity where you have one, else default. The answer's {said} says "
            "what was used, as x-taas-class does."
        ),
    }


SECURITY_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
