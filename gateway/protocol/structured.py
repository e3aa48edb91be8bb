"""Constraints on the form of an answer, in each way that a route can express them. Everything that becomes a
grammar or an automaton passes the caps here.
"""

from typing import Any

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.protocol.fields import (
    Checker,
    array,
    boolean,
    check_members,
    empty,
    mapping,
    one_of,
    refused,
    string,
    too_long,
    wrong_type,
)
from gateway.protocol.regex import check_regex
from gateway.protocol.schema import check_schema

CHOICE_STRINGS_MAX = 256
CHOICE_CHARS_MAX = 1024
NAME_CHARS_MAX = 128
DESCRIPTION_CHARS_MAX = 8192


def check_json_schema(param: str, value: Any) -> None:
    check_schema(param, value)


def check_structured_outputs(param: str, value: Any) -> None:
    """The engine's own form: exactly one constraint. Grammars are refused, because nothing bounds their
    cost.
    """
    check_members(param, value, _STRUCTURED)
    if sum(value.get(name) is not None for name in ("json", "regex", "choice", "json_object")) != 1:
        raise InvalidRequest(
            f"Invalid '{param}': exactly one of json, regex, choice and json_object is needed.", param
        )


def check_response_format(param: str, value: Any) -> None:
    """Chat's form: the schema is inside `json_schema`."""
    kind = _kind(param, value)
    if kind == "json_schema":
        check_members(param, value, _CHAT_FORMAT, ("json_schema",))
    else:
        check_members(param, value, {"type": string()})


def check_text_format(param: str, value: Any) -> None:
    """The Responses form: the schema is beside the type."""
    kind = _kind(param, value)
    if kind == "json_schema":
        check_members(param, value, {"type": string(), **_NAMED_SCHEMA}, ("name", "schema"))
    else:
        check_members(param, value, {"type": string()})


def check_one_constraint(
    body: dict[str, Any], format_param: str, answer_format: dict[str, Any] | None
) -> None:
    """Two constraints at once are a contradiction, which each engine resolves differently."""
    constrained = answer_format is not None and answer_format.get("type") != "text"
    if constrained and body.get("structured_outputs") is not None:
        raise InvalidRequest(
            f"Invalid 'structured_outputs': not together with {format_param}.", "structured_outputs"
        )


def _kind(param: str, value: Any) -> str:
    kind = mapping(param, value).get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise UnsupportedParameter(f"{param}.type", "Known are text, json_object and json_schema.")
    assert type(kind) is str
    return kind


def _check_regex(param: str, value: Any) -> None:
    if type(value) is not str:
        raise wrong_type(param, "a string")
    check_regex(param, value)


def _check_choice(param: str, value: Any) -> None:
    if not array(param, value, CHOICE_STRINGS_MAX):
        raise empty(param)
    for text in value:
        if type(text) is not str or not text:
            raise wrong_type(param, "an array of strings that are not empty")
        if len(text) > CHOICE_CHARS_MAX:
            raise too_long(param, CHOICE_CHARS_MAX)


def _check_json_object(param: str, value: Any) -> None:
    if value is not True:
        raise UnsupportedParameter(param, "Leave it out instead.")


_STRUCTURED: dict[str, Checker] = {
    "json": check_json_schema,
    "regex": _check_regex,
    "choice": _check_choice,
    "json_object": _check_json_object,
    "grammar": refused("Nothing bounds what a grammar costs: use json, regex or choice."),
    "structural_tag": refused("Nothing bounds what a grammar costs: use json, regex or choice."),
    "whitespace_pattern": refused("Use disable_any_whitespace."),
    "disable_any_whitespace": boolean,
    "disable_additional_properties": boolean,
}
_NAMED_SCHEMA: dict[str, Checker] = {
    "name": string(NAME_CHARS_MAX, may_be_empty=False),
    "description": string(DESCRIPTION_CHARS_MAX),
    "schema": check_json_schema,
    "strict": boolean,
}


def _check_chat_schema(param: str, value: Any) -> None:
    check_members(param, value, _NAMED_SCHEMA, ("name", "schema"))


_CHAT_FORMAT: dict[str, Checker] = {"type": one_of("json_schema"), "json_schema": _check_chat_schema}
