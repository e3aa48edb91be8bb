"""What a caller may ask for in `service_tier`, and what a class is called."""

from typing import Any

import orjson
import pytest

from billing.wire.usage_event import CapacityClass
from gateway.error_form import error_body
from gateway.protocol import used_tier
from gateway.protocol.tier import anthropic_tier
from gateway.request import Dialect, Route, ServiceTier
from tests.gateway.protocol.bodies import parse, refusal
from tests.gateway.upstream.asked import body_for

TIERED = (Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES, Route.EMBEDDINGS)
UNTIERED = (Route.COUNT_TOKENS, Route.TOKENIZE)


@pytest.mark.parametrize("route", TIERED)
@pytest.mark.parametrize("tier", ServiceTier)
def test_every_tier_may_be_asked_for_and_no_engine_hears_of_it(route: Route, tier: ServiceTier) -> None:
    parsed = parse(route, service_tier=tier.value)
    assert parsed.service_tier is tier
    assert "service_tier" not in body_for(parsed)


@pytest.mark.parametrize("route", TIERED)
def test_nothing_and_null_ask_for_whatever_is_best(route: Route) -> None:
    assert parse(route).service_tier is ServiceTier.AUTO
    assert parse(route, service_tier=None).service_tier is ServiceTier.AUTO


def test_anthropics_standard_is_the_default() -> None:
    assert parse(Route.MESSAGES, service_tier="standard_only").service_tier is ServiceTier.DEFAULT
    assert refusal(Route.CHAT, service_tier="standard_only").param == "service_tier"


@pytest.mark.parametrize("route", TIERED)
@pytest.mark.parametrize(
    "value", ["scale", "", "Flex", "reserved", "batch", 1, True, ["flex"], {"tier": "flex"}]
)
def test_another_tier_is_refused_by_name(route: Route, value: Any) -> None:
    error = refusal(route, service_tier=value)
    assert error.param == "service_tier"
    dialect = Dialect.ANTHROPIC if route is Route.MESSAGES else Dialect.OPENAI
    said = orjson.loads(error_body(error, dialect, "req_1"))["error"]
    assert said["type"] == "invalid_request_error"
    assert "'service_tier'" in said["message"]


@pytest.mark.parametrize("route", UNTIERED)
def test_what_produces_nothing_has_no_tier(route: Route) -> None:
    assert parse(route, service_tier="flex").service_tier is ServiceTier.AUTO
    assert parse(route).service_tier is ServiceTier.AUTO


def test_each_class_has_a_name_on_the_wire_and_a_priority() -> None:
    assert {class_: used_tier(class_) for class_ in CapacityClass} == {
        CapacityClass.RESERVED: b"priority",
        CapacityClass.ON_DEMAND: b"default",
        CapacityClass.FLEX: b"flex",
    }
    assert [anthropic_tier(used_tier(class_)) for class_ in CapacityClass] == ["priority", "standard", "flex"]
