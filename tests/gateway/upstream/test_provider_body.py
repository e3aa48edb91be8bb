"""What a provider is sent, and that callers can read what it does not know."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from billing.wire.engine_kinds import ANTHROPIC, KINDS, OPENAI, PROVIDERS
from billing.wire.routes import ROUTE_FACTS
from billing.wire.usage_event import CapacityClass
from gateway.errors import UnsupportedParameter
from gateway.request import Route
from gateway.upstream.adapters import ADAPTERS
from gateway.upstream.provider_body import ENGINE_ONLY, provider_body
from tests.gateway.protocol.bodies import SMALLEST, parse
from tests.gateway.upstream.asked import INSTANCE, SALT

DOCUMENT = Path(__file__).parents[3] / "docs" / "fields.md"
SERVED = [
    (kind, route)
    for kind in PROVIDERS
    for route in Route
    if ROUTE_FACTS[route].offered_as in KINDS[kind].routes
]


def sent(kind: str, route: Route, default_max_tokens: int | None = None, **fields: Any) -> dict[str, Any]:
    call = ADAPTERS[kind].request(
        parse(route, **fields),
        replace(INSTANCE, engine=kind, priority=True),
        request_id="req_1",
        engine_model="big",
        cache_salt=SALT,
        default_max_tokens=default_max_tokens,
        class_=CapacityClass.RESERVED,
    )
    assert b"req_1" not in call.headers + call.body
    assert SALT.encode() not in call.headers + call.body
    body: dict[str, Any] = orjson.loads(call.body)
    return body


# Of a request that is translated, the body that says the same.
TRANSLATED = {
    (OPENAI, Route.MESSAGES): {"model", "messages", "max_completion_tokens"},
    (ANTHROPIC, Route.CHAT): {"model", "messages", "max_tokens"},
}


@pytest.mark.parametrize(("kind", "route"), [each for each in SERVED if each != (OPENAI, Route.COUNT_TOKENS)])
def test_every_route_of_a_kind_is_put_in_its_words(kind: str, route: Route) -> None:
    body = sent(kind, route)
    assert body["model"] == "big"
    added = {"store"} if route is Route.RESPONSES else set()
    assert body.keys() == TRANSLATED.get((kind, route), SMALLEST[route].keys() | added)
    assert not body.keys() & {"cache_salt", "priority", "request_id"}


def test_openai_counts_no_message() -> None:
    """An engine of the model may."""
    with pytest.raises(UnsupportedParameter):
        sent(OPENAI, Route.COUNT_TOKENS)


@pytest.mark.parametrize(
    ("route", "bound", "other"),
    [
        (Route.CHAT, "max_completion_tokens", "max_tokens"),
        (Route.COMPLETIONS, "max_tokens", "max_tokens"),
        (Route.RESPONSES, "max_output_tokens", "max_output_tokens"),
    ],
)
def test_the_models_default_bounds_an_answer_that_its_caller_does_not(
    route: Route, bound: str, other: str
) -> None:
    assert sent(OPENAI, route, default_max_tokens=9)[bound] == 9
    asked = sent(OPENAI, route, default_max_tokens=9, **{other: 5})
    assert asked[other] == 5
    assert other == bound or bound not in asked


def test_both_names_of_a_bound_are_sent_as_one() -> None:
    body = sent(OPENAI, Route.CHAT, max_tokens=5, max_completion_tokens=5)
    assert body["max_completion_tokens"] == 5
    assert "max_tokens" not in body


@pytest.mark.parametrize("name", ENGINE_ONLY)
def test_what_only_engines_know_is_never_sent(name: str) -> None:
    for value in ENGINE_ONLY[name]:
        assert provider_body({"a": 1, name: value}, "big", ENGINE_ONLY) == {"a": 1, "model": "big"}
    with pytest.raises(UnsupportedParameter) as refusal:
        provider_body({name: "something"}, "big", ENGINE_ONLY)
    assert refusal.value.param == name
    assert f"`{name}`" in DOCUMENT.read_text(encoding="utf-8").split("## Where another provider")[1]


def test_nulls_and_what_is_the_accounts_stay_here() -> None:
    body = sent(OPENAI, Route.CHAT, temperature=None, metadata={"a": "b"}, service_tier="flex", user="u")
    assert body.keys() == SMALLEST[Route.CHAT].keys()
    message = sent(ANTHROPIC, Route.MESSAGES, metadata={"user_id": "u"}, service_tier="auto")
    assert message.keys() == SMALLEST[Route.MESSAGES].keys()
