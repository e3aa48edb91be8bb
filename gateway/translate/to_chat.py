"""A messages request as a chat request: the caller speaks Anthropic's dialect, the provider OpenAI's. And how
either translation refuses what the other dialect cannot say.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.errors import UnsupportedParameter

TOOL_NAME_CHARS_MAX = 64

_KNOWN: Final = frozenset({
    "max_tokens", "messages", "model", "output_config", "stop_sequences", "stream", "system", "temperature",
    "thinking", "tool_choice", "tools", "top_p",
})  # fmt: skip
_WITHOUT_EFFECT: Final = {"top_k": 0}
_CARRIED: Final = {
    "model": "model", "max_tokens": "max_completion_tokens", "stop_sequences": "stop", "stream": "stream",
    "temperature": "temperature", "top_p": "top_p",
}  # fmt: skip
_CHOICE: Final = {"auto": "auto", "none": "none", "any": "required"}
# As Google's layer for OpenAI's dialect has them; OpenAI and Anthropic do not compare budgets with efforts.
_EFFORTS: Final = ((24_576, "high"), (8_192, "medium"), (0, "low"))

Blocks = list[dict[str, Any]]


def cannot(param: str, reason: str) -> UnsupportedParameter:
    """The refusal of a parameter. `reason` goes on after "The provider of this model"."""
    return UnsupportedParameter(param, f"The provider of this model {reason}.")


def check_names(body: Mapping[str, Any], known: frozenset[str], without_effect: Mapping[str, Any]) -> None:
    """Refuse every parameter that is not `known`, unless it has the value that is `without_effect`."""
    for name, value in body.items():
        if name not in known and (name not in without_effect or value != without_effect[name]):
            raise cannot(name, "has nothing like it: leave it out")


def chat_request(messages: dict[str, Any]) -> dict[str, Any]:
    """The body for the provider, of a checked one, which is not changed. Raises UnsupportedParameter."""
    check_names(messages, _KNOWN, _WITHOUT_EFFECT)
    body = {new: value for old, new in _CARRIED.items() if (value := messages.get(old, [])) != []}
    _set_thinking(messages, body)
    _set_tools(messages, body)
    body["messages"] = _messages(messages)
    return body


def _set_thinking(messages: dict[str, Any], body: dict[str, Any]) -> None:
    """`reasoning_effort`, and the form of the answer."""
    thinking, config = messages.get("thinking") or {}, messages.get("output_config") or {}
    if effort := config.get("effort"):
        body["reasoning_effort"] = effort
    elif thinking.get("type") == "disabled":
        body["reasoning_effort"] = "none"
    elif (budget := thinking.get("budget_tokens")) is not None:
        body["reasoning_effort"] = next(name for least, name in _EFFORTS if budget >= least)
    if form := config.get("format"):
        schema = {"name": "answer", "schema": form["schema"], "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}


def _set_tools(messages: dict[str, Any], body: dict[str, Any]) -> None:
    if not (tools := messages.get("tools")):
        return
    body["tools"] = [_tool(index, tool) for index, tool in enumerate(tools)]
    choice = messages.get("tool_choice") or {"type": "auto"}
    if choice["type"] == "tool":
        body["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    elif choice["type"] != "auto":
        body["tool_choice"] = _CHOICE[choice["type"]]
    if choice.get("disable_parallel_tool_use"):
        body["parallel_tool_calls"] = False


def _tool(index: int, tool: dict[str, Any]) -> dict[str, Any]:
    if len(tool["name"]) > TOOL_NAME_CHARS_MAX or "." in tool["name"]:
        raise cannot(f"tools[{index}].name", f"takes {TOOL_NAME_CHARS_MAX} letters, digits, '_' and '-'")
    kept = {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {"name": tool["name"], "parameters": tool["input_schema"]} | kept}


def _messages(messages: dict[str, Any]) -> list[dict[str, Any]]:
    given = messages["messages"]
    if given[-1]["role"] == "assistant":
        raise cannot(f"messages[{len(given) - 1}].role", "does not continue an answer: end with the user's")
    system = messages.get("system")
    written: list[dict[str, Any]] = [{"role": "system", "content": _content(system)}] if system else []
    for message in given:
        role, content = message["role"], message["content"]
        if isinstance(content, str) or role == "system":
            written.append({"role": role, "content": _content(content)})
        elif role == "assistant":
            written.append(_assistant(content))
        else:
            written += _user(content)
    return written


def _content(content: str | Blocks) -> str | Blocks:
    """A string, or parts of text and images. One text alone is a string, which every provider takes."""
    if isinstance(content, str):
        return content
    if len(content) == 1 and content[0]["type"] == "text":
        return str(content[0]["text"])
    return [_part(block) for block in content]


def _part(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] == "text":
        return {"type": "text", "text": block["text"]}
    source = block["source"]
    return {"type": "image_url", "image_url": {"url": f"data:{source['media_type']};base64,{source['data']}"}}


def _assistant(blocks: Blocks) -> dict[str, Any]:
    texts = [block for block in blocks if block["type"] == "text"]
    calls = [_call(block) for block in blocks if block["type"] == "tool_use"]
    said = _content(texts) if texts else None if calls else ""
    return {"role": "assistant", "content": said} | ({"tool_calls": calls} if calls else {})


def _call(block: dict[str, Any]) -> dict[str, Any]:
    function = {"name": block["name"], "arguments": orjson.dumps(block["input"]).decode()}
    return {"id": block["id"], "type": "function", "function": function}


def _user(blocks: Blocks) -> list[dict[str, Any]]:
    """The results of tools come first, because they belong to the calls in the message before."""
    results: list[dict[str, Any]] = []
    rest: Blocks = []
    for block in blocks:
        if block["type"] == "tool_result":
            texts, images = _result(block)
            content = _content(texts) if texts else ""
            results.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": content})
            rest += images
    rest += [block for block in blocks if block["type"] != "tool_result"]
    return [*results, {"role": "user", "content": _content(rest)}] if rest else results


def _result(result: dict[str, Any]) -> tuple[Blocks, Blocks]:
    """The texts of a result, and its images with their heading."""
    content = result.get("content") or []
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [{"type": "text", "text": "The tool call failed."}] if result.get("is_error") else []
    texts += [block for block in blocks if block["type"] == "text"]
    if images := [block for block in blocks if block["type"] == "image"]:
        heading = f"Images in the result of the tool call {result['tool_use_id']}:"
        images.insert(0, {"type": "text", "text": heading})
    return texts, images
