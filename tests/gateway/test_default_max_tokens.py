"""A model's `default_max_tokens` holds for requests that name no limit of their own, and no engine refuses
a request because of it.
"""

from typing import Any

import pytest

from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import Catalogue, StartGateway
from tests.gateway.asking import ask

LIMITS = {"chat": "max_tokens", "completions": "max_tokens", "responses": "max_output_tokens"}
DEFAULT, CONTEXT = 7, 2048


def output_tokens(usage: dict[str, Any]) -> int:
    return int(usage.get("completion_tokens", usage.get("output_tokens")))


@pytest.fixture
def key(engine: SimEngine, catalogue: Catalogue) -> str:
    catalogue.model(default_max_tokens=DEFAULT, context_tokens=CONTEXT)
    catalogue.instance(engine.url, engine.key)
    return catalogue.key(catalogue.tenant("ten_a"))


@pytest.mark.parametrize("route", LIMITS)
def test_it_holds_where_the_request_names_no_limit(
    route: str, engine: SimEngine, key: str, start_gateway: StartGateway
) -> None:
    gateway, limit = start_gateway(), LIMITS[route]
    assert output_tokens(ask(gateway, key, route, **{limit: None}).json["usage"]) == DEFAULT
    assert output_tokens(ask(gateway, key, route, **{limit: 9}).json["usage"]) == 9
    more = {"stream_options": {"include_usage": True}} if route != "responses" else {}
    last = ask(gateway, key, route, True, **{limit: None}, **more).events[-1]
    assert output_tokens((last.get("response") or last)["usage"]) == DEFAULT
    assert [request["body"][limit] for request in engine.requests()] == [DEFAULT, 9, DEFAULT]


def test_it_is_no_less_than_the_least_that_was_asked_for(key: str, start_gateway: StartGateway) -> None:
    usage = ask(start_gateway(), key, "chat", max_tokens=None, min_tokens=20).json["usage"]
    assert output_tokens(usage) == 20


def test_a_prompt_that_leaves_less_is_served_all_the_same(
    key: str, engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    gateway = start_gateway()
    answer = ask(gateway, key, "completions", max_tokens=None, prompt=[5] * (CONTEXT - 3))
    assert answer.status == 200, answer.text
    assert output_tokens(answer.json["usage"]) == 3
