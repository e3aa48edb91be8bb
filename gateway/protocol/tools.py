"""Tool definitions and the choice among them, in the three forms that the routes use. Functions only: the
product runs no tool.

A tool that only its own service can run (web search, code, MCP, …) is dropped, unless the request forces it.
Schemas are bounded by their size and by the body's depth. What a grammar's compiler cannot take is refused
only if an engine builds a grammar. vLLM 0.32 does so from the schemas of strict tools, and from all of them
if a call is forced or limited to one (`Parser.adjust_request`, `get_json_schema_from_tools`); with
`tool_choice` `none` it builds nothing.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.protocol.fields import (
    Checker,
    Dropped,
    array,
    boolean,
    cache_mark,
    check_elements,
    check_members,
    hint,
    mapping,
    members,
    missing,
    one_of,
    string,
    wrong_type,
)
from gateway.protocol.schema import check_schema

TOOLS_MAX = 500
TOOLS_BYTES_MAX = 1024 * 1024
PATTERN_CHARS_MAX = 32 * 1024
DESCRIPTION_CHARS_MAX = 32 * 1024
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_GRAMMAR_HINT = (
    "A grammar is built here, because the tool is strict or a call is forced; without that "
    "this schema is taken."
)


def check_tool_name(param: str, value: Any) -> None:
    if type(value) is not str:
        raise wrong_type(param, "a string")
    if _NAME.fullmatch(value) is None:
        raise InvalidRequest(f"Invalid '{param}': 1 to 128 letters, digits, '_', '-' and '.'.", param)


@dataclass(frozen=True, slots=True)
class _Form:
    """How a dialect writes a tool: the types that are functions, its members, and where its function and its
    schema are.
    """

    types: tuple[str | None, ...]
    fields: dict[str, Checker]
    required: tuple[str, ...]
    function: str | None
    schema: str

    def check(self, param: str, value: Any) -> None:
        """The whole list. Tools that cannot run here are taken out of it."""
        check_elements(param, array(param, value, TOOLS_MAX), self._check_tool)
        if not value:
            raise Dropped(named=False)

    def _check_tool(self, param: str, tool: Any) -> None:
        if mapping(param, tool).get("type") not in self.types:
            raise Dropped(named=True)
        check_members(param, tool, self.fields, self.required)
        function = self.function_of(tool)
        if (schema := function.get(self.schema)) is not None:
            _check_is_of_object(f"{self.path(param)}.{self.schema}", schema)

    def function_of(self, tool: dict[str, Any]) -> dict[str, Any]:
        """What holds the name and the schema of a checked tool."""
        return tool if self.function is None else tool[self.function]

    def path(self, param: str) -> str:
        return param if self.function is None else f"{param}.{self.function}"

    def size(self, body: dict[str, Any], *, forced: bool, offered: bool = True) -> int:
        """What the tools of a checked body add to its prompt, in bytes. `forced`: a call must be made, or
        at most one may be.
        """
        tools = body.get("tools")
        if not tools:
            return 0
        if offered:
            self._check_grammars(tools, forced)
        return tools_bytes(body)

    def _check_grammars(self, tools: list[dict[str, Any]], forced: bool) -> None:
        """Check the schemas that become a grammar. Together their patterns may only take so long to read."""
        pattern_chars = 0
        for index, tool in enumerate(tools):
            function = self.function_of(tool)
            schema = function.get(self.schema)
            if schema is None or not (forced or function.get("strict")):
                continue
            where = f"{self.path(f'tools[{index}]')}.{self.schema}"
            try:
                pattern_chars += check_schema(where, schema)
            except InvalidRequest as exc:
                raise InvalidRequest(f"{exc.message} {_GRAMMAR_HINT}", exc.param, exc.code) from None
            if pattern_chars > PATTERN_CHARS_MAX:
                reason = f"more than {PATTERN_CHARS_MAX} characters of patterns in all schemas"
                raise InvalidRequest(f"Invalid 'tools': {reason}.", "tools", "invalid_schema")

    def names(self, body: dict[str, Any]) -> Iterator[str]:
        return (self.function_of(tool)["name"] for tool in body["tools"])


def tools_bytes(body: dict[str, Any]) -> int:
    """The size of a checked body's tools, which is bounded."""
    tools = body.get("tools")
    size_bytes = len(orjson.dumps(tools)) if tools else 0
    if size_bytes > TOOLS_BYTES_MAX:
        raise InvalidRequest(f"Invalid 'tools': larger than {TOOLS_BYTES_MAX} bytes in all.", "tools")
    return size_bytes


def chat_tools_size(body: dict[str, Any]) -> int:
    """Checks the choice among a body's checked tools: `none`, `auto`, `required`, or one function. The
    tools' size in bytes.
    """
    return _openai_size(_CHAT, body, _check_chat_choice)


def responses_tools_size(body: dict[str, Any]) -> int:
    """The same for the form of Responses."""
    return _openai_size(_RESPONSES, body, _check_responses_choice)


def anthropic_tools_size(body: dict[str, Any]) -> int:
    """The same where the choice is an object whose `type` is `auto`, `any`, `none`, or `tool` with the
    name of one of `tools`.
    """
    choice = body.get("tool_choice")
    if choice is None:
        return _ANTHROPIC.size(body, forced=False)
    check_members("tool_choice", choice, _ANTHROPIC_CHOICE, ("type",))
    kind = choice["type"]
    if not body.get("tools"):
        _drop_choice(body, asks_nothing=kind in ("auto", "none"))
        return 0
    if kind == "tool":
        if choice.get("name") is None:
            raise missing("tool_choice.name")
        _check_known("tool_choice.name", choice["name"], _ANTHROPIC.names(body))
    forced = kind in ("any", "tool") or bool(choice.get("disable_parallel_tool_use"))
    return _ANTHROPIC.size(body, forced=forced, offered=kind != "none")


def _openai_size(
    form: _Form, body: dict[str, Any], check_named: Callable[[dict[str, Any], dict[str, Any]], None]
) -> int:
    choice = body.get("tool_choice")
    if not body.get("tools"):
        if choice is not None:
            _drop_choice(body, asks_nothing=choice in ("auto", "none"))
        return 0
    if type(choice) is dict:
        if choice.get("type") != "function":
            raise UnsupportedParameter(
                "tool_choice.type", "Only a function can be chosen; to allow some tools, send only those."
            )
        check_named(body, choice)
    elif choice is not None and type(choice) is not str:
        raise wrong_type("tool_choice", "a string or an object")
    elif choice not in (None, "none", "auto", "required"):
        raise InvalidRequest(
            "Invalid 'tool_choice': must be one of none, auto, required, or name a function.", "tool_choice"
        )
    forced = type(choice) is dict or choice == "required" or body.get("parallel_tool_calls") is False
    return form.size(body, forced=forced, offered=choice != "none")


def _drop_choice(body: dict[str, Any], *, asks_nothing: bool) -> None:
    """Drop a choice without tools, or one whose tools cannot run here."""
    if not asks_nothing:
        raise InvalidRequest(
            "Invalid 'tool_choice': allowed only when tools are given that can be called here, which are "
            "functions.",
            "tool_choice",
        )
    del body["tool_choice"]


def _check_chat_choice(body: dict[str, Any], choice: dict[str, Any]) -> None:
    check_members("tool_choice", choice, _CHAT_CHOICE, ("type", "function"))
    _check_known("tool_choice.function.name", choice["function"]["name"], _CHAT.names(body))


def _check_responses_choice(body: dict[str, Any], choice: dict[str, Any]) -> None:
    check_members("tool_choice", choice, _RESPONSES_CHOICE, ("type", "name"))
    _check_known("tool_choice.name", choice["name"], _RESPONSES.names(body))


def _check_known(param: str, name: str, names: Iterator[str]) -> None:
    if name not in names:
        raise InvalidRequest(f"Invalid '{param}': none of the functions in tools has this name.", param)


def _check_is_of_object(param: str, schema: dict[str, Any]) -> None:
    """The arguments of a call are an object, so a schema of anything else only leads to calls that cannot be
    read.
    """
    if schema.get("type", "object") != "object":
        raise InvalidRequest(f"Invalid schema for '{param}': type must be object.", param, "invalid_schema")
    if type(schema.get("properties", {})) is not dict:
        raise InvalidRequest(
            f"Invalid schema for '{param}': properties must be an object.", param, "invalid_schema"
        )


def _check_object(param: str, value: Any) -> None:
    mapping(param, value)


_FUNCTION: dict[str, Checker] = {
    "name": check_tool_name,
    "description": string(DESCRIPTION_CHARS_MAX),
    "parameters": _check_object,
    "strict": boolean,
}
# Every tool is in the prompt from the start, and only the model calls it.
_HINTS: dict[str, Checker] = {
    "allowed_callers": hint(["direct"]),
    "cache_control": cache_mark,
    "defer_loading": hint(False),
    "eager_input_streaming": hint(False),
}
_CHAT = _Form(
    types=("function",),
    fields={**_HINTS, "type": one_of("function"), "function": members({**_HINTS, **_FUNCTION}, ("name",))},
    required=("type", "function"),
    function="function",
    schema="parameters",
)
_RESPONSES = _Form(
    types=("function",),
    fields={**_HINTS, "type": one_of("function"), **_FUNCTION},
    required=("type", "name"),
    function=None,
    schema="parameters",
)
_ANTHROPIC = _Form(
    types=("custom", None),
    fields={
        **_HINTS,
        "type": one_of("custom"),
        "name": check_tool_name,
        "description": string(DESCRIPTION_CHARS_MAX),
        "input_schema": _check_object,
        "strict": boolean,
    },
    required=("name", "input_schema"),
    function=None,
    schema="input_schema",
)
check_chat_tools, check_responses_tools, check_anthropic_tools = (
    _CHAT.check,
    _RESPONSES.check,
    _ANTHROPIC.check,
)

_CHAT_CHOICE: dict[str, Checker] = {
    "type": one_of("function"),
    "function": members({"name": check_tool_name}, ("name",)),
}
_RESPONSES_CHOICE: dict[str, Checker] = {"type": one_of("function"), "name": check_tool_name}
_ANTHROPIC_CHOICE: dict[str, Checker] = {
    "type": one_of("auto", "any", "tool", "none"),
    "name": check_tool_name,
    "disable_parallel_tool_use": boolean,
}
