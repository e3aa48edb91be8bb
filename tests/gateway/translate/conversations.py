"""Conversations of either dialect, and what they mean."""

import json
from typing import Any

from hypothesis import strategies as st

from tests.gateway.translate.providers import names, spoken, values

PNG = "iVBORw0KGgo="
IMAGE_URL = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}

# The meaning of a conversation: who said what in which order. Messages of one role in a row are one.
Said = tuple[Any, ...]


def meaning_of_chat(messages: list[dict[str, Any]]) -> list[Said]:
    said: list[Said] = []
    for message in messages:
        role = "system" if message["role"] == "developer" else message["role"]
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        whole = [
            ("image", part["image_url"]["url"]) if part["type"] == "image_url" else ("text", part["text"])
            for part in parts
            if part.get("text") != ""
        ]
        if role == "tool":
            said.append(("result", message["tool_call_id"], whole))
            continue
        said += [(role, *one) for one in whole]
        for call in message.get("tool_calls") or ():
            given = json.loads(call["function"]["arguments"] or "{}")
            said.append(("call", call["id"], call["function"]["name"], given))
    return said


def meaning_of_messages(body: dict[str, Any]) -> list[Said]:
    said: list[Said] = []
    for message in [{"role": "system", "content": body.get("system") or ""}, *body["messages"]]:
        for block in _blocks(message["content"]):
            said.append(_block_meaning(message["role"], block))
    return said


def _blocks(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content)


def _block_meaning(role: str, block: dict[str, Any]) -> Said:
    kind = block["type"]
    if kind == "tool_use":
        return ("call", block["id"], block["name"], block["input"])
    if kind == "tool_result":
        content = [_block_meaning("", one)[1:] for one in _blocks(block.get("content") or "")]
        return ("result", block["tool_use_id"], content)
    if kind == "image":
        source = block["source"]
        return (role, "image", f"data:{source['media_type']};base64,{source['data']}")
    return (role, "text", block["text"])


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Of chat, in the order that OpenAI asks for: each call has its result in the messages after it."""
    text = spoken.map(lambda said: {"type": "text", "text": said})
    content = spoken | st.lists(text, min_size=1, max_size=3)
    seen = spoken | st.lists(text | st.just(IMAGE_URL), min_size=1, max_size=3)
    system = st.builds(dict, role=st.sampled_from(["system", "developer"]), content=content)
    messages = draw(st.lists(system, max_size=2))
    for turn in range(draw(st.integers(1, 3))):
        if turn:
            calls = [
                {
                    "id": f"call_{turn}_{at}",
                    "type": "function",
                    "function": {"name": draw(names), "arguments": draw(_arguments)},
                }
                for at in range(draw(st.integers(0, 3)))
            ]
            answer: dict[str, Any] = {"role": "assistant", "content": draw(content)}
            if calls:
                answer["tool_calls"] = calls
                answer["content"] = draw(st.none() | content)
            messages.append(answer)
            messages += [
                {"role": "tool", "tool_call_id": call["id"], "content": draw(content | st.just(""))}
                for call in calls
            ]
            if calls and draw(st.booleans()):
                continue
        messages += [{"role": "user", "content": draw(seen)} for _ in range(draw(st.integers(1, 2)))]
        messages += draw(st.lists(system, max_size=1)) if turn else []
    return messages


_arguments = st.just("") | st.dictionaries(spoken, values, max_size=3).map(json.dumps)
