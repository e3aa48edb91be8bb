"""How a stream that gave way goes on as another request: from its own text so far, so that its caller sees a pause and one stream. Pure.

Only what a text can carry goes on: one sample of plain text on chat or completions. Tool calls, log probabilities and constrained output have state
inside the engine that a text does not have. vLLM continues a final assistant message with `continue_final_message`.
"""

from dataclasses import replace
from typing import Any, Final

import orjson

from gateway.request import ParsedRequest, Route

# Parameters whose state a text does not carry.
_STATEFUL: Final = frozenset(
    {
        "allowed_token_ids", "echo", "functions", "guided_choice", "guided_json", "guided_regex", "logprobs", "prompt_logprobs",
        "response_format", "structured_outputs", "suffix", "tools", "top_logprobs",
    }
)  # fmt: skip
_OUTPUT_PARAMS: Final = ("max_tokens", "max_completion_tokens")
_DATA: Final = b"data: "


def can_go_on(parsed: ParsedRequest) -> bool:
    """Whether this request could be stopped in mid-stream and go on elsewhere."""
    if not parsed.stream or parsed.samples != 1 or parsed.wants_continuous_usage or parsed.max_output_tokens is None:
        return False
    body = parsed.body
    if any(body.get(name) not in (None, False, []) for name in _STATEFUL):
        return False
    if parsed.route is Route.CHAT:
        last = body["messages"][-1]
        goes_on_already = body.get("continue_final_message") is True and isinstance(last.get("content"), str)
        return bool(last["role"] != "assistant") or goes_on_already
    return parsed.route is Route.COMPLETIONS and isinstance(body["prompt"], str)


def text_of(route: Route, passed: list[bytes]) -> str:
    """The text of the events that a caller has been given. Reasoning and calls, which a text does not carry, raise ValueError."""
    pieces = []
    for event in b"".join(passed).split(b"\n\n"):
        if not event.startswith(b"data: {"):
            continue
        for choice in orjson.loads(event[len(_DATA) :])["choices"]:
            said = choice if route is Route.COMPLETIONS else choice["delta"]
            if any(said.get(name) for name in ("reasoning", "reasoning_content", "tool_calls")):
                raise ValueError("more than text")
            pieces.append(said.get("text" if route is Route.COMPLETIONS else "content") or "")
    return "".join(pieces)


def going_on(parsed: ParsedRequest, text: str, output_tokens: int) -> ParsedRequest:
    """The same request from where its text has come to. Raises ValueError when there is nothing left to say."""
    assert parsed.max_output_tokens is not None
    left = parsed.max_output_tokens - output_tokens
    if left < 1:
        raise ValueError("no tokens left")
    if not text:
        return parsed
    body: dict[str, Any] = dict(parsed.body)
    for name in _OUTPUT_PARAMS:
        if body.get(name) is not None:
            body[name] = left
    if body.get("min_tokens"):
        body["min_tokens"] = max(0, body["min_tokens"] - output_tokens)
    if parsed.route is Route.CHAT:
        before, last = body["messages"][:-1], body["messages"][-1]
        if last["role"] == "assistant":
            body["messages"] = [*before, last | {"content": last["content"] + text}]
        else:
            body["messages"] = [*before, last, {"role": "assistant", "content": text}]
        body["continue_final_message"], body["add_generation_prompt"] = True, False
    else:
        body["prompt"] += text
    return replace(
        parsed,
        body=body,
        max_output_tokens=left,
        input_tokens_estimate=parsed.input_tokens_estimate + output_tokens,
    )


class Splice:
    """Makes the chunks of a later part look like those of the first: its id, no second opening, usage of the whole."""

    __slots__ = ("_cached", "_first_id", "_opened", "_own_id", "_prompt", "output")

    def __init__(self, own_id: str, first_id: str, *, opened: bool, prompt: int, cached: int, output: int) -> None:
        self._own_id, self._first_id = own_id.encode(), first_id.encode()
        self._opened = opened
        self._prompt, self._cached, self.output = prompt, cached, output

    def told(self, passed: bytes) -> bytes:
        """Whole events as the caller is to have them."""
        events = [self._told(event) for event in passed.split(b"\n\n")[:-1]]
        kept = [event for event in events if event is not None]
        return b"".join([event + b"\n\n" for event in kept])

    def _told(self, event: bytes) -> bytes | None:
        if not event.startswith(b"data: {"):
            return event
        # The first occurrence is the chunk's own id: it stands before anything that was generated.
        event = event.replace(self._own_id, self._first_id, 1)
        if self._opened and b'"role":"assistant"' in event and b'"content":""' in event:
            return None
        if b'"choices":[]' not in event:
            return event
        chunk = orjson.loads(event[len(_DATA) :])
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            usage["prompt_tokens"] = self._prompt
            usage["completion_tokens"] += self.output
            usage["total_tokens"] = self._prompt + usage["completion_tokens"]
            if isinstance(usage.get("prompt_tokens_details"), dict):
                usage["prompt_tokens_details"]["cached_tokens"] = self._cached
        return _DATA + orjson.dumps(chunk)
