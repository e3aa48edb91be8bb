"""The form in which a caller gets an engine's answer: with the model name as requested, the tier that served
it, and without the engine's empty extras.

Pure: it takes what a meter has read and returns the bytes to pass on. Text that a model wrote is never
searched or changed: names and tiers are written where no text can be, or into decoded objects. Engines fill
members of their own with null ("reasoning": null); clients send those back, or fail on them. So only those
null members are kept that the vendors send as null themselves.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Final

import orjson

from gateway.protocol.tier import anthropic_tier
from gateway.request import AnswerForm
from gateway.stream.meter import ProtocolViolation

_TIER: Final = "service_tier"
# The beginning of vLLM's embeddings or scores, up to their numbers.
_POOLED: Final = re.compile(
    rb'\{("id":"[^"\\]{0,256}","object":"[^"\\]{0,64}","created":\d{1,15},)"model":("(?:[^"\\]|\\.){0,'
    rb'512}"),"data":\['
)
_NULL: Final = b'":null'
# Members that OpenAI and Anthropic send as null themselves.
_NO_NULLS: Final[frozenset[str]] = frozenset()
_CHOICE_NULLS: Final = frozenset({"logprobs", "finish_reason"})
_MESSAGE_NULLS: Final = frozenset({"content", "refusal"})
_TOOL_NULLS: Final = frozenset({"description", "parameters", "strict"})
_RESPONSE_NULLS: Final = frozenset(
    {
        "completed_at", "conversation", "error", "incomplete_details", "instructions", "max_output_tokens",
        "max_tool_calls", "metadata", "previous_response_id", "prompt", "prompt_cache_key", "reasoning",
        "safety_identifier", "temperature", "top_logprobs", "top_p", "usage", "user",
    }
)  # fmt: skip
# Members of an item or a part of a response that are null. In JSON a quote inside a string is escaped, so
# this can match no text.
_NULL_MEMBER: Final = re.compile(rb',"\w+":null(?=[,}])')


def choices_written(answer: dict[str, Any], model: str | None, tier: bytes | None) -> bytes:
    """A chunk or a whole answer of chat or completions. `answer` is modified."""
    _drop_nulls(answer, _NO_NULLS)
    for choice in _objects(answer.get("choices")):
        _drop_nulls(choice, _CHOICE_NULLS)
        said = choice.get("message") or choice.get("delta")
        if isinstance(said, dict):
            _drop_nulls(said, _MESSAGE_NULLS)
            if said.get("tool_calls") == []:
                del said["tool_calls"]
    _drop_nulls_of_usage(answer)
    if model is not None:
        answer["model"] = model
    if tier is not None:
        answer[_TIER] = tier.decode()
    return _dumped(answer)


def message_written(
    outermost: dict[str, Any], message: dict[str, Any], model: str | None, tier: bytes | None
) -> bytes:
    """`outermost` as JSON, after model and tier were set in `message`, which is `outermost` itself or part of
    an event. Both are modified.
    """
    if model is not None and message:
        message["model"] = model
    if message:
        message.setdefault("stop_reason", None)
        message.setdefault("stop_sequence", None)
    if tier is not None and isinstance(usage := message.get("usage"), dict):
        usage[_TIER] = anthropic_tier(tier)
    return _dumped(outermost)


def response_written(
    outermost: dict[str, Any], response: dict[str, Any], model: str | None, tier: bytes | None
) -> bytes:
    """`outermost` as JSON, after model and tier were set in `response`, which is `outermost` itself or part
    of an event. Both are modified.
    """
    _drop_nulls(response, _RESPONSE_NULLS)
    for item in _objects(response.get("output")):
        _drop_nulls(item, _NO_NULLS)
        for part in _objects(item.get("content")):
            _drop_nulls(part, _NO_NULLS)
    for tool in _objects(response.get("tools")):
        _drop_nulls(tool, _TOOL_NULLS)
    _drop_nulls_of_usage(response)
    if model is not None and response:
        response["model"] = model
    if tier is not None and response:
        response[_TIER] = tier.decode()
    return _dumped(outermost)


def item_written(text: bytes) -> bytes:
    """The JSON of an event that carries an item of a response or a part of one."""
    return _NULL_MEMBER.sub(b"", text) if text.find(_NULL) >= 0 else text


def answer_written(
    answer: bytes, decoded: dict[str, Any], form: AnswerForm, model: str | None, tier: bytes | None
) -> bytes:
    """A whole answer. `decoded` is the decoded `answer`, and is modified."""
    if model is None and tier is None:
        return answer
    return _WHOLE[form](answer, decoded, model, tier)


def _pooled_written(answer: bytes, decoded: dict[str, Any], model: str | None, tier: bytes | None) -> bytes:
    """Embeddings are many numbers, which are not encoded again: only the text before and after them is. Any
    other form is written like choices."""
    found = _POOLED.match(answer)
    if found is None or _TIER in decoded:
        for result in _objects(decoded.get("results")):
            if isinstance(document := result.get("document"), dict):
                _drop_nulls(document, _NO_NULLS)
        return choices_written(decoded, model, tier)
    numbers_end = answer.rindex(b"]") + 1
    return b'{%b%b"model":%b,"data":[%b%b' % (
        b"" if tier is None else b'"service_tier":"%b",' % tier,
        found[1],
        found[2] if model is None else orjson.dumps(model),
        answer[found.end() : numbers_end],
        _NULL_MEMBER.sub(b"", answer[numbers_end:]),
    )


# How a decoded answer is written, by its form.
_WHOLE: Final[dict[AnswerForm, Callable[[bytes, dict[str, Any], str | None, bytes | None], bytes]]] = {
    AnswerForm.CHAT: lambda _, decoded, model, tier: choices_written(decoded, model, tier),
    AnswerForm.COMPLETION: lambda _, decoded, model, tier: choices_written(decoded, model, tier),
    AnswerForm.MESSAGE: lambda _, decoded, model, tier: message_written(decoded, decoded, model, tier),
    AnswerForm.RESPONSE: lambda _, decoded, model, tier: response_written(decoded, decoded, model, tier),
    AnswerForm.POOLED: _pooled_written,
}


def _drop_nulls(holder: dict[str, Any], kept: frozenset[str]) -> None:
    for name in [*holder]:
        if holder[name] is None and name not in kept:
            del holder[name]


def _drop_nulls_of_usage(holder: dict[str, Any]) -> None:
    """Also in its details; and empty lists of turns if there was only one turn."""
    usage = holder.get("usage")
    if not isinstance(usage, dict):
        return
    _drop_nulls(usage, _NO_NULLS)
    for details in usage.values():
        if isinstance(details, dict):
            for name in [*details]:
                if details[name] is None or details[name] == []:
                    del details[name]


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _dumped(answer: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(answer)
    except orjson.JSONEncodeError:  # nested deeper than it writes: a tool's input may be
        try:
            return json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode()
        except RecursionError as exc:
            raise ProtocolViolation("answer nested too deeply") from exc
