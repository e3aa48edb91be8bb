"""Completions: prompts, samples and their caps."""

from typing import Any

import pytest

from gateway.protocol.completions import PROMPTS_MAX
from gateway.request import Route
from tests.gateway.protocol.bodies import parse, refusal


@pytest.mark.parametrize(
    ("prompt", "prompts", "tokens"),
    [
        ("x" * 40, 1, 10),
        (["x" * 40, "y"], 2, 11),
        ([5, 6, 7], 1, 3),
        ([[5, 6, 7], [8]], 2, 4),
        (["x"] * PROMPTS_MAX, PROMPTS_MAX, PROMPTS_MAX),
    ],
)
def test_prompts_are_counted_exactly_where_they_are_token_ids(prompt: Any, prompts: int, tokens: int) -> None:
    parsed = parse(Route.COMPLETIONS, prompt=prompt)
    assert (parsed.prompts, parsed.samples, parsed.input_tokens_estimate) == (prompts, prompts, tokens)


@pytest.mark.parametrize(
    ("param", "prompt"),
    [
        ("prompt", ["x"] * 10**5), ("prompt", ["x"] * (PROMPTS_MAX + 1)), ("prompt",
        [[1]] * (PROMPTS_MAX + 1)),
        ("prompt", None), ("prompt", ""), ("prompt", []), ("prompt", {}), ("prompt", 5), ("prompt", True),
        ("prompt", [None]),
        ("prompt[0]", [[]]), ("prompt[0]", [""]), ("prompt", ["x", 5]), ("prompt", ["x", [5]]), ("prompt", [5,
        "x"]), ("prompt", [5, True]),
        ("prompt[1]", [[5], [1.0]]), ("prompt[0]", [[True]]), ("prompt", [-1]), ("prompt", [2**31]),
        ("prompt[0]", [["x"]]),
    ],
)  # fmt: skip
def test_fault_09_prompts_are_few_and_of_one_kind(param: str, prompt: Any) -> None:
    assert refusal(Route.COMPLETIONS, prompt=prompt).param == param


@pytest.mark.parametrize("n", [10**9, -1, True, "3", 1.0])
def test_fault_09_n_is_a_small_integer(n: Any) -> None:
    assert refusal(Route.COMPLETIONS, n=n).param == "n"


def test_fault_09_samples_are_n_times_the_prompts_and_capped() -> None:
    parsed = parse(Route.COMPLETIONS, prompt=["x"] * 16, n=4)
    assert (parsed.samples, parsed.prompts) == (64, 16)
    assert refusal(Route.COMPLETIONS, prompt=["x"] * 16, n=5).param == "n"


@pytest.mark.parametrize("best_of", [2, 0, True, "1", 1.0])
def test_fault_09_best_of_is_one(best_of: Any) -> None:
    assert refusal(Route.COMPLETIONS, best_of=best_of).param == "best_of"
    parse(Route.COMPLETIONS, best_of=1)


@pytest.mark.parametrize("logprobs", [21, 10**4, -1, True, 1.0])
def test_fault_11_logprobs_are_capped(logprobs: Any) -> None:
    assert refusal(Route.COMPLETIONS, logprobs=logprobs).param == "logprobs"


@pytest.mark.parametrize("value", [-1, 10**12])
def test_fault_10_max_tokens_is_sane_with_echo_too(value: int) -> None:
    assert refusal(Route.COMPLETIONS, max_tokens=value, echo=True).param == "max_tokens"


def test_a_text_is_scored_with_no_tokens_and_an_echo() -> None:
    """The engine makes one token all the same, and that one is counted."""
    parsed = parse(Route.COMPLETIONS, max_tokens=0, echo=True, logprobs=1)
    assert (parsed.body["max_tokens"], parsed.max_output_tokens) == (0, 1)
    assert refusal(Route.COMPLETIONS, max_tokens=0).param == "max_tokens"


def test_fault_10_min_tokens_is_not_above_max_tokens() -> None:
    assert refusal(Route.COMPLETIONS, min_tokens=6, max_tokens=5).param == "min_tokens"


def test_a_response_is_constrained_once() -> None:
    both = {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}
    assert refusal(Route.COMPLETIONS, **both).param == "structured_outputs"
    assert refusal(Route.CHAT, **both).param == "structured_outputs"
    parse(Route.CHAT, response_format={"type": "text"}, structured_outputs={"regex": "a"})
