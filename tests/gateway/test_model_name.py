"""A caller sees the name that it asked for, on every route and in every event: what the engine calls the
model is the operator's business.
"""

from typing import Any

import pytest

from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import Catalogue, StartGateway
from tests.gateway.asking import EVERY_WAY, PATHS, Outcome, ask, body

ASKED = "public/name"
SERVED = "engine-side-name"


@pytest.fixture
def served(make_engine: EngineMaker, catalogue: Catalogue) -> SimEngine:
    """An engine that calls the model by another name."""
    engine = make_engine(model=SERVED)
    routes = ["chat", "completions", "responses", "messages", "tokenize"]
    catalogue.model(ASKED, engine_model=SERVED, routes=routes)
    catalogue.instance(engine.url, engine.key, model=ASKED)
    return engine


def names(said: Any) -> set[str]:
    """Every model that an answer names."""
    if isinstance(said, list):
        return set().union(*map(names, said))
    if not isinstance(said, dict):
        return set()
    inner = set().union(*map(names, said.values()))
    return inner | {said["model"]} if "model" in said else inner


def said(outcome: Outcome) -> list[dict[str, Any]]:
    return outcome.events or [outcome.json]


@pytest.mark.parametrize(("route", "stream"), EVERY_WAY)
def test_every_answer_and_event_says_the_name_that_was_asked_for(
    route: str, stream: bool, served: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    more = {"stream_options": {"include_usage": True}} if stream and route in {"chat", "completions"} else {}
    outcome = ask(gateway, key, route, stream, model=ASKED, **more)
    assert outcome.status == 200, outcome.text
    assert names(said(outcome)) == {ASKED}
    if route in {"chat", "completions"}:
        assert all(event["model"] == ASKED for event in said(outcome))
    assert SERVED not in outcome.text + repr(outcome.headers)
    assert served.requests()[-1]["body"]["model"] == SERVED


@pytest.mark.parametrize("stream", [False, True])
def test_text_that_holds_the_engines_name_stays(
    stream: bool, served: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    prompt = f'"model":"{SERVED}","reasoning":null '
    outcome = ask(gateway, key, "completions", stream, model=ASKED, prompt=prompt, echo=True)
    assert "".join(event["choices"][0]["text"] for event in said(outcome)).startswith(prompt)
    assert names(said(outcome)) == {ASKED}


@pytest.mark.parametrize(("route", "stream"), EVERY_WAY)
def test_no_refusal_of_the_engine_names_it(
    route: str, stream: bool, served: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    served.faults("status", 404, count=None)
    outcome = ask(gateway, key, route, stream, model=ASKED)
    assert outcome.status >= 400
    assert SERVED not in outcome.text
    with gateway.client(key) as client:
        unknown = client.post(PATHS[route], json=body(route, stream, model=SERVED))
    assert unknown.status_code == 404  # under that name nobody can ask for it


def test_no_member_of_an_answer_is_an_engines_empty_one(
    served: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    for route, stream in EVERY_WAY:
        for one in said(ask(gateway, key, route, stream, model=ASKED)):
            assert nulls(one) <= VENDORS_NULLS, (route, stream, nulls(one))


# What OpenAI and Anthropic send as null themselves.
VENDORS_NULLS = {
    "content", "description", "finish_reason", "incomplete_details", "instructions", "logprobs",
    "max_tool_calls", "metadata", "previous_response_id", "prompt", "reasoning", "refusal", "stop_reason",
    "stop_sequence", "strict", "top_logprobs", "usage", "user",
}  # fmt: skip


def nulls(value: Any) -> set[str]:
    """The names of all members that are null."""
    if isinstance(value, list):
        return set().union(*map(nulls, value))
    if not isinstance(value, dict):
        return set()
    return {name for name, one in value.items() if one is None}.union(*map(nulls, value.values()))
