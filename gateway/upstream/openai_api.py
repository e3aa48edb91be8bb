"""The adapter of OpenAI's API, and of providers that speak it. Implements `engine_adapter.EngineAdapter`.
Pure.

The provider gets nothing of ours but the request: no tenant, no request id, no salt, no priority. Its answers
are stored nowhere. Each stream is asked for its usage, which the meter takes out again if the caller did not
ask. A message is translated (`gateway.translate`), and so is its answer.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from billing.wire.instance_entry import InstanceEntry
from billing.wire.usage_event import CapacityClass
from gateway.errors import UnsupportedParameter
from gateway.request import ParsedRequest, Route
from gateway.stream.meter import Meter
from gateway.stream.meter_provider import provider_meter
from gateway.translate import chat_request
from gateway.upstream.engine_adapter import EngineCall
from gateway.upstream.provider_body import (
    ENGINE_ONLY,
    EngineOnly,
    end_user,
    provider_body,
    refuse_continuous_usage,
)
from gateway.upstream.provider_errors import failure, refusal
from gateway.upstream.translated import translated_meter
from gateway.upstream.uncounted import abort, count, read_count

__all__ = ["CONTINUES_TEXT", "abort", "count", "failure", "meter", "read_count", "refusal", "request"]

CONTINUES_TEXT: Final = False

_PATHS: Final[Mapping[Route, bytes]] = {
    Route.CHAT: b"/v1/chat/completions",
    Route.COMPLETIONS: b"/v1/completions",
    Route.RESPONSES: b"/v1/responses",
    Route.EMBEDDINGS: b"/v1/embeddings",
    Route.INPUT_TOKENS: b"/v1/responses/input_tokens",
}
_COMPLETIONS_UNKNOWN: Final[EngineOnly] = {**ENGINE_ONLY, "response_format": ({"type": "text"},)}
# The responses API has no such sampling.
_RESPONSES_UNKNOWN: Final[EngineOnly] = {
    **ENGINE_ONLY,
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "seed": (),
    "stop": ([],),
}
_UNKNOWN: Final[Mapping[Route, EngineOnly]] = {
    Route.CHAT: ENGINE_ONLY,
    Route.COMPLETIONS: _COMPLETIONS_UNKNOWN,
    Route.RESPONSES: _RESPONSES_UNKNOWN,
    Route.EMBEDDINGS: {},
    Route.MESSAGES: {"chat_template_kwargs": ({},)},
    Route.INPUT_TOKENS: _RESPONSES_UNKNOWN,
}
# The parameter for the model's default, where the caller sets no bound.
_BOUND: Final[Mapping[Route, str]] = {
    Route.CHAT: "max_completion_tokens",
    Route.COMPLETIONS: "max_tokens",
    Route.RESPONSES: "max_output_tokens",
}
# The parameter for the caller's end user.
_USER: Final[Mapping[Route, str]] = {
    Route.CHAT: "safety_identifier",
    Route.COMPLETIONS: "user",
    Route.RESPONSES: "safety_identifier",
    Route.EMBEDDINGS: "user",
    Route.INPUT_TOKENS: "safety_identifier",  # taken out again
}
# What the count of a response's input knows; the rest is for the answer, which there is not.
_OF_AN_INPUT: Final = frozenset(
    {"input", "instructions", "model", "parallel_tool_calls", "reasoning", "text", "tool_choice", "tools"}
)
_HEADERS: Final = b"user-agent: taas\r\n"


def request(
    parsed: ParsedRequest,
    instance: InstanceEntry,
    *,
    request_id: str,
    engine_model: str,
    cache_salt: str,
    default_max_tokens: int | None,
    class_: CapacityClass,
    cached_prompt: bytes | None,
) -> EngineCall:
    """Raises UnsupportedParameter for what only engines know, what chat cannot say, and the count of a
    message, which OpenAI does not do.
    """
    route = parsed.route.name
    if route is Route.COUNT_TOKENS:
        raise UnsupportedParameter("messages", "The provider of this model does not count tokens.")
    refuse_continuous_usage(parsed)
    body = provider_body(parsed.body, engine_model, _UNKNOWN[route])
    if route is Route.MESSAGES:
        route, body = Route.CHAT, chat_request(body)
    if (user := end_user(parsed, cache_salt)) is not None:
        body[_USER[route]] = user
    if route is Route.CHAT:
        body["messages"] = [_without_reasoning(message) for message in body["messages"]]
        if "max_completion_tokens" in body:
            body.pop("max_tokens", None)  # the same number by its older name
    if parsed.stream and route in {Route.CHAT, Route.COMPLETIONS}:
        body["stream_options"] = {"include_usage": True}
    if route is Route.RESPONSES:
        body["store"] = False
    if route is Route.INPUT_TOKENS:
        body = {name: value for name, value in body.items() if name in _OF_AN_INPUT}
    if parsed.max_output_tokens is None and default_max_tokens is not None and route in _BOUND:
        body[_BOUND[route]] = default_max_tokens
    return EngineCall(_PATHS[route], _HEADERS, orjson.dumps(body))


def _without_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Engines and some providers put reasoning into messages; OpenAI refuses it when it is sent back."""
    if "reasoning" not in message and "reasoning_content" not in message:
        return message
    return {name: said for name, said in message.items() if name not in {"reasoning", "reasoning_content"}}


def meter(parsed: ParsedRequest, tier: bytes | None = None) -> Meter:
    """A message is answered in chat."""
    return (translated_meter if parsed.route.name is Route.MESSAGES else provider_meter)(parsed, tier)
