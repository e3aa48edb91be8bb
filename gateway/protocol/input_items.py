"""The `input` of OpenAI's Responses: a string, or typed items. It returns sizes for the estimate; it knows
items, not the rest of the route.
"""

from typing import Any

from gateway.errors import InvalidRequest, RemoteMediaDisabled, UnsupportedParameter
from gateway.protocol.fields import (
    Checker,
    Replaced,
    anything,
    array,
    boolean,
    check_members,
    echoed,
    empty,
    mapping,
    missing,
    one_of,
    string,
    wrong_type,
)
from gateway.protocol.media import MEDIA_TOKENS_ESTIMATE, check_data_url
from gateway.protocol.refused import MISSED
from gateway.protocol.text_size import BYTES_PER_TOKEN, TOKENS_PER_MESSAGE, text_bytes
from gateway.protocol.tools import check_tool_name

ITEMS_MAX = 2048
PARTS_MAX = 512
ID_CHARS_MAX = 256
ENCRYPTED_CHARS_MAX = 256 * 1024
MEDIA_BYTES = MEDIA_TOKENS_ESTIMATE * BYTES_PER_TOKEN
ROLES = ("user", "assistant", "system", "developer")


def check_input(value: Any) -> int:
    """The whole input; its text in bytes, with what a template puts around each item."""
    if value is None:
        raise missing("input")
    if type(value) is str:
        if not value:
            raise empty("input")
        return text_bytes(value)
    if type(value) is not list:
        raise wrong_type("input", "a string or an array of items")
    if not array("input", value, ITEMS_MAX):
        raise empty("input")
    around = TOKENS_PER_MESSAGE * BYTES_PER_TOKEN
    return sum(around + _check_item(f"input[{index}]", item) for index, item in enumerate(value))


def _check_item(param: str, item: Any) -> int:
    kind = mapping(param, item).get("type")
    if kind is None:
        kind = "message"
    if kind == "item_reference":
        raise UnsupportedParameter(f"{param}.type", MISSED["previous_response_id"])
    if type(kind) is not str or kind not in _ITEMS:
        raise UnsupportedParameter(f"{param}.type", f"Known are {', '.join(sorted(_ITEMS))}.")
    fields, required = _ITEMS[kind]
    check_members(param, item, fields, required)
    if kind == "message":
        return _check_parts(f"{param}.content", item["content"], item["role"])
    if kind == "function_call":
        return text_bytes(item["name"]) + text_bytes(item["arguments"])
    if kind == "function_call_output":
        return _check_parts(f"{param}.output", item["output"], "user")
    size = 0
    for name, text_type in (("summary", "summary_text"), ("content", "reasoning_text")):
        for index, part in enumerate(array(f"{param}.{name}", item.get(name) or [], PARTS_MAX)):
            check_members(
                f"{param}.{name}[{index}]",
                part,
                {"type": one_of(text_type), "text": string()},
                ("type", "text"),
            )
            size += text_bytes(part["text"])
    return size


def _check_parts(param: str, content: Any, role: str) -> int:
    if type(content) is str:
        return text_bytes(content)
    if type(content) is not list:
        raise wrong_type(param, "a string or an array of parts")
    size = 0
    for index, part in enumerate(array(param, content, PARTS_MAX)):
        size += _check_part(f"{param}[{index}]", part, role)
    return size


def _check_part(param: str, part: Any, role: str) -> int:
    kind = mapping(param, part).get("type")
    if type(kind) is not str:
        raise missing(f"{param}.type")
    if kind == "input_file" or (kind == "input_image" and part.get("file_id") is not None):
        raise RemoteMediaDisabled(param)
    if kind not in _PARTS:
        raise UnsupportedParameter(f"{param}.type", f"Known are {', '.join(sorted(_PARTS))}.")
    if kind == "input_image" and role != "user":
        raise InvalidRequest(f"Invalid '{param}': only text is allowed here.", param)
    fields, required = _PARTS[kind]
    check_members(param, part, fields, required)
    return MEDIA_BYTES if kind == "input_image" else text_bytes(part.get("text") or part.get("refusal") or "")


def _without_annotations(_param: str, _value: Any) -> None:
    """Sent back as received: they say nothing to a model, but engines want the list."""
    raise Replaced([])


_ID = string(ID_CHARS_MAX)
_STATUS = one_of("in_progress", "completed", "incomplete")
_PARTS: dict[str, tuple[dict[str, Checker], tuple[str, ...]]] = {
    "input_text": ({"type": string(), "text": string()}, ("text",)),
    "output_text": (
        {"type": string(), "text": string(), "annotations": _without_annotations, "logprobs": echoed},
        ("text",),
    ),
    "refusal": ({"type": string(), "refusal": string()}, ("refusal",)),
    "input_image": (
        {"type": string(), "image_url": check_data_url, "detail": one_of("auto", "low", "high", "original")},
        ("image_url",),
    ),
}
_ITEMS: dict[str, tuple[dict[str, Checker], tuple[str, ...]]] = {
    "message": (
        {
            "type": string(),
            "role": one_of(*ROLES),
            "content": anything,
            "id": _ID,
            "status": _STATUS,
            "phase": one_of("commentary", "final_answer"),
        },
        ("role", "content"),
    ),
    "function_call": (
        {
            "type": string(),
            "name": check_tool_name,
            "arguments": string(),
            "call_id": _ID,
            "id": _ID,
            "status": _STATUS,
            "async": boolean,
        },
        ("name", "arguments", "call_id"),
    ),
    "function_call_output": (
        {"type": string(), "output": anything, "call_id": _ID, "id": _ID, "status": _STATUS},
        ("output", "call_id"),
    ),
    "reasoning": (
        {
            "type": string(),
            "id": _ID,
            "summary": anything,
            "content": anything,
            "encrypted_content": string(ENCRYPTED_CHARS_MAX),
            "status": _STATUS,
        },
        (),
    ),
}
