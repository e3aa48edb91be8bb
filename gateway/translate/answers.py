"""Whole answers, and what they have in common with streams: reasons and usage.

Anthropic's `input_tokens` leave out what its cache was read for and written; OpenAI's `prompt_tokens` count
both. A message needs a usage object; where the provider sent none, it lacks the input, so that a meter finds
it malformed, and not free of charge.
"""

from typing import Any, Final

from msgspec import MsgspecError, Raw
from msgspec.json import Decoder, decode, encode

from gateway.stream.meter import InvalidToolCall, ProtocolViolation
from gateway.translate.provider_shapes import Call, Choice, Completion, Ending, Message, read

_MESSAGE: Final = Decoder(Message)
_COMPLETION: Final = Decoder(Completion)

# `pause_turn` ends an answer that its model would continue, like one that was cut.
_FINISH_REASONS: Final = {
    "max_tokens": "length", "model_context_window_exceeded": "length", "pause_turn": "length",
    "refusal": "content_filter", "tool_use": "tool_calls",
}  # fmt: skip
_STOP_REASONS: Final = {
    "content_filter": "refusal", "function_call": "tool_use", "length": "max_tokens",
    "tool_calls": "tool_use",
}  # fmt: skip


def chat_answer(answer: bytes, *, answer_id: str, model: str, created: int) -> bytes:
    """A provider's message as a chat completion. `model` as the caller asked; `created` in seconds since
    1970. Raises ProtocolViolation.
    """
    given = read(_MESSAGE, answer)
    said: dict[str, Any] = {"role": "assistant", "content": None, "refusal": given.explanation}
    for block in given.content:
        if block.type == "text":
            said["content"] = (said["content"] or "") + block.text
        elif block.type == "thinking":
            said["reasoning_content"] = said.get("reasoning_content", "") + block.thinking
        elif block.type == "tool_use":
            function = {"name": block.name, "arguments": bytes(block.input).decode() or "{}"}
            call = {"id": block.id, "type": "function", "function": function}
            said.setdefault("tool_calls", []).append(call)
    choice = {"index": 0, "message": said, "logprobs": None} | finish(given)
    written = {"id": answer_id, "object": "chat.completion", "created": created, "model": model}
    usage = chat_usage(given.usage)
    return encode(written | {"choices": [choice]} | ({} if usage is None else {"usage": usage}))


def message_answer(answer: bytes, *, answer_id: str, model: str) -> bytes:
    """A provider's chat completion as a message. Raises ProtocolViolation, also for a call whose arguments
    are no JSON object. If the answer was cut they may be incomplete; then the input is empty.
    """
    given = read(_COMPLETION, answer)
    if not given.choices:
        raise ProtocolViolation("chat completion without a choice")
    choice = given.choices[0]
    said = choice.message
    content: list[dict[str, Any]] = []
    if thinking := said.reasoning_content or said.reasoning:
        content.append({"type": "thinking", "thinking": thinking, "signature": ""})
    if text := (said.content or "") + (said.refusal or ""):
        content.append({"type": "text", "text": text})
    content += [_tool_use(call, cut=choice.finish_reason == "length") for call in said.tool_calls or ()]
    written: dict[str, Any] = {"id": answer_id, "type": "message", "role": "assistant", "model": model}
    written["content"] = content
    written |= stop(choice, called=bool(said.tool_calls), refused=bool(said.refusal))
    written["usage"] = message_usage(given.usage)
    return encode(written)


def _tool_use(call: Call, *, cut: bool) -> dict[str, Any]:
    arguments = (call.function.arguments or "").strip() or "{}"
    if not is_object(arguments):
        if not (cut and arguments.startswith("{")):
            raise InvalidToolCall("arguments of a call that are no object")
        arguments = "{}"
    return tool_use(call) | {"input": Raw(arguments.encode())}


def tool_use(call: Call) -> dict[str, Any]:
    """The block of a call, as it begins in a stream."""
    if not call.id or not call.function.name:
        raise ProtocolViolation("tool call without an id and a name")
    return {"type": "tool_use", "id": call.id, "name": call.function.name, "input": {}}


def is_object(text: str) -> bool:
    """Whether a text is a complete JSON object."""
    try:
        return text.startswith("{") and isinstance(decode(text), dict)
    except (MsgspecError, RecursionError):
        return False


def finish(ending: Ending) -> dict[str, Any]:
    """The finish of a choice. The stop string has its name of vLLM, because OpenAI does not tell it."""
    if ending.stop_reason is None:
        raise ProtocolViolation("message without a stop reason")
    reason = {"finish_reason": _FINISH_REASONS.get(ending.stop_reason, "stop")}
    return reason if ending.stop_sequence is None else reason | {"stop_reason": ending.stop_sequence}


def stop(choice: Choice, *, called: bool, refused: bool) -> dict[str, Any]:
    """The stop of a message. OpenAI says `stop` after a call that was forced, where Anthropic's callers wait
    for `tool_use`.
    """
    if choice.finish_reason is None:
        raise ProtocolViolation("chat completion without a finish reason")
    reason, sequence = _STOP_REASONS.get(choice.finish_reason, "end_turn"), None
    if reason == "end_turn":
        if called or refused:
            reason = "tool_use" if called else "refusal"
        elif isinstance(choice.stop_reason, str):
            reason, sequence = "stop_sequence", choice.stop_reason
    return {"stop_reason": reason, "stop_sequence": sequence}


def chat_usage(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    """The usage of a message, None if it is not complete."""
    uncached, output = _figure(usage, "input_tokens"), _figure(usage, "output_tokens")
    if uncached is None or output is None:
        return None
    cached = _figure(usage, "cache_read_input_tokens") or 0
    created = _figure(usage, "cache_creation_input_tokens") or 0
    prompt = uncached + cached + created
    thought = _figure(usage, "thinking_tokens", "output_tokens_details")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": created},
    } | ({} if thought is None else {"completion_tokens_details": {"reasoning_tokens": thought}})


def message_usage(usage: dict[str, Any] | None) -> dict[str, Any]:
    """The usage of a chat completion. If more is cached than the prompt has, the input is negative, which a
    meter reports.
    """
    prompt, output = _figure(usage, "prompt_tokens"), _figure(usage, "completion_tokens")
    if prompt is None or output is None:
        return {"output_tokens": 0}
    cached = _figure(usage, "cached_tokens", "prompt_tokens_details") or 0
    created = _figure(usage, "cache_write_tokens", "prompt_tokens_details") or 0
    created = min(created, max(prompt - cached, 0))
    thought = _figure(usage, "reasoning_tokens", "completion_tokens_details")
    return {
        "input_tokens": prompt - cached - created,
        "cache_creation_input_tokens": created,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
    } | ({} if thought is None else {"output_tokens_details": {"thinking_tokens": thought}})


def _figure(usage: dict[str, Any] | None, name: str, details: str | None = None) -> int | None:
    """A figure of usage, or of details in it. None if it is missing or no integer."""
    holder = usage if details is None or usage is None else usage.get(details)
    figure = holder.get(name) if isinstance(holder, dict) else None
    return figure if type(figure) is int else None
