"""Schemas and regular expressions: what would make an engine's grammar compiler work for too long never
gets there.
"""

import time
from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.regex import REGEX_CHARS_MAX, check_regex
from gateway.protocol.schema import SCHEMA_BYTES_MAX, SCHEMA_DEPTH_MAX, check_schema
from gateway.request import Route
from tests.gateway.protocol.bodies import parse, refusal


def doubling(levels: int) -> dict[str, Any]:
    """A small schema that is 2^levels nodes with its references written out."""
    defs: dict[str, Any] = {f"a{levels}": {"type": "string"}}
    for level in range(levels):
        defs[f"a{level}"] = {"properties": {side: {"$ref": f"#/$defs/a{level + 1}"} for side in "xy"}}
    return {"$defs": defs, "$ref": "#/$defs/a0"}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


BAD_SCHEMAS: dict[str, dict[str, Any]] = {
    "1 MB": {"description": "x" * 1_000_000},
    "one byte too large": {"description": "x" * (SCHEMA_BYTES_MAX - 16)},
    "deep": deep(SCHEMA_DEPTH_MAX),
    "recursive to the root": {"properties": {"next": {"$ref": "#"}}},
    "recursive definition": {
        "$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}},
        "$ref": "#/$defs/n",
    },
    "recursive by two": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "recursive in its own branch": {"properties": {"a": {"items": {"$ref": "#/properties/a"}}}},
    "recursive under a property called default": {"properties": {"default": {"$ref": "#"}}},
    "recursive under a property called $defs": {"properties": {"$defs": {"$ref": "#"}}},
    "exponential": doubling(20),
    "remote": {"$ref": "http://169.254.169.254/schema"},
    "relative": {"$ref": "other.json"},
    "anchor": {"$ref": "#name"},
    "dangling": {"$ref": "#/$defs/none"},
    "reference into data": {"default": {"pattern": "(a+)+"}, "$ref": "#/default"},
    "dynamic": {"$dynamicRef": "#x"},
    "10^9 items": {"type": "array", "minItems": 10**9},
    "negative length": {"maxLength": -1},
    "10^4 values": {"enum": list(range(10_000))},
    "bad pattern": {"pattern": "(a"},
    "hostile pattern": {"properties": {"pattern": {"pattern": "(a+)+$"}}},
    "pattern that is no string": {"pattern": 5},
    "too much of patterns": {"properties": {f"p{i}": {"pattern": "a|" * 450} for i in range(10)}},
    "hostile pattern of names": {"patternProperties": {"(a*)*": {}}},
}
GOOD_SCHEMAS: dict[str, dict[str, Any]] = {
    "properties with words of schemas as names": {"properties": {"pattern": {"type": "string"},
    "$ref": {"type": "string"}, "enum": {"type": "string"}}},
    "references": doubling(8),
    "references in data": {"enum": [{"$ref": "#"}], "const": {"pattern": "(a+)+"}},
    "unused recursion": {"$defs": {"n": {"items": {"$ref": "#/$defs/n"}}}, "type": "string"},
    "depth at its cap": deep(SCHEMA_DEPTH_MAX - 1),
    "size at its cap": {"description": "x" * (SCHEMA_BYTES_MAX - 18)},
    "pattern": {"properties": {"date": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}(T.*)?$",
    "maxLength": 64}}},
}  # fmt: skip


@pytest.mark.parametrize("schema", BAD_SCHEMAS.values(), ids=BAD_SCHEMAS)
def test_fault_12_a_schema_past_the_caps_is_refused_on_every_way_in(schema: dict[str, Any]) -> None:
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert refusal(Route.CHAT, response_format=named).code in {"invalid_schema", "invalid_regex"}
    assert refusal(Route.CHAT, structured_outputs={"json": schema}).param == "structured_outputs.json"
    refusal(Route.COMPLETIONS, response_format=named)
    refusal(
        Route.CHAT,
        tools=[{"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}],
    )
    refusal(Route.RESPONSES, text={"format": {"type": "json_schema", "name": "x", "schema": schema}})
    refusal(Route.RESPONSES, tools=[{"type": "function", "name": "f", "parameters": schema, "strict": True}])
    refusal(Route.MESSAGES, tools=[{"name": "f", "input_schema": schema, "strict": True}])
    refusal(Route.MESSAGES, output_config={"format": {"type": "json_schema", "schema": schema}})


@pytest.mark.parametrize("schema", GOOD_SCHEMAS.values(), ids=GOOD_SCHEMAS)
def test_honest_schemas_pass(schema: dict[str, Any]) -> None:
    check_schema("s", schema)


def test_fault_12_refusing_a_schema_takes_no_time_itself() -> None:
    references = {
        "$defs": {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{j}"} for j in range(i)]} for i in range(60)},
        "$ref": "#/$defs/a59",
    }
    started_s = time.process_time()
    for schema in [*BAD_SCHEMAS.values(), references]:
        with pytest.raises(InvalidRequest):
            check_schema("s", schema)
    assert time.process_time() - started_s < 0.5


def test_fault_12_the_patterns_of_all_tools_together_are_capped() -> None:
    schema = {"properties": {f"p{i}": {"pattern": "a|" * 450} for i in range(8)}}
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": schema}} for i in range(100)]
    assert refusal(Route.CHAT, tools=tools, tool_choice="required").param == "tools"
    assert (
        refusal(Route.MESSAGES, tools=[{"name": "f", "input_schema": schema, "strict": True}] * 100).param
        == "tools"
    )
    parse(Route.CHAT, tools=tools[:4], tool_choice="required")
    parse(Route.CHAT, tools=tools)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+", "(a*)*b", "(a+){2}", "((a|b)+c)*", "([a-z]+\\.)+", "((((a+))))+", "a++", "(?:a+)+",
        "(?P<x>a+)*", "a{1000000}", "a{99999}", "(a{100}){100}", "((a{20}){20}){20}", "(a", "a)", "[a", "[",
        "*a", "a**", "|*", "(|*)", "a{2", "a{,3}", "a{3,1}", "\\", "a\\", "(?=a)", "(?!a)", "(?<=a)", "(?i)a",
        "\\1", "\\k<x>", "[]a]", "[](a+)+]", "(" * 40 + "a" + ")" * 40, "a" * (REGEX_CHARS_MAX + 1),
    ],
)  # fmt: skip
def test_fault_12_bad_and_nested_regular_expressions_are_refused(pattern: str) -> None:
    assert refusal(Route.CHAT, structured_outputs={"regex": pattern}).param == "structured_outputs.regex"


@pytest.mark.parametrize(
    "pattern",
    [
        "", "a", "^[a-z]+$", "[^\\]]*", "(a|b)*", "(ab)+", "(a?)*", "(\\.\\d+)?", "(a+){1}", "a+?", "a{2,}",
        "\\(\\)\\+", "[(+*]+", "(?:x|yz){1,3}", "^(\\([0-9]{3}\\))?[0-9]{3}-[0-9]{4}$", "(a{2,3})+", "a|",
        "\\{2\\}",
    ],
)  # fmt: skip
def test_honest_regular_expressions_pass(pattern: str) -> None:
    check_regex("p", pattern)


@pytest.mark.parametrize(
    "constraint",
    [
        {}, {"regex": "a", "choice": ["b"]}, {"grammar": "root ::= 'a'"}, {"structural_tag": "{}"},
        {"choice": []}, {"choice": [""]}, {"choice": ["x"] * 257}, {"choice": "x"}, {"json": "{}"},
        {"json_object": False}, {"regex": 5}, {"whitespace_pattern": "a", "json": {}}, [], "x",
    ],
)  # fmt: skip
def test_structured_outputs_are_one_bounded_constraint(constraint: Any) -> None:
    assert (refusal(Route.CHAT, structured_outputs=constraint).param or "").startswith("structured_outputs")


@pytest.mark.parametrize(
    "answer_format",
    [
        {"type": "grammar"},
        {"type": "json_schema"},
        {"type": "structural_tag", "format": {}},
        {},
        {"type": ["text"]},
        "json",
    ],
)
def test_response_formats_are_known(answer_format: Any) -> None:
    assert (refusal(Route.CHAT, response_format=answer_format).param or "").startswith("response_format")


def test_each_kind_of_constraint_is_taken() -> None:
    for constraint in (
        {"json": {}},
        {"regex": "a"},
        {"choice": ["a"]},
        {"json_object": True, "disable_any_whitespace": True},
    ):
        parse(Route.CHAT, structured_outputs=constraint)
    parse(Route.CHAT, response_format={"type": "json_object"})
