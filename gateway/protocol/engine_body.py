"""What an engine is sent: the caller's checked body with the gateway's own values in it. Written for vLLM 0.32.

The engine sees nothing of the account (metadata, tier), no null (to vLLM some are errors), and only our salt, priority and ids.
Where vLLM takes them: `cache_salt` on every route that uses the prefix cache, messages among them; `priority` in the body of all of these but
messages, where only the header `X-Vllm-Priority` sets it; the request id from `X-Request-Id`, on responses from the body.
"""

from typing import Any

import orjson

from gateway.request import ParsedRequest, Route

_USAGE = {"include_usage": True, "continuous_usage_stats": True}

# What the gateway itself acts on. What nobody acts on is no longer in a checked body (`gateway.protocol.fields`).
_DROPPED = dict.fromkeys(Route, frozenset({"metadata", "service_tier", "stream_options"}))
# An answer repeats what it was sent of these.
_DROPPED[Route.RESPONSES] -= {"metadata"}

_SALTED = frozenset({Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES, Route.EMBEDDINGS})
_PRIORITY_IN_BODY = _SALTED - {Route.MESSAGES}


def engine_body(
    parsed: ParsedRequest,
    *,
    engine_model: str,
    request_id: str,
    cache_salt: str,
    priority: int | None,
    default_max_tokens: int | None,
) -> bytes:
    """The JSON for the engine. `request_id` is the id of the engine's request: on responses it is written here, as `resp_…`.

    `cache_salt`: hex; vLLM takes at most 128 characters without `@ / \\`. `default_max_tokens` None: the engine's own default. vLLM
    refuses what is more than the context, which no default is, and cuts what is more than the prompt leaves of it.
    """
    route = parsed.route.name
    dropped = _DROPPED[route]
    body: dict[str, Any] = {
        name: value for name, value in parsed.body.items() if value is not None and name not in dropped
    }
    body["model"] = engine_model
    if route in _SALTED:
        assert cache_salt, "an engine's prefix cache is never shared between tenants"
        body["cache_salt"] = cache_salt
        if priority is not None and route in _PRIORITY_IN_BODY:
            body["priority"] = priority
    if parsed.stream and (route is Route.CHAT or route is Route.COMPLETIONS):
        body["stream_options"] = _USAGE
    if route is Route.INPUT_TOKENS:
        body["mm_payload"] = "none"  # the images themselves need not come back
    if route is Route.RESPONSES:
        assert request_id.startswith("resp_"), "the id of a response"
        body["request_id"] = request_id
        body["store"] = False
    if parsed.max_output_tokens is None and default_max_tokens is not None and parsed.route.output_params:
        body[parsed.route.output_params[0]] = max(default_max_tokens, body.get("min_tokens", 0))
    return orjson.dumps(body)


def with_priority(parsed: ParsedRequest, body: bytes, priority: int) -> bytes:
    """What `engine_body` made without one, with a priority: for each try, because of two instances only one may take it. Cheap."""
    if parsed.route.name not in _PRIORITY_IN_BODY:
        return body
    return b'{"priority":%d,%b' % (priority, body[1:])


def engine_headers(parsed: ParsedRequest, *, priority: int | None) -> list[tuple[bytes, bytes]]:
    """What the engine must be told in headers because this route's body cannot say it."""
    if priority is not None and parsed.route.name is Route.MESSAGES:
        return [(b"x-vllm-priority", b"%d" % priority)]
    return []
