"""Answers as a provider gives them in either dialect, whole and streamed, of one description; and how they
are cut into pieces on the way.
"""

import itertools
import json
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
spoken = texts.filter(lambda text: bool(text.strip()))
names = st.text("abcXYZ019_-", min_size=1, max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
figures = st.integers(0, 10**6)
# Both dialects' names of the same end.
ENDS = {"end_turn": "stop", "max_tokens": "length", "refusal": "content_filter"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`calls`: id, name and arguments as JSON; an empty text stands for no arguments."""

    thinking: str = ""
    text: str = ""
    calls: tuple[tuple[str, str, str], ...] = ()
    end: str = "end_turn"
    sequence: str | None = None
    uncached: int = 5
    cached: int = 0
    written: int = 0
    output: int = 2
    thought: int | None = None

    @property
    def stop_reason(self) -> str:
        return "tool_use" if self.calls and self.end == "end_turn" else self.end

    @property
    def finish_reason(self) -> str:
        if self.stop_reason == "stop_sequence":
            return "stop"
        return "tool_calls" if self.stop_reason == "tool_use" else ENDS[self.end]

    def arguments(self) -> list[Any]:
        return [json.loads(arguments or "{}") for _, _, arguments in self.calls]


def _arguments() -> st.SearchStrategy[str]:
    objects = st.dictionaries(texts, values, max_size=3)
    return st.just("") | st.builds(
        lambda given, spaced, raw: json.dumps(
            given, separators=(", ", ": ") if spaced else (",", ":"), ensure_ascii=not raw
        ),
        objects,
        st.booleans(),
        st.booleans(),
    )


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    calls = draw(st.lists(st.tuples(names, names, _arguments()), max_size=4, unique_by=lambda call: call[0]))
    end = draw(st.sampled_from([*ENDS, "stop_sequence"]))
    if calls and end == "stop_sequence":
        end = "end_turn"
    return Answer(
        thinking=draw(texts),
        text=draw(texts),
        calls=tuple(calls),
        end=end,
        sequence=draw(spoken) if end == "stop_sequence" else None,
        uncached=draw(figures),
        cached=draw(figures),
        written=draw(figures),
        output=draw(figures),
        thought=draw(st.none() | figures),
    )


def message(answer: Answer) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if answer.thinking:
        content.append({"type": "thinking", "thinking": answer.thinking, "signature": "c2ln"})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    content += [
        {"type": "tool_use", "id": id_, "name": name, "input": given}
        for (id_, name, _), given in zip(answer.calls, answer.arguments(), strict=True)
    ]
    usage: dict[str, Any] = {
        "input_tokens": answer.uncached, "cache_read_input_tokens": answer.cached,
        "cache_creation_input_tokens": answer.written, "output_tokens": answer.output,
    }  # fmt: skip
    if answer.thought is not None:
        usage["output_tokens_details"] = {"thinking_tokens": answer.thought}
    return {
        "id": "msg_p", "type": "message", "role": "assistant", "model": "theirs", "content": content,
        "stop_reason": answer.stop_reason, "stop_sequence": answer.sequence, "usage": usage,
    }  # fmt: skip


def completion(answer: Answer) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if answer.thinking:
        said["reasoning_content"] = answer.thinking
    if answer.calls:
        said["tool_calls"] = [
            {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id_, name, arguments in answer.calls
        ]
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": answer.finish_reason}
    if answer.sequence is not None:
        choice["stop_reason"] = answer.sequence
    return {
        "id": "chatcmpl-p", "object": "chat.completion", "created": 7, "model": "theirs",
        "choices": [choice], "usage": chat_usage(answer),
    }  # fmt: skip


def chat_usage(answer: Answer) -> dict[str, Any]:
    prompt = answer.uncached + answer.cached + answer.written
    usage: dict[str, Any] = {
        "prompt_tokens": prompt, "completion_tokens": answer.output, "total_tokens": prompt + answer.output,
        "prompt_tokens_details": {"cached_tokens": answer.cached, "cache_write_tokens": answer.written},
    }  # fmt: skip
    if answer.thought is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": answer.thought}
    return usage


def cut(draw: st.DrawFn, whole: Any) -> list[Any]:
    """A text or bytes in pieces, none of them empty."""
    if not len(whole):
        return []
    places = sorted(draw(st.sets(st.integers(1, max(1, len(whole) - 1)), max_size=6)))
    ends = [0, *[place for place in places if place < len(whole)], len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(ends)]


def event(members: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (members["type"].encode(), json.dumps(members).encode())


@st.composite
def message_streams(draw: st.DrawFn, answer: Answer) -> bytes:
    """As Anthropic streams: usage at both ends, pings, deltas of any size."""
    whole = message(replace(answer, calls=()))
    start = whole | {"content": [], "stop_reason": None, "stop_sequence": None}
    start["usage"] = whole["usage"] | {"output_tokens": 1}
    said = [event({"type": "message_start", "message": start})]
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for block in whole["content"]:
        kind = block["type"]
        deltas = [{"type": f"{kind}_delta", kind: piece} for piece in cut(draw, block[kind])]
        if kind == "thinking":
            deltas.append({"type": "signature_delta", "signature": "c2ln"})
        blocks.append((block | {kind: ""} | ({"signature": ""} if kind == "thinking" else {}), deltas))
    for id_, name, arguments in answer.calls:
        block = {"type": "tool_use", "id": id_, "name": name, "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in cut(draw, arguments)]
        if draw(st.booleans()):
            deltas.insert(0, {"type": "input_json_delta", "partial_json": ""})
        blocks.append((block, deltas))
    for index, (block, deltas) in enumerate(blocks):
        said.append(event({"type": "content_block_start", "index": index, "content_block": block}))
        if draw(st.booleans()):
            said.append(event({"type": "ping"}))
        said += [event({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas]
        said.append(event({"type": "content_block_stop", "index": index}))
    ending = {"stop_reason": answer.stop_reason, "stop_sequence": answer.sequence}
    usage = whole["usage"] if draw(st.booleans()) else {"output_tokens": answer.output}
    if answer.thought is not None:
        usage = usage | {"output_tokens_details": {"thinking_tokens": answer.thought}}
    said.append(event({"type": "message_delta", "delta": ending, "usage": usage}))
    return b"".join([*said, event({"type": "message_stop"})])


def chunk(delta: dict[str, Any], **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} | more
    members = {
        "id": "chatcmpl-p", "object": "chat.completion.chunk", "created": 7, "model": "theirs",
        "choices": [choice],
    }  # fmt: skip
    return b"data: %b\n\n" % json.dumps(members).encode()


@st.composite
def chat_streams(draw: st.DrawFn, answer: Answer) -> bytes:
    """As OpenAI streams, but with calls that come interleaved."""
    said = [chunk({"role": "assistant", "content": "", "refusal": None})]
    name = draw(st.sampled_from(["reasoning_content", "reasoning"]))
    said += [chunk({name: piece}) for piece in cut(draw, answer.thinking)]
    said += [chunk({"content": piece}) for piece in cut(draw, answer.text)]
    pending: list[tuple[int, list[dict[str, Any]]]] = []
    for index, (id_, called, arguments) in enumerate(answer.calls):
        pieces = cut(draw, arguments)
        first = pieces.pop(0) if pieces and draw(st.booleans()) else ""
        start = {"id": id_, "type": "function", "function": {"name": called, "arguments": first}}
        pending.append((index, [start, *({"function": {"arguments": piece}} for piece in pieces)]))
    interleaved = draw(st.booleans())
    while any(deltas for _, deltas in pending):
        ready = [(index, deltas) for index, deltas in pending if deltas]
        # A call begins only after those before it have begun, which makes their order.
        if interleaved:
            unbegun = next((index for index, deltas in pending if deltas and "id" in deltas[0]), len(pending))
            ready = [(index, deltas) for index, deltas in ready if index <= unbegun]
            index, deltas = draw(st.sampled_from(ready))
        else:
            index, deltas = ready[0]
        said.append(chunk({"tool_calls": [{"index": index} | deltas.pop(0)]}))
    more = {} if answer.sequence is None else {"stop_reason": answer.sequence}
    said.append(chunk({}, finish_reason=answer.finish_reason, **more))
    last = {
        "id": "chatcmpl-p", "object": "chat.completion.chunk", "created": 7, "model": "theirs",
        "choices": [], "usage": chat_usage(answer),
    }  # fmt: skip
    said.append(b"data: %b\n\n" % json.dumps(last).encode())
    return b"".join([*said, b"data: [DONE]\n\n"])
