"""Sample values of the types that an SDK declares for its requests: every member of every object in them,
each at least once.
"""

import collections.abc
import itertools
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import pydantic
import typing_extensions

# Where the type only says "string", what a caller would send.
_WORDS: dict[str, Any] = {
    "data": "AAAA", "image_url": "data:image/png;base64,AAAA", "url": "data:image/png;base64,AAAA",
    "file_data": "data:text/plain;base64,AAAA", "name": "f", "tool_name": "f", "arguments": "{}",
    "model": "m", "budget_tokens": 2000, "max_tokens": 4000, "pattern": "a", "parameters": {"type": "object"},
    "input_schema": {"type": "object"}, "schema": {"type": "object"}, "logit_bias": {"5": 1},
    "max_tool_calls": 5, "top_logprobs": 0, "n": 1, "seed": 1, "image": "x", "frequency_penalty": 0.5,
}  # fmt: skip
_PLAIN: dict[Any, Any] = {
    str: "x",
    int: 5,
    float: 0.5,
    bool: True,
    object: "x",
    type(None): None,
    Any: "x",
    bytes: "x",
}
_DEPTH_MAX = 7


def members_of(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Name to type and whether it is required, of a TypedDict or a model."""
    if typing_extensions.is_typeddict(kind):
        hints = typing_extensions.get_type_hints(kind, include_extras=True)
        required: frozenset[str] = kind.__required_keys__
        return {name: (hint, name in required or _marked(hint)) for name, hint in hints.items()}
    return {
        field.alias or name: (field.annotation, field.is_required())
        for name, field in kind.model_fields.items()
    }


def samples(kind: Any, name: str = "", depth: int = 0) -> Iterator[Any]:
    """Values of this type: all variants of unions and literals, and each optional member of an object once
    beside the required ones.
    """
    kind = _bare(kind)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        for variant in get_args(kind):
            yield from samples(variant, name, depth)
    elif origin is Literal:
        yield from get_args(kind)
    elif origin in (list, collections.abc.Iterable, collections.abc.Sequence, typing.Iterable):
        for value in samples(get_args(kind)[0], name, depth + 1):
            yield [value]
    elif name in _WORDS:
        yield _WORDS[name]
    elif origin in (dict, collections.abc.Mapping):
        yield {"a": first(get_args(kind)[1])}
    elif kind in _PLAIN:
        yield _PLAIN[kind]
    elif typing_extensions.is_typeddict(kind) or (
        isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)
    ):
        yield from _objects(kind, depth)
    else:
        yield "x"


def first(kind: Any, name: str = "", depth: int = 0) -> Any:
    """The first of them."""
    return next(iter(samples(kind, name, depth)), None)


def _objects(kind: Any, depth: int) -> Iterator[dict[str, Any]]:
    declared = members_of(kind)
    base = {name: first(hint, name, depth + 1) for name, (hint, required) in declared.items() if required}
    yield dict(base)
    if depth >= _DEPTH_MAX:
        return
    for name, (hint, _) in declared.items():
        values = samples(hint, name, depth + 1)
        for value in itertools.islice(values, 1, None) if name in base else values:
            yield {**base, name: value}


def _bare(kind: Any) -> Any:
    while get_origin(kind) in (
        typing.Annotated,
        typing_extensions.Required,
        typing_extensions.NotRequired,
        typing.Required,
    ):
        kind = get_args(kind)[0]
    return kind


def _marked(hint: Any) -> bool:
    return get_origin(hint) in (typing_extensions.Required, typing.Required)
