"""A chat request as a messages request: the caller speaks OpenAI's dialect, the provider Anthropic's."""

import re
from typing import Any, Final

import orjson

from gateway.errors import InvalidRequest
from gateway.protocol.media import IMAGE_TYPES
from gateway.protocol.messages import THINKING_TOKENS_MIN
from gateway.translate.answers import is_object
from gateway.translate.to_chat import Blocks, cannot, check_names

_KNOWN: Final = frozenset({
    "add_generation_prompt", "continue_final_message", "max_completion_tokens", "max_tokens", "messages",
    "model", "parallel_tool_calls", "reasoning_effort", "response_format", "stop", "stream", "temperature",
    "thinking_token_budget", "tool_choice", "tools", "top_k", "top_p",
})  # fmt: skip
_CARRIED: Final = ("model", "stream", "temperature", "top_p")
# 0 is also False, and 1 is True.
_WITHOUT_EFFECT: Final[dict[str, Any]] = {
    "add_special_tokens": 0, "frequency_penalty": 0, "ignore_eos": 0, "include_reasoning": 1,
    "include_stop_str_in_output": 0, "logit_bias": {}, "logprobs": 0, "min_p": 0, "min_tokens": 0, "n": 1,
    "presence_penalty": 0, "repetition_penalty": 1, "skip_special_tokens": 1,
    "spaces_between_special_tokens": 1, "stop_token_ids": [], "top_logprobs": 0,
}  # fmt: skip
_SYSTEM: Final = frozenset({"system", "developer"})
_CHOICE: Final = {"auto": "auto", "none": "none", "required": "any"}
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_NOT_IN_AN_ID: Final = re.compile(r"[^A-Za-z0-9_-]")


def messages_request(chat: dict[str, Any], *, default_max_tokens: int) -> dict[str, Any]:
    """The body for the provider. `chat` is a checked body and is not changed. Raises InvalidRequest."""
    check_names(chat, _KNOWN, _WITHOUT_EFFECT)
    body: dict[str, Any] = {name: chat[name] for name in _CARRIED if name in chat}
    body["max_tokens"] = chat.get("max_completion_tokens") or chat.get("max_tokens") or default_max_tokens
    if body.get("temperature", 0) > 1:
        raise cannot("temperature", "takes at most 1")
    if chat.get("top_k", 0) > 0:
        body["top_k"] = chat["top_k"]
    if stop := chat.get("stop"):
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
        if any(map(str.isspace, body["stop_sequences"])):
            raise cannot("stop", "takes no string of spaces alone")
    _set_thinking(chat, body)
    _set_tools(chat, body)
    _set_messages(chat, body)
    return body


def _set_thinking(chat: dict[str, Any], body: dict[str, Any]) -> None:
    """`thinking`, and `output_config` with the effort and the form of the answer."""
    config: dict[str, Any] = {}
    effort, budget = chat.get("reasoning_effort"), chat.get("thinking_token_budget")
    if effort not in (None, "none"):
        body["thinking"] = {"type": "adaptive"}
        config["effort"] = "low" if effort == "minimal" else effort
    if budget:
        if not THINKING_TOKENS_MIN <= budget < body["max_tokens"]:
            raise cannot("thinking_token_budget", f"takes 0, or {THINKING_TOKENS_MIN} to below max_tokens")
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    elif budget == 0 or effort == "none":
        body["thinking"] = {"type": "disabled"}
    if (form := chat.get("response_format")) and form["type"] != "text":
        if form["type"] != "json_schema":
            raise cannot("response_format.type", "takes json_schema only")
        schema = form["json_schema"]["schema"]
        if purpose := form["json_schema"].get("description"):
            schema = schema | {"description": f"{purpose}\n{schema.get('description', '')}".strip()}
        config["format"] = {"type": "json_schema", "schema": schema}
    if config:
        body["output_config"] = config


def _set_tools(chat: dict[str, Any], body: dict[str, Any]) -> None:
    if not (tools := chat.get("tools")):
        return
    body["tools"] = [_tool(index, tool["function"]) | _mark(tool) for index, tool in enumerate(tools)]
    chosen = chat.get("tool_choice") or "auto"
    if isinstance(chosen, str):
        choice: dict[str, Any] = {"type": _CHOICE[chosen]}
    else:
        choice = {"type": "tool", "name": chosen["function"]["name"]}
    if chat.get("parallel_tool_calls") is False and chosen != "none":
        choice["disable_parallel_tool_use"] = True
    if choice != {"type": "auto"}:
        body["tool_choice"] = choice


def _tool(index: int, function: dict[str, Any]) -> dict[str, Any]:
    if _TOOL_NAME.fullmatch(function["name"]) is None:
        raise cannot(f"tools[{index}].function.name", "takes letters, digits, '_' and '-' only")
    schema = {"type": "object", "properties": {}} | (function.get("parameters") or {})
    kept = {name: function[name] for name in ("description", "strict") if function.get(name) is not None}
    return {"name": function["name"], "input_schema": schema} | kept | _mark(function)


def _set_messages(chat: dict[str, Any], body: dict[str, Any]) -> None:
    messages = chat["messages"]
    continued = bool(chat.get("continue_final_message"))
    if continued != (messages[-1]["role"] == "assistant"):
        raise cannot("continue_final_message", "always continues a last message of the assistant, no other")
    if chat.get("add_generation_prompt") is False and not continued:
        raise cannot("add_generation_prompt", "always adds it")
    first = next((at for at, message in enumerate(messages) if message["role"] not in _SYSTEM), len(messages))
    if system := [block for at in range(first) for block in _content(at, messages[at])]:
        body["system"] = system[0]["text"] if len(system) == 1 and len(system[0]) == 2 else system
    body["messages"] = _turns(messages, first)
    if not body["messages"]:
        raise InvalidRequest("Invalid 'messages': one of the user with content is needed.", "messages")


def _turns(messages: list[dict[str, Any]], first: int) -> Blocks:
    """The messages from `first` on, without those that say nothing."""
    turns: Blocks = []
    system: Blocks = []  # of the user's turn
    results: Blocks | None = None  # the content of that turn, while it is results of tools
    for at in range(first, len(messages)):
        role, content = messages[at]["role"], _content(at, messages[at])
        if role in _SYSTEM:
            system += content
        elif role == "assistant":
            turns += ({"role": "system", "content": system}, {"role": role, "content": content})
            system, results = [], None
        elif results is not None:
            results += content
            results = results if role == "tool" else None
        else:
            turns.append({"role": "user", "content": content})
            results = content if role == "tool" else None
    turns.append({"role": "system", "content": system})
    return [turn for turn in turns if turn["content"]]


def _content(at: int, message: dict[str, Any]) -> Blocks:
    """The content of any message."""
    where, role = f"messages[{at}]", message["role"]
    blocks = _blocks(where, message.get("content"))
    if role == "tool":
        result = {"type": "tool_result", "tool_use_id": _call_id(message["tool_call_id"])}
        return [result | {"content": blocks} if blocks else result]
    if message.get("name"):
        raise cannot(f"{where}.name", "knows no names: put it into the content")
    if role == "assistant":
        blocks += _blocks(where, message.get("refusal"))
        for index, call in enumerate(message.get("tool_calls") or ()):
            blocks.append(_tool_use(f"{where}.tool_calls[{index}]", call))
    return blocks


def _blocks(where: str, content: str | Blocks | None) -> Blocks:
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content}] if content and not content.isspace() else []
    blocks: Blocks = []
    for index, part in enumerate(content):
        kind = part["type"]
        if kind in ("text", "refusal"):
            blocks += [block | _mark(part) for block in _blocks(where, part[kind])]
        elif kind == "image_url":
            image = _image(f"{where}.content[{index}].image_url.url", part["image_url"]["url"])
            blocks.append(image | _mark(part))
        else:
            raise cannot(f"{where}.content[{index}].type", "takes text and images only")
    return blocks


def _mark(part: dict[str, Any]) -> dict[str, Any]:
    return {"cache_control": part["cache_control"]} if "cache_control" in part else {}


def _image(where: str, url: str) -> dict[str, Any]:
    """From a data URL, which is `data:TYPE;base64,DATA`."""
    head, _, data = url.partition(",")
    media_type = head[len("data:") :].partition(";")[0].lower()
    if media_type not in IMAGE_TYPES:
        raise cannot(where, "takes images only")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _tool_use(where: str, call: dict[str, Any]) -> dict[str, Any]:
    name, arguments = call["function"]["name"], call["function"]["arguments"].strip() or "{}"
    if not is_object(arguments):
        raise cannot(f"{where}.function.arguments", "takes a JSON object only")
    given = orjson.Fragment(arguments)  # as it stands, so that no number in it changes
    return {"type": "tool_use", "id": _call_id(call["id"]), "name": name, "input": given}


def _call_id(given: str) -> str:
    """The id of a call in the characters that Anthropic takes. Some models write others, as in `f:0`."""
    return _NOT_IN_AN_ID.sub(lambda found: f"_{ord(found[0]):x}_", given)
