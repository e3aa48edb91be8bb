"""The contents of Anthropic's messages: a string, or typed blocks. Returns sizes for the estimate; knows blocks, no routes."""

from typing import Any

import orjson

from gateway.errors import InvalidRequest, RemoteMediaDisabled, UnsupportedParameter
from gateway.protocol.fields import (
    Checker,
    anything,
    array,
    boolean,
    check_members,
    mapping,
    missing,
    only,
    string,
    wrong_type,
)
from gateway.protocol.media import MEDIA_TOKENS_ESTIMATE, check_anthropic_source
from gateway.protocol.text_size import BYTES_PER_TOKEN, text_bytes
from gateway.protocol.tools import CACHE_CONTROL, check_tool_name

BLOCKS_MAX = 512
ID_CHARS_MAX = 256
SIGNATURE_CHARS_MAX = 64 * 1024
MEDIA_BYTES = MEDIA_TOKENS_ESTIMATE * BYTES_PER_TOKEN

SYSTEM_BLOCKS = frozenset({"text"})
USER_BLOCKS = frozenset({"text", "image", "tool_result"})
ASSISTANT_BLOCKS = frozenset({"text", "tool_use", "thinking", "redacted_thinking"})
RESULT_BLOCKS = frozenset({"text", "image"})


def check_blocks(param: str, content: Any, allowed: frozenset[str]) -> int:
    """A string or a list of blocks of the `allowed` types; its size in bytes of text, media counted at a flat rate."""
    if type(content) is str:
        return text_bytes(content)
    if type(content) is not list:
        raise wrong_type(param, "a string or an array of blocks")
    return sum(
        _check_block(f"{param}[{index}]", block, allowed)
        for index, block in enumerate(array(param, content, BLOCKS_MAX))
    )


def _check_block(param: str, block: Any, allowed: frozenset[str]) -> int:
    kind = mapping(param, block).get("type")
    if kind is None:
        raise missing(f"{param}.type")
    if type(kind) is not str or kind not in _BLOCKS:
        raise UnsupportedParameter(f"{param}.type", f"Known here are {', '.join(sorted(allowed))}.")
    if kind not in allowed:
        raise InvalidRequest(
            f"Invalid '{param}.type': here it must be one of {', '.join(sorted(allowed))}.", f"{param}.type"
        )
    if kind == "image" and type(source := block.get("source")) is dict and source.get("type") in ("url", "file"):
        raise RemoteMediaDisabled(f"{param}.source")
    fields, required = _BLOCKS[kind]
    check_members(param, block, fields, required)
    if kind == "tool_result":
        content = block.get("content")
        return 0 if content is None else check_blocks(f"{param}.content", content, RESULT_BLOCKS)
    if kind == "tool_use":
        return text_bytes(block["name"]) + len(orjson.dumps(block["input"]))
    if kind == "image":
        return MEDIA_BYTES
    return text_bytes(block.get(kind) or "")


def _check_input(param: str, value: Any) -> None:
    mapping(param, value)


_COMMON: dict[str, Checker] = {"type": string(), "cache_control": CACHE_CONTROL}
_BLOCKS: dict[str, tuple[dict[str, Checker], tuple[str, ...]]] = {
    "text": ({**_COMMON, "text": string(), "citations": only([], "Leave it out.")}, ("text",)),
    "image": ({**_COMMON, "source": check_anthropic_source}, ("source",)),
    "tool_use": (
        {
            **_COMMON,
            "id": string(ID_CHARS_MAX, may_be_empty=False),
            "name": check_tool_name,
            "input": _check_input,
            "caller": only({"type": "direct"}, "Leave it out."),
        },
        ("id", "name", "input"),
    ),
    "tool_result": (
        {**_COMMON, "tool_use_id": string(ID_CHARS_MAX, may_be_empty=False), "content": anything, "is_error": boolean},
        ("tool_use_id",),
    ),
    "thinking": ({**_COMMON, "thinking": string(), "signature": string(SIGNATURE_CHARS_MAX)}, ("thinking",)),
    "redacted_thinking": ({**_COMMON, "data": string(SIGNATURE_CHARS_MAX)}, ("data",)),
}
