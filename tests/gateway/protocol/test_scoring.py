"""Rerank and score: texts that are compared with texts."""

from typing import Any

import pytest

from gateway.protocol.scoring import TEXTS_MAX
from gateway.request import Route
from tests.gateway.protocol.bodies import parse, refusal


@pytest.mark.parametrize(
    ("route", "texts"),
    [
        (Route.RERANK, {"query": "of the sea", "documents": ["a", "b", "c"]}),
        (Route.SCORE, {"text_1": "of the sea", "text_2": ["a", "b", "c"]}),
        (Route.SCORE, {"text_1": ["a", "b"], "text_2": ["c", "d"]}),
    ],
)
def test_each_text_is_a_sample_and_nothing_is_produced(route: Route, texts: dict[str, Any]) -> None:
    parsed = parse(route, **texts, user="u", service_tier="flex")
    assert (parsed.samples, parsed.prompts, parsed.max_output_tokens) == (4, 4, 0)
    assert parsed.input_tokens_estimate >= 4
    assert "user" not in parsed.body


def test_one_document_may_be_given_without_a_list() -> None:
    assert parse(Route.RERANK, documents="a").samples == 2
    assert parse(Route.SCORE, text_2="a").samples == 2


@pytest.mark.parametrize(
    ("route", "param", "changes"),
    [
        (Route.RERANK, "query", {"query": None}), (Route.RERANK, "query", {"query": ["a"]}),
        (Route.RERANK, "query", {"query": ""}), (Route.RERANK, "query", {"query": {"text": "a"}}),
        (Route.RERANK, "documents", {"documents": None}), (Route.RERANK, "documents", {"documents": []}),
        (Route.RERANK, "documents", {"documents": ["a", ""]}),
        (Route.RERANK, "documents", {"documents": [{"text": "a"}]}),
        (Route.RERANK, "documents", {"documents": ["a"] * (TEXTS_MAX + 1)}),
        (Route.RERANK, "top_n", {"top_n": 0}),
        (Route.RERANK, "max_tokens_per_doc", {"max_tokens_per_doc": "5"}),
        (Route.SCORE, "text_1", {"text_1": None}), (Route.SCORE, "text_2", {"text_2": [[1, 2]]}),
        (Route.SCORE, "text_1", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}),
        (Route.SCORE, "text_1", {"text_1": ["a", "b"], "text_2": "a"}),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_by_name(
    route: Route, param: str, changes: dict[str, Any]
) -> None:
    assert refusal(route, **changes).param == param
