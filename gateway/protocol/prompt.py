"""A prompt of completions or embeddings: text or token ids, one or a list."""

from collections.abc import Callable
from typing import Any

from gateway.errors import InvalidRequest
from gateway.protocol.fields import empty, too_many, wrong_type
from gateway.protocol.sampling import TOKEN_ID_MAX
from gateway.protocol.text_size import text_bytes, tokens_of_bytes

_EXPECTED = "a string, an array of strings, or one or more arrays of token ids"


def check_prompt(param: str, value: Any, prompts_max: int) -> tuple[int, int]:
    """How many prompts there are, and how many tokens: estimated for text, exact for ids. No prompt may be
    empty.
    """
    if type(value) is str:
        return 1, _text_tokens(param, value)
    if type(value) is not list:
        raise wrong_type(param, _EXPECTED)
    if not value:
        raise empty(param)
    if type(value[0]) is int:
        return 1, _check_ids(param, value)
    if len(value) > prompts_max:
        raise too_many(param, prompts_max, "prompts")
    kind = type(value[0])
    if kind is not str and kind is not list:
        raise wrong_type(param, _EXPECTED)
    count: Callable[[str, Any], int] = _text_tokens if kind is str else _check_ids
    tokens = 0
    for index, prompt in enumerate(value):
        if type(prompt) is not kind:
            raise wrong_type(param, _EXPECTED)
        where = f"{param}[{index}]"
        tokens += count(where, prompt)
    return len(value), tokens


def longest_ids(value: Any) -> int:
    """The length of the longest prompt of token ids; 0 for text, whose tokens only an engine can count."""
    if type(value) is not list or type(value[0]) is str:
        return 0
    return len(value) if type(value[0]) is int else max(map(len, value))


def greatest_id(value: Any) -> int:
    """The greatest token id in a checked prompt; -1 when it is text."""
    if type(value) is not list or type(value[0]) is str:
        return -1
    return int(max(value) if type(value[0]) is int else max(map(max, value)))


def _text_tokens(param: str, text: str) -> int:
    if not text:
        raise empty(param)
    return tokens_of_bytes(text_bytes(text))


def _check_ids(param: str, ids: list[Any]) -> int:
    if not ids:
        raise empty(param)
    if set(map(type, ids)) != {int}:
        raise wrong_type(param, _EXPECTED)
    if min(ids) < 0 or max(ids) > TOKEN_ID_MAX:
        raise InvalidRequest(f"Invalid '{param}': token ids must be between 0 and {TOKEN_ID_MAX}.", param)
    return len(ids)
