"""A checked request against a model's context, vocabulary and routes."""

from typing import Any

import pytest

from billing.wire.routes import OFFERED_ROUTES
from gateway.errors import ContextLengthExceeded, GatewayError
from gateway.protocol import check_against_model
from gateway.request import Route
from tests.gateway.protocol.bodies import parse
from tests.gateway.protocol.model_limits import ModelLimits

ROUTES = frozenset(OFFERED_ROUTES)
LIMITS = ModelLimits(
    context_tokens=2048, vocabulary_tokens=1000, chat_template_kwargs=frozenset(), routes=ROUTES
)


def against_model(route: Route, **changes: Any) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        check_against_model(parse(route, **changes), LIMITS)
    return caught.value


@pytest.mark.parametrize(
    ("route", "name"),
    [
        (Route.CHAT, "max_tokens"), (Route.CHAT, "max_completion_tokens"), (Route.COMPLETIONS, "max_tokens"),
        (Route.RESPONSES, "max_output_tokens"), (Route.MESSAGES, "max_tokens"),
    ],
)  # fmt: skip
def test_fault_10_more_output_than_the_context_holds_names_both_numbers(route: Route, name: str) -> None:
    error = against_model(route, **{name: 2049})
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", name)
    assert "2048" in error.message
    assert "2049" in error.message
    check_against_model(parse(route, **{name: 2048}), LIMITS)


@pytest.mark.parametrize("prompt", [[1] * 2000, [[1], [1] * 2000]])
def test_fault_10_a_prompt_of_ids_and_its_output_must_fit_together(prompt: Any) -> None:
    error = against_model(Route.COMPLETIONS, prompt=prompt, max_tokens=49)
    assert isinstance(error, ContextLengthExceeded)
    assert (error.context_tokens, error.requested) == (2048, 2049)
    check_against_model(parse(Route.COMPLETIONS, prompt=prompt, max_tokens=48), LIMITS)


def test_fault_10_a_prompt_of_ids_must_leave_room_for_an_answer() -> None:
    assert against_model(Route.COMPLETIONS, prompt=[1] * 2048).code == "context_length_exceeded"
    check_against_model(parse(Route.COMPLETIONS, prompt=[1] * 2047), LIMITS)
    assert against_model(Route.EMBEDDINGS, input=[1] * 2049).code == "context_length_exceeded"
    check_against_model(parse(Route.EMBEDDINGS, input=[1] * 2048), LIMITS)


@pytest.mark.parametrize(
    ("route", "param", "value"),
    [
        (Route.COMPLETIONS, "prompt", [1, 1000]), (Route.COMPLETIONS, "prompt", [[1], [1000, 2]]),
        (Route.EMBEDDINGS, "input", [1000]),
        (Route.CHAT, "stop_token_ids", [1000]), (Route.CHAT, "allowed_token_ids", [5, 1000]), (Route.CHAT,
        "logit_bias", {"1000": 1, "5": 1}),
    ],
)  # fmt: skip
def test_fault_09_token_ids_over_the_vocabulary_are_refused(route: Route, param: str, value: Any) -> None:
    error = against_model(route, **{param: value})
    assert (error.status, error.param) == (400, param)
    check_against_model(parse(route, **{param: value}), ModelLimits(2048, 1001, frozenset(), ROUTES))
    check_against_model(parse(route, **{param: value}), ModelLimits(2048, None, frozenset(), ROUTES))


@pytest.mark.parametrize("route", Route)
def test_a_route_that_the_model_does_not_offer_is_not_found(route: Route) -> None:
    check_against_model(parse(route), LIMITS)
    with pytest.raises(GatewayError) as caught:
        check_against_model(parse(route), ModelLimits(2048, None, frozenset(), frozenset()))
    assert (caught.value.status, caught.value.code) == (404, "model_route_unsupported")
    assert route.value in caught.value.message


def test_counting_is_served_where_messages_are() -> None:
    check_against_model(
        parse(Route.COUNT_TOKENS), ModelLimits(2048, None, frozenset(), frozenset({"messages"}))
    )
