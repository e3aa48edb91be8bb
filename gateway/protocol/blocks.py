"""The contents of Anthropic's messages: a string, or typed blocks. It returns sizes for the estimate; it
knows blocks, no routes.

Blocks with plain text in a form of their own (documents, search results, references to tools) become text
blocks, because engines know no others.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from gateway.errors import InvalidRequest, RemoteMediaDisabled, UnsupportedParameter
from gateway.protocol.fields import (
    Checker,
    Dropped,
    anything,
    array,
    boolean,
    cache_mark,
    check_members,
    echoed,
    mapping,
    missing,
    one_of,
    string,
    wrong_type,
)
from gateway.protocol.media import MEDIA_TOKENS_ESTIMATE, check_anthropic_source
from gateway.protocol.text_size import BYTES_PER_TOKEN, text_bytes
from gateway.protocol.tools import check_tool_name

BLOCKS_MAX = 512
ID_CHARS_MAX = 256
SIGNATURE_CHARS_MAX = 64 * 1024
TITLE_CHARS_MAX = 2048
MEDIA_BYTES = MEDIA_TOKENS_ESTIMATE * BYTES_PER_TOKEN

SYSTEM_BLOCKS = frozenset({"text"})
USER_BLOCKS = frozenset({"text", "image", "tool_result", "document", "search_result"})
ASSISTANT_BLOCKS = frozenset({"text", "tool_use", "thinking", "redacted_thinking"})
RESULT_BLOCKS = frozenset({"text", "image", "document", "search_result", "tool_reference"})


def check_blocks(param: str, content: Any, allowed: frozenset[str]) -> int:
    """A string or a list of blocks of the `allowed` types; its size in bytes of text, media counted at a
    flat rate.
    """
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
    if (
        kind == "image"
        and type(source := block.get("source")) is dict
        and source.get("type") in ("url", "file")
    ):
        raise RemoteMediaDisabled(f"{param}.source")
    fields, required = _BLOCKS[kind]
    check_members(param, block, fields, required)
    if (texts_of := _AS_TEXT.get(kind)) is not None:
        text = "\n".join(texts_of(param, block))
        block.clear()
        block.update(type="text", text=text)
        return text_bytes(text)
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


def _check_citations(param: str, value: Any) -> None:
    if mapping(param, value).get("enabled"):
        raise UnsupportedParameter(param, "Answers have no citations here: leave it out.")
    raise Dropped(named=False)


def _document_texts(param: str, block: dict[str, Any]) -> Iterator[str]:
    for name in ("title", "context"):
        if block.get(name):
            yield block[name]
    source, where = block["source"], f"{param}.source"
    kind = mapping(where, source).get("type")
    if kind == "text":
        check_members(where, source, _TEXT_SOURCE, ("data",))
        yield source["data"]
    elif kind == "content":
        check_members(where, source, _CONTENT_SOURCE, ("content",))
        yield from _texts(f"{where}.content", source["content"])
    else:
        raise UnsupportedParameter(
            where, "Only documents of plain text can be read here: send the text of this one."
        )


def _search_result_texts(param: str, block: dict[str, Any]) -> Iterator[str]:
    yield block["title"]
    yield block["source"]
    yield from _texts(f"{param}.content", block["content"])


def _texts(param: str, content: Any) -> list[str]:
    check_blocks(param, content, SYSTEM_BLOCKS)
    return [content] if type(content) is str else [block["text"] for block in content]


_COMMON: dict[str, Checker] = {"type": string(), "cache_control": cache_mark}
_TEXT_SOURCE: dict[str, Checker] = {"type": string(), "media_type": one_of("text/plain"), "data": string()}
_CONTENT_SOURCE: dict[str, Checker] = {"type": string(), "content": anything}
_AS_TEXT: dict[str, Callable[[str, dict[str, Any]], Iterable[str]]] = {
    "document": _document_texts,
    "search_result": _search_result_texts,
    # Every tool is in the prompt already, so a reference only adds its name.
    "tool_reference": lambda _param, block: (block["tool_name"],),
}
_BLOCKS: dict[str, tuple[dict[str, Checker], tuple[str, ...]]] = {
    "text": ({**_COMMON, "text": string(), "citations": echoed}, ("text",)),
    "image": ({**_COMMON, "source": check_anthropic_source}, ("source",)),
    "tool_use": (
        {
            **_COMMON,
            "id": string(ID_CHARS_MAX, may_be_empty=False),
            "name": check_tool_name,
            "input": _check_input,
            "caller": echoed,
        },
        ("id", "name", "input"),
    ),
    "tool_result": (
        {
            **_COMMON,
            "tool_use_id": string(ID_CHARS_MAX, may_be_empty=False),
            "content": anything,
            "is_error": boolean,
        },
        ("tool_use_id",),
    ),
    "thinking": ({**_COMMON, "thinking": string(), "signature": string(SIGNATURE_CHARS_MAX)}, ("thinking",)),
    "document": (
        {
            **_COMMON,
            "source": anything,
            "title": string(TITLE_CHARS_MAX),
            "context": string(),
            "citations": _check_citations,
        },
        ("source",),
    ),
    "search_result": (
        {
            **_COMMON,
            "source": string(TITLE_CHARS_MAX),
            "title": string(TITLE_CHARS_MAX),
            "content": anything,
            "citations": _check_citations,
        },
        ("source", "title", "content"),
    ),
    "tool_reference": ({**_COMMON, "tool_name": check_tool_name}, ("tool_name",)),
    "redacted_thinking": ({**_COMMON, "data": string(SIGNATURE_CHARS_MAX)}, ("data",)),
}
