"""Caps on JSON schemas that an engine would compile into a grammar: size, depth, references, repetition,
patterns. It does not judge what a schema means.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from gateway.errors import InvalidRequest
from gateway.protocol.fields import mapping
from gateway.protocol.regex import check_regex

SCHEMA_BYTES_MAX = 64 * 1024
SCHEMA_DEPTH_MAX = 32
# Objects and arrays after every $ref is expanded: small schemas can name an exponential number of them.
SCHEMA_EXPANDED_MAX = 20_000
ENUM_VALUES_MAX = 1000
# A grammar writes out minItems, maxLength and the like.
REPEAT_MAX = 10_000
PATTERN_CHARS_MAX = 8192

_REPEATS = frozenset(
    {
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "minProperties",
        "maxProperties",
        "minContains",
        "maxContains",
    }
)
_OTHER_REFERENCES = frozenset({"$dynamicRef", "$recursiveRef"})
# Their values are the caller's data, in which "$ref" is only a word.
_DATA = frozenset({"const", "default", "enum", "example", "examples"})
_DEFINITIONS = frozenset({"$defs", "definitions"})
_NAMED = _DEFINITIONS | {"properties", "patternProperties", "dependentSchemas"}
_INDEX = re.compile(r"0|[1-9][0-9]{0,4}")


def check_schema(param: str, schema: Any) -> int:
    """Returns how many characters its patterns have. Raises InvalidRequest, with code `invalid_schema` if
    nothing more precise is known.
    """
    mapping(param, schema)
    if len(orjson.dumps(schema)) > SCHEMA_BYTES_MAX:
        raise _invalid(param, f"larger than {SCHEMA_BYTES_MAX} bytes")
    references = pattern_chars = 0
    for keyword, value in _keywords(param, schema, 1):
        references += keyword == "$ref"
        _check_keyword(param, keyword, value)
        for pattern in _patterns(keyword, value):
            pattern_chars += len(pattern)
            if pattern_chars > PATTERN_CHARS_MAX:
                raise _invalid(param, f"more than {PATTERN_CHARS_MAX} characters of patterns")
            check_regex(param, pattern)
    if references:
        _expanded(param, schema, "#", [], {})
    return pattern_chars


def _patterns(keyword: str, value: Any) -> Iterable[str]:
    if keyword == "pattern":
        return (value,)
    return value if keyword == "patternProperties" and type(value) is dict else ()


def _keywords(param: str, node: Any, depth: int, *, names: bool = False) -> Iterator[tuple[str, Any]]:
    """Every keyword with its value, in the whole schema; names of properties are not keywords."""
    if depth > SCHEMA_DEPTH_MAX:
        raise _invalid(param, f"nested more than {SCHEMA_DEPTH_MAX} deep")
    if type(node) is list:
        for member in node:
            if type(member) in {dict, list}:
                yield from _keywords(param, member, depth + 1)
        return
    for key, value in node.items():
        if not names:
            yield key, value
            if key in _DATA:
                continue
        if type(value) in {dict, list}:
            yield from _keywords(param, value, depth + 1, names=not names and key in _NAMED)


def _check_keyword(param: str, keyword: str, value: Any) -> None:
    if keyword == "pattern":
        if type(value) is not str:
            raise _invalid(param, "pattern must be a string")
    elif keyword in _REPEATS:
        if type(value) not in {int, float} or not 0 <= value <= REPEAT_MAX:
            raise _invalid(param, f"{keyword} must be between 0 and {REPEAT_MAX}")
    elif keyword == "enum":
        if type(value) is not list or len(value) > ENUM_VALUES_MAX:
            raise _invalid(param, f"enum must be an array of at most {ENUM_VALUES_MAX} values")
    elif keyword == "$ref":
        if type(value) is not str or not (value == "#" or value.startswith("#/")):
            raise _invalid(param, "$ref must point into the schema itself")
    elif keyword in _OTHER_REFERENCES:
        raise _invalid(param, f"{keyword} is not supported")


def _expanded(
    param: str, schema: dict[str, Any], pointer: str, open_pointers: list[str], known: dict[str, int]
) -> int:
    """How many nodes are under `pointer` with all references expanded. A pointer that is met while it is open
    is a recursion.
    """
    if pointer in known:
        return known[pointer]
    if pointer in open_pointers:
        raise _invalid(param, "recursive $ref is not supported")
    if len(open_pointers) > SCHEMA_DEPTH_MAX:
        raise _invalid(param, "$ref is nested too deep")
    open_pointers.append(pointer)
    total = 0
    nodes: list[tuple[Any, bool]] = [(_resolve(param, schema, pointer), False)]
    while nodes:
        node, names = nodes.pop()
        total += 1
        if type(node) is list:
            nodes += [(value, False) for value in node if type(value) in {dict, list}]
            continue
        if not names and type(reference := node.get("$ref")) is str:
            total += _expanded(param, schema, reference, open_pointers, known)
        # Definitions count where they are used; a recursion among unused ones is never compiled.
        nodes += [
            (value, not names and key in _NAMED)
            for key, value in node.items()
            if type(value) in {dict, list} and (names or (key not in _DATA and key not in _DEFINITIONS))
        ]
        if total > SCHEMA_EXPANDED_MAX:
            raise _invalid(param, "too large with its references written out")
    open_pointers.pop()
    known[pointer] = total
    return total


def _resolve(param: str, schema: dict[str, Any], pointer: str) -> Any:
    node: Any = schema
    names = False
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if type(node) is dict and key in node and (names or key not in _DATA):
            names = not names and key in _NAMED
            node = node[key]
        elif type(node) is list and _INDEX.fullmatch(key) and int(key) < len(node):
            node = node[int(key)]
        else:
            raise _invalid(param, "a $ref points nowhere")
    if type(node) not in {dict, list}:
        raise _invalid(param, "a $ref points at something that is not a schema")
    return node


def _invalid(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid schema for '{param}': {reason}.", param, "invalid_schema")
