"""The inference routes in the OpenAPI document: they are plain ASGI, so FastAPI cannot see what they take."""

from typing import Any

from gateway.request import UNMETERED_ROUTES, Route, ServiceTier

INFERENCE_PATHS: dict[bytes, Route] = {
    b"/v1/chat/completions": Route.CHAT,
    b"/v1/completions": Route.COMPLETIONS,
    b"/v1/responses": Route.RESPONSES,
    b"/v1/embeddings": Route.EMBEDDINGS,
    b"/v1/messages": Route.MESSAGES,
    b"/v1/messages/count_tokens": Route.COUNT_TOKENS,
    b"/tokenize": Route.TOKENIZE,
    b"/v1/responses/input_tokens": Route.INPUT_TOKENS,
}
_SUMMARY = {
    Route.CHAT: "Chat completion (OpenAI)",
    Route.COMPLETIONS: "Text completion (OpenAI)",
    Route.RESPONSES: "Stateless response (OpenAI)",
    Route.EMBEDDINGS: "Embeddings (OpenAI)",
    Route.MESSAGES: "Message (Anthropic)",
    Route.COUNT_TOKENS: "Count the tokens of a message (Anthropic)",
    Route.TOKENIZE: "Tokens of a text (vLLM)",
    Route.INPUT_TOKENS: "Count the input tokens of a response (OpenAI)",
}
_REQUIRED = {
    Route.CHAT: ["model", "messages"],
    Route.COMPLETIONS: ["model", "prompt"],
    Route.RESPONSES: ["model", "input"],
    Route.EMBEDDINGS: ["model", "input"],
    Route.MESSAGES: ["model", "messages", "max_tokens"],
    Route.COUNT_TOKENS: ["model", "messages"],
    Route.TOKENIZE: ["model"],
    Route.INPUT_TOKENS: ["model", "input"],
}
_ERRORS = {
    "400": "Not accepted; `error.param` names the parameter",
    "401": "No valid key",
    "404": "No such model for this key",
    "413": "Body too large",
    "429": "A limit is reached; see retry-after-ms and x-should-retry",
    "502": "The engine broke its protocol",
    "503": "No instance, or quota state out of reach",
}


def inference_paths() -> dict[str, Any]:
    """Path items of all inference routes."""
    return {path.decode(): {"post": _operation(route)} for path, route in INFERENCE_PATHS.items()}


def _operation(route: Route) -> dict[str, Any]:
    properties: dict[str, Any] = {"model": {"type": "string"}}
    if route is not Route.EMBEDDINGS and route not in UNMETERED_ROUTES:
        properties["stream"] = {"type": "boolean", "default": False}
    if route not in UNMETERED_ROUTES:
        properties["service_tier"] = _tier(route)
    body = {"type": "object", "required": _REQUIRED[route], "properties": properties, "additionalProperties": True}
    responses: dict[str, Any] = {"200": {"description": "The answer, whole or as server-sent events"}}
    responses |= {status: {"description": text} for status, text in _ERRORS.items()}
    return {
        "summary": _SUMMARY[route],
        "operationId": route.value,
        "tags": ["inference"],
        "security": [{"bearer": []}, {"x-api-key": []}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": responses,
    }


def _tier(route: Route) -> dict[str, Any]:
    own, said = (["standard_only"], "usage.service_tier") if route is Route.MESSAGES else ([], "service_tier")
    return {
        "type": "string",
        "enum": [*ServiceTier, *own],
        "default": "auto",
        "description": (
            "priority: the capacity of your contract only; default: shared fairly; flex: what is idle, first to give way; "
            f"auto: your contract's capacity where you have one, else default. The answer's {said} says what was used, as x-taas-class does."
        ),
    }


SECURITY_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
