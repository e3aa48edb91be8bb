"""Broken lines are refused by line, and what is right is estimated."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.batch.prefix import prefix_key
from billing.batch.splitting import RawLine, split_jsonl, split_requests
from billing.batch.validation import ERRORS_MAX, Checked, check
from billing.wire.batch_line import LINES_MAX
from billing.wire.routes import ROUTE_FACTS, Route
from tests.billing.batch.lines import chat

CAP = 10_000
CHAT = ROUTE_FACTS[Route.CHAT]


def checked(*lines: Any) -> Checked:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return check(split_jsonl(["\n".join(texts).encode()], CAP), CHAT, CAP)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in chat("a").items() if key != name}


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        ("{not json", "invalid_json_line", None),
        ("[]", "invalid_json_line", None),
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        (chat("a") | {"custom_id": 7}, "invalid_custom_id", "custom_id"),
        (chat("a") | {"custom_id": ""}, "invalid_custom_id", "custom_id"),
        (chat("a" * 513), "invalid_custom_id", "custom_id"),
        (chat("first"), "duplicate_custom_id", "custom_id"),
        (chat("a") | {"method": "GET"}, "invalid_method", "method"),
        (chat("a") | {"url": "/v1/unknown"}, "mismatched_url", "url"),
        (chat("a") | {"url": "/v1/completions"}, "mismatched_url", "url"),
        (chat("a") | {"body": []}, "invalid_type", "body"),
        (chat("a", model="other"), "mismatched_model", "model"),
        (chat("a", model=None), "missing_required_parameter", "model"),
        (chat("a", stream=True), "unsupported_parameter", "body.stream"),
        (chat("a", "long" * CAP), "line_too_long", None),
    ],
)  # fmt: skip
def test_a_broken_line_is_named_with_what_is_wrong(line: Any, code: str, param: str | None) -> None:
    found = checked(chat("first"), "", line, chat("last"))
    assert [(error.line, error.code, error.param) for error in found.errors] == [(3, code, param)]
    assert not found.order


def test_an_empty_file_is_refused() -> None:
    assert [error.code for error in checked().errors] == ["empty_file"]


def test_errors_are_listed_up_to_a_cap() -> None:
    found = checked(*["{"] * (ERRORS_MAX + 10))
    assert len(found.errors) == ERRORS_MAX + 1
    assert found.errors[-1].code == "too_many_errors"


@pytest.mark.parametrize(("count", "codes"), [(LINES_MAX, []), (LINES_MAX + 1, ["too_many_lines"])])
def test_a_batch_has_so_many_lines_and_not_one_more(count: int, codes: list[str]) -> None:
    text = json.dumps(chat("%"))
    lines = (
        RawLine(number, 0, len(text), text.replace("%", str(number)).encode())
        for number in range(1, count + 1)
    )
    assert [error.code for error in check(lines, CHAT, CAP).errors] == codes


def test_estimates_count_prompts_and_the_most_that_is_answered() -> None:
    found = checked(chat("a", "x" * 400, max_tokens=7), chat("b", "x" * 400, n=3, max_tokens=5))
    assert found.output_tokens == 7 + 15
    assert 200 <= found.input_tokens <= 230
    assert checked(chat("a", max_tokens=None)).unbounded == 1


def test_anthropic_requests_have_ids_of_its_form() -> None:
    facts = ROUTE_FACTS[Route.MESSAGES]

    def codes(*requests: Any) -> list[str]:
        body = json.dumps({"requests": requests}).encode()
        return [error.code for error in check(split_requests([body], CAP), facts, CAP).errors]

    params = {"model": "sim", "max_tokens": 1, "messages": []}
    assert codes({"custom_id": "a", "params": params}) == []
    assert codes({"custom_id": "a b", "params": params}) == ["invalid_custom_id"]
    assert codes({"custom_id": "a", "params": params, "more": 1}) == ["unsupported_parameter"]


@given(st.permutations([f"{group}{'.' * 5_000}{n}" for group in "abc" for n in range(3)]))
def test_lines_that_begin_alike_are_neighbours(contents: list[str]) -> None:
    found = checked(*(chat(str(number), content) for number, content in enumerate(contents)))
    groups = [contents[line][0] for line in found.order]
    changes = sum(before != after for before, after in itertools.pairwise(groups))
    assert changes == 2


def test_the_more_two_prompts_have_in_common_the_closer_they_are() -> None:
    def key(text: str) -> bytes:
        return prefix_key({"messages": [{"role": "user", "content": text}]})

    long, same, other = "a" * 3_000, "a" * 2_000 + "b" * 1_000, "c" * 3_000
    assert key(long)[:16] == key(same)[:16] != key(other)[:16]
    assert key(long) != key(same)
