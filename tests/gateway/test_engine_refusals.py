"""A request that only its engine can judge: the caller learns the cause, whole or streamed, in its
dialect, and pays nothing.
"""

import anthropic
import pytest

from billing.wire.ending import Ending
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import Catalogue, StartGateway
from tests.gateway.asking import ask, body, the_event

THINKING = {"max_tokens": 1100, "thinking": {"type": "enabled", "budget_tokens": 1024}}


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_does_not_think_says_so(
    stream: bool, engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.model(chat_template_kwargs=["enable_thinking"])  # its entry promises more than its engine does
    catalogue.instance(engine.url, engine.key)
    limit = {"model": "*", "requests_per_minute": 5, "units_per_minute": 100_000, "concurrency": None}
    key, gateway = catalogue.key(catalogue.tenant("ten_a", limits=[limit])), start_gateway()
    outcome = ask(gateway, key, "messages", stream, **THINKING)
    # vLLM begins a stream before it refuses it; nothing of that is passed on, so there is a status to tell.
    assert outcome.status == 400
    assert outcome.error_code() == "unsupported_value"
    assert outcome.json["error"]["message"] == "This model does not think."
    assert outcome.json["error"]["type"] == "invalid_request_error"
    assert outcome.headers["anthropic-ratelimit-requests-remaining"] == "4"
    assert outcome.headers["anthropic-ratelimit-units-limit"] == "100000"
    assert outcome.headers["anthropic-ratelimit-units-reset"].endswith("Z")
    event = the_event(catalogue, outcome)
    assert event.ending is Ending.REFUSED_BY_ENGINE
    assert event.produced.output == event.billed.prompt == event.units_mu == 0

    with (
        anthropic.Anthropic(base_url=gateway.url, api_key=key, max_retries=0) as client,
        pytest.raises(anthropic.BadRequestError, match="does not think"),
    ):
        client.messages.create(**{**body("messages", stream), **THINKING})


def test_anthropics_limits_are_told_with_a_429_too(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    limit = {"model": "*", "requests_per_minute": 1, "units_per_minute": None, "concurrency": None}
    key, gateway = catalogue.key(catalogue.tenant("ten_a", limits=[limit])), start_gateway()
    served, refused = [ask(gateway, key, "messages") for _ in range(2)]
    assert (served.status, refused.status) == (200, 429)
    assert served.json["model"] == "sim"
    for outcome in (served, refused):
        assert outcome.headers["anthropic-ratelimit-requests-limit"] == "1"
        assert outcome.headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert outcome.headers["x-ratelimit-limit-requests"] == "1"
    assert int(refused.headers["retry-after"]) >= 1
    assert "anthropic-ratelimit-requests-limit" not in ask(gateway, key, "chat").headers
