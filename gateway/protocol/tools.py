"""Tool definitions and the choice among them, in the three forms that the routes use. Only functions: nothing is ever run here."""

import re
from typing import Any

import orjson

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.protocol.fields import (
    Checker,
    array,
    boolean,
    check_members,
    empty,
    mapping,
    members,
    missing,
    one_of,
    only,
    string,
    wrong_type,
)
from gateway.protocol.schema import check_schema

TOOLS_MAX = 128
PATTERN_CHARS_MAX = 32 * 1024
DESCRIPTION_CHARS_MAX = 32 * 1024
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


def check_tool_name(param: str, value: Any) -> None:
    if type(value) is not str:
        raise wrong_type(param, "a string")
    if _NAME.fullmatch(value) is None:
        raise InvalidRequest(f"Invalid '{param}': 1 to 128 letters, digits, '_', '-' and '.'.", param)


def tools_bytes(body: dict[str, Any]) -> int:
    """What the tools of a checked body add to its prompt."""
    tools = body.get("tools")
    return len(orjson.dumps(tools)) if tools else 0


def check_chat_tools(param: str, value: Any) -> None:
    if not array(param, value, TOOLS_MAX):
        raise empty(param)
    budget = _PatternBudget(param)
    for index, tool in enumerate(value):
        where = f"{param}[{index}]"
        _check_function(where, tool, _CHAT_TOOL, ("type", "function"))
        budget.spend(f"{where}.function.parameters", tool["function"].get("parameters"))


def check_chat_choice(body: dict[str, Any]) -> None:
    """`none`, `auto`, `required`, or one function of `tools`."""
    choice = _choice(body)
    if type(choice) is dict:
        check_members("tool_choice", choice, _CHAT_CHOICE, ("type", "function"))
        names = {tool["function"]["name"] for tool in body["tools"]}
        _check_known("tool_choice.function.name", choice["function"]["name"], names)


def check_responses_tools(param: str, value: Any) -> None:
    budget = _PatternBudget(param)
    for index, tool in enumerate(array(param, value, TOOLS_MAX)):
        _check_function(f"{param}[{index}]", tool, _RESPONSES_TOOL, ("type", "name"))
        budget.spend(f"{param}[{index}].parameters", tool.get("parameters"))


def check_responses_choice(body: dict[str, Any]) -> None:
    """As chat's; beside a list of tools that is empty, `auto` and `none` say nothing, and agents write them there."""
    if body.get("tools") == [] and body.get("tool_choice") in ("auto", "none"):
        return
    choice = _choice(body)
    if type(choice) is dict:
        check_members("tool_choice", choice, _RESPONSES_CHOICE, ("type", "name"))
        _check_known("tool_choice.name", choice["name"], {tool["name"] for tool in body["tools"]})


def check_anthropic_tools(param: str, value: Any) -> None:
    budget = _PatternBudget(param)
    for index, tool in enumerate(array(param, value, TOOLS_MAX)):
        _check_function(f"{param}[{index}]", tool, _ANTHROPIC_TOOL, ("name", "input_schema"))
        budget.spend(f"{param}[{index}].input_schema", tool["input_schema"])


def check_anthropic_choice(body: dict[str, Any]) -> None:
    """An object whose `type` is `auto`, `any`, `none`, or `tool` with the name of one of `tools`."""
    choice = body.get("tool_choice")
    if choice is None:
        return
    check_members("tool_choice", choice, _ANTHROPIC_CHOICE, ("type",))
    if not body.get("tools"):
        raise _without_tools()
    if choice["type"] == "tool":
        if choice.get("name") is None:
            raise missing("tool_choice.name")
        _check_known("tool_choice.name", choice["name"], {tool["name"] for tool in body["tools"]})


class _PatternBudget:
    """Checks the schemas of one request's tools; together their patterns may take only so long to read."""

    def __init__(self, param: str) -> None:
        self._param = param
        self._chars = 0

    def spend(self, param: str, schema: Any) -> None:
        if schema is None:
            return
        self._chars += check_schema(param, schema)
        if self._chars > PATTERN_CHARS_MAX:
            reason = f"more than {PATTERN_CHARS_MAX} characters of patterns in all schemas"
            raise InvalidRequest(f"Invalid '{self._param}': {reason}.", self._param, "invalid_schema")


def _check_object(param: str, value: Any) -> None:
    mapping(param, value)


def _check_function(param: str, tool: Any, fields: dict[str, Checker], required: tuple[str, ...]) -> None:
    """Hosted tools (web search, code, MCP …) have a type of their own; they are refused by it."""
    kind = mapping(param, tool).get("type")
    if kind is not None and kind not in ("function", "custom"):
        raise UnsupportedParameter(f"{param}.type", "Only function tools are supported.")
    check_members(param, tool, fields, required)


def _choice(body: dict[str, Any]) -> Any:
    choice = body.get("tool_choice")
    if choice is None:
        return None
    if not body.get("tools"):
        raise _without_tools()
    if type(choice) is str:
        if choice not in ("none", "auto", "required"):
            raise InvalidRequest(
                "Invalid 'tool_choice': must be one of none, auto, required, or name a function.", "tool_choice"
            )
    elif type(choice) is not dict:
        raise wrong_type("tool_choice", "a string or an object")
    elif choice.get("type") != "function":
        raise UnsupportedParameter("tool_choice.type", "Only function tools are supported.")
    return choice


def _without_tools() -> InvalidRequest:
    return InvalidRequest("Invalid 'tool_choice': allowed only when tools are given.", "tool_choice")


def _check_known(param: str, name: str, names: set[str]) -> None:
    if name not in names:
        raise InvalidRequest(f"Invalid '{param}': none of the tools has this name.", param)


CACHE_CONTROL = members({"type": one_of("ephemeral"), "ttl": one_of("5m", "1h")}, ("type",))
_FUNCTION: dict[str, Checker] = {
    "name": check_tool_name,
    "description": string(DESCRIPTION_CHARS_MAX),
    "parameters": _check_object,
    "strict": boolean,
}
_CHAT_TOOL: dict[str, Checker] = {"type": one_of("function"), "function": members(_FUNCTION, ("name",))}
_CHAT_CHOICE: dict[str, Checker] = {
    "type": one_of("function"),
    "function": members({"name": check_tool_name}, ("name",)),
}
_RESPONSES_TOOL: dict[str, Checker] = {"type": one_of("function"), **_FUNCTION}
_RESPONSES_CHOICE: dict[str, Checker] = {"type": one_of("function"), "name": check_tool_name}
_ANTHROPIC_TOOL: dict[str, Checker] = {
    "type": one_of("custom"),
    "name": check_tool_name,
    "description": string(DESCRIPTION_CHARS_MAX),
    "input_schema": _check_object,
    "strict": boolean,
    "cache_control": CACHE_CONTROL,
    "eager_input_streaming": boolean,
    "allowed_callers": only(["direct"], "Only the model itself calls tools here."),
    "defer_loading": only(False, "Tools are not searched for here."),
}
_ANTHROPIC_CHOICE: dict[str, Checker] = {
    "type": one_of("auto", "any", "tool", "none"),
    "name": check_tool_name,
    "disable_parallel_tool_use": boolean,
}
