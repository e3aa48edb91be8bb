"""The adapter of vLLM 0.32: requests, ids, aborts, counts and errors. Implements
`engine_adapter.EngineAdapter`. Pure.

The engine gets nothing of the account (metadata, tier), no null (vLLM takes some for errors), and only our
salt, priority and ids. vLLM takes `cache_salt` on every route that uses the prefix cache, including messages.
It takes `priority` in the body of those routes, except on messages, where only the header `X-Vllm-Priority`
sets it. It takes the request id from `X-Request-Id`, on responses from the body.
"""

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from billing.wire.instance_entry import REQUEST_COUNTS_PATH, InstanceEntry
from billing.wire.usage_event import CapacityClass
from gateway.request import ParsedRequest, Route
from gateway.stream.meter_for import meter_for as meter
from gateway.upstream.engine_adapter import EngineCall, RequestCount
from gateway.upstream.vllm_errors import translate_engine_error as refusal
from gateway.upstream.vllm_errors import translate_stream_error as failure

__all__ = ["CONTINUES_TEXT", "abort", "count", "failure", "meter", "read_count", "refusal", "request"]

CONTINUES_TEXT = True
_ABORT_PATH: Final = b"/inference/v1/abort_requests"
_COUNTS_PATH: Final = REQUEST_COUNTS_PATH.encode()
_USAGE: Final = {"include_usage": True, "continuous_usage_stats": True}
# Parameters that the gateway itself acts on. Those without any effect are no longer in a checked body
# (`gateway.protocol.fields`).
_NOT_THE_ENGINES: Final = frozenset({"metadata", "prompt_cache_key", "service_tier", "stream_options"})
_ANYTHING: Final = r"[\s\S]*"
# Lower is served first. There are gaps for future classes.
_PRIORITY: Final = {CapacityClass.RESERVED: 0, CapacityClass.ON_DEMAND: 10, CapacityClass.FLEX: 20}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """One route. `salted`: it uses the prefix cache and schedules by priority. `id_prefix`: the prefix of the
    engine's own request id; `id_for_each_prompt`: there is one per prompt. `streams_usage`: the request must
    ask for usage in streams. `names_response`: its answer is an object with our id that repeats the request.
    """

    path: bytes
    salted: bool = True
    priority_in_body: bool = True
    id_prefix: str = "chatcmpl-"
    id_for_each_prompt: bool = False
    streams_usage: bool = False
    names_response: bool = False
    added: Mapping[str, Any] | None = None


_SERVED: Final = {
    Route.CHAT: _Served(path=b"/v1/chat/completions", streams_usage=True),
    Route.COMPLETIONS: _Served(
        path=b"/v1/completions", id_prefix="cmpl-", id_for_each_prompt=True, streams_usage=True
    ),
    Route.RESPONSES: _Served(path=b"/v1/responses", names_response=True),
    Route.MESSAGES: _Served(path=b"/v1/messages", priority_in_body=False),
    Route.EMBEDDINGS: _Served(path=b"/v1/embeddings", id_prefix="embd-", id_for_each_prompt=True),
    Route.RERANK: _Served(path=b"/v1/rerank", id_prefix="score-", id_for_each_prompt=True),
    Route.SCORE: _Served(path=b"/v1/score", id_prefix="score-", id_for_each_prompt=True),
    Route.COUNT_TOKENS: _Served(path=b"/v1/messages/count_tokens", salted=False),
    Route.TOKENIZE: _Served(path=b"/tokenize", salted=False),
    # vLLM has no such route; this one returns the tokens of the prompt. The images themselves need not come
    # back.
    Route.INPUT_TOKENS: _Served(path=b"/v1/responses/render", salted=False, added={"mm_payload": "none"}),
}


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
    """A priority is only sent to an engine that schedules by it. vLLM refuses a `max_tokens` above the
    context, which no default is, and cuts one that is more than the prompt leaves of it.
    """
    served = _SERVED[parsed.route.name]
    headers = b"x-request-id: %b\r\n" % request_id.encode()
    if cached_prompt is not None:
        headers += b"x-session-id: %b\r\n" % cached_prompt  # it repeats this in the events of its cache
    body: dict[str, Any] = {
        name: value
        for name, value in parsed.body.items()
        if value is not None and name not in _NOT_THE_ENGINES
    }
    body["model"] = engine_model
    if served.salted:
        # At most 128 characters without `@ / \`.
        assert cache_salt, "an engine's prefix cache is never shared between tenants"
        body["cache_salt"] = cache_salt
        if instance.priority and served.priority_in_body:
            body["priority"] = _PRIORITY[class_]
        elif instance.priority:
            headers += b"x-vllm-priority: %d\r\n" % _PRIORITY[class_]
    if parsed.stream and served.streams_usage:
        body["stream_options"] = _USAGE
    if served.added is not None:
        body |= served.added
    if served.names_response:
        _name_response(body, parsed, request_id)
    if parsed.begins_with:
        body["structured_outputs"] = {"regex": re.escape(parsed.begins_with) + _ANYTHING}
    output_params = parsed.route.output_params
    if parsed.max_output_tokens is None and default_max_tokens is not None and output_params:
        body[output_params[0]] = max(default_max_tokens, body.get("min_tokens", 0))
    return EngineCall(served.path, headers, orjson.dumps(body))


def _name_response(body: dict[str, Any], parsed: ParsedRequest, request_id: str) -> None:
    if parsed.body.get("metadata") is not None:
        body["metadata"] = parsed.body["metadata"]
    body["request_id"] = _response_id(request_id)
    body["store"] = False


def _response_id(request_id: str) -> str:
    """The id of a response object: `resp_…` for `req_…`."""
    return "resp_" + request_id.removeprefix("req_")


def request_ids(parsed: ParsedRequest, request_id: str) -> list[str]:
    """The ids by which the engine knows a request."""
    served = _SERVED[parsed.route.name]
    if served.names_response:
        return [f"{_response_id(request_id)}_0"]
    if served.id_for_each_prompt:
        return [f"{served.id_prefix}{request_id}-{index}" for index in range(parsed.prompts)]
    return [f"{served.id_prefix}{request_id}"]


def abort(parsed: ParsedRequest, request_id: str) -> EngineCall:
    """Aborts a request by all of its ids."""
    body = orjson.dumps({"request_ids": request_ids(parsed, request_id)})
    return EngineCall(_ABORT_PATH, b"x-request-id: %b\r\n" % request_id.encode(), body)


def count(request_id: str) -> EngineCall:
    """Asks for the count of a request; the engine forgets a request that has ended once it has reported
    it.
    """
    body = orjson.dumps({"ids": [request_id], "close": True})
    return EngineCall(_COUNTS_PATH, b"x-request-id: %b\r\n" % request_id.encode(), body)


def read_count(answer: bytes, request_id: str) -> RequestCount | None:
    """Reads the answer of `serving/vllm_middleware/taas_request_counts.py`."""
    try:
        fields: Any = orjson.loads(answer)
        state, prompt, cached, output = fields["requests"][request_id]
        # Without its age, this may be any process of the engine.
        since = time.monotonic() - fields["age_ms"] / 1000 if "age_ms" in fields else math.inf
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
    figures = (prompt, cached, output)
    if (
        type(state) is not str
        or any(type(figure) is not int or figure < 0 for figure in figures)
        or cached > prompt
    ):
        return None
    return RequestCount(
        finished=state in {"finished", "unknown"},
        known=state != "unknown",
        prompt=prompt,
        cached=cached,
        output=output,
        since=since,
    )
