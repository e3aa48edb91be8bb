"""Embeddings and tokenize: the routes that answer without generating."""

from typing import Any

import pytest

from gateway.protocol.embeddings import INPUTS_MAX
from gateway.request import Route
from tests.gateway.protocol.bodies import parse, refusal


def test_embeddings_are_a_sample_an_input_and_produce_nothing() -> None:
    parsed = parse(Route.EMBEDDINGS, input=[[1, 2], [3]], dimensions=8, encoding_format="base64", user="u")
    assert (parsed.samples, parsed.prompts, parsed.input_tokens_estimate, parsed.max_output_tokens) == (
        2,
        2,
        3,
        0,
    )


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("input", {"input": None}), ("input", {"input": []}), ("input", {"input": ["x"] * (INPUTS_MAX + 1)}),
        ("input", {"input": [{"role": "user"}]}),
        ("dimensions", {"dimensions": 0}), ("encoding_format", {"encoding_format": "bytes"}), ("max_tokens",
        {"max_tokens": 5}),
    ],
)  # fmt: skip
def test_fault_09_embeddings_take_a_bounded_list(param: str, changes: dict[str, Any]) -> None:
    assert refusal(Route.EMBEDDINGS, **changes).param == param


def test_tokenize_takes_a_prompt_or_messages() -> None:
    parsed = parse(Route.TOKENIZE, return_token_strs=True)
    assert (parsed.samples, parsed.stream, parsed.max_output_tokens) == (0, False, 0)
    parse(
        Route.TOKENIZE, prompt=None, messages=[{"role": "user", "content": "hi"}], add_generation_prompt=True
    )


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("prompt", {"prompt": None}), ("prompt", {"prompt": [1]}), ("messages", {"messages": [{"role": "user",
        "content": "hi"}]}),
        ("messages[0].role", {"prompt": None, "messages": [{"role": "x", "content": "hi"}]}),
    ],
)  # fmt: skip
def test_tokenize_refuses_the_rest(param: str, changes: dict[str, Any]) -> None:
    assert refusal(Route.TOKENIZE, **changes).param == param
