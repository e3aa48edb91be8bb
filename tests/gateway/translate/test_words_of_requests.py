"""No word of a request is lost on its way into the other dialect, but those that docs/fields.md names:
thoughts, the name of a format, and who a tool message is from.
"""

import json
import re
from typing import Any

import pytest

from tests.gateway.translate.conversations import IMAGE_URL
from tests.gateway.translate.test_requests import IMAGE, to_chat, to_messages

# Every member that may hold words of the caller has one of its own.
SCHEMA = {
    "type": "object",
    "description": "d1",
    "properties": {"a": {"type": "string", "title": "d2"}},
    "additionalProperties": False,
}
FUNCTION = {"name": "f1", "description": "d3", "parameters": SCHEMA}
FORMAT = {"name": "left-out", "description": "d4", "schema": SCHEMA}
CHAT = {
    "messages": [
        {"role": "system", "content": "s1"},
        {"role": "user", "content": [{"type": "text", "text": "u1"}, IMAGE_URL]},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "t1"}, {"type": "refusal", "refusal": "r1"}],
            "refusal": "r2",
            "reasoning_content": "left-out",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f1", "arguments": '{"a":"a1"}'}}
            ],
        },
        {
            "role": "tool",
            "tool_call_id": "c1",
            "name": "left-out",
            "content": [IMAGE_URL, {"type": "text", "text": "o1"}],
        },
        {"role": "developer", "content": "s2"},
        {"role": "user", "content": "u2"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "response_format": {"type": "json_schema", "json_schema": FORMAT},
    "stop": ["x1"],
}
TEXT = {"type": "text", "media_type": "text/plain", "data": "b1"}
FOUND = {"type": "search_result", "source": "b4", "title": "b5", "content": [{"type": "text", "text": "b6"}]}
SEEN = [
    {"type": "text", "text": "u1"},
    IMAGE,
    FOUND,
    {"type": "document", "title": "b2", "context": "b3", "source": TEXT},
]
RESULT = [{"type": "text", "text": "o1"}, IMAGE, FOUND, {"type": "tool_reference", "tool_name": "f2"}]
MESSAGES = {
    "system": [{"type": "text", "text": "s1"}],
    "messages": [
        {"role": "user", "content": SEEN},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "left-out", "signature": "left-out"},
                {"type": "text", "text": "t1"},
                {"type": "tool_use", "id": "c1", "name": "f1", "input": {"a": "a1"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": RESULT}]},
        {"role": "system", "content": "s2"},
    ],
    "tools": [
        {"name": "f1", "description": "d3", "input_schema": SCHEMA},
        {"name": "f2", "input_schema": {"type": "object"}},
    ],
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    "stop_sequences": ["x1"],
}


@pytest.mark.parametrize(("given", "translate"), [(CHAT, to_messages), (MESSAGES, to_chat)])
def test_no_word_is_lost(given: dict[str, Any], translate: Any) -> None:
    missing = words_of(given) - words_of(translate(**given))
    assert {word for word in missing if re.fullmatch(r"[a-z]\d|left-out", word)} == {"left-out"}


def words_of(value: Any) -> set[str]:
    """Its strings, and those of JSON in them."""
    if isinstance(value, str):
        return words_of(json.loads(value)) if value.startswith("{") else set(value.split("\n"))
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(words_of, inside))
