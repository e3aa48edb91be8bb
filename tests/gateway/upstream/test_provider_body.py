"""What a provider is sent, and that callers can read what it does not know."""

from copy import deepcopy
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
from gateway.upstream.engine_adapter import EngineCall
from gateway.upstream.provider_body import ENGINE_ONLY, cache_marks, provider_body
from tests.gateway.protocol.bodies import SMALLEST, parse
from tests.gateway.upstream.asked import INSTANCE, SALT

PIXEL = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
DOCUMENT = Path(__file__).parents[3] / "docs" / "fields.md"
SERVED = [
    (kind, route)
    for kind in PROVIDERS
    for route in Route
    if ROUTE_FACTS[route].offered_as in KINDS[kind].routes
]


def asked(kind: str, route: Route, default_max_tokens: int | None = None, **fields: Any) -> EngineCall:
    return ADAPTERS[kind].request(
        parse(route, **fields),
        replace(INSTANCE, engine=kind, priority=True),
        request_id="req_1",
        engine_model="big",
        cache_salt=SALT,
        default_max_tokens=default_max_tokens,
        class_=CapacityClass.RESERVED,
        cached_prompt=None,
    )


def sent(kind: str, route: Route, default_max_tokens: int | None = None, **fields: Any) -> dict[str, Any]:
    call = asked(kind, route, default_max_tokens, **fields)
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


@pytest.mark.parametrize("kind", PROVIDERS)
def test_nulls_and_what_is_the_accounts_stay_here(kind: str) -> None:
    """Also of a request that is translated."""
    ours = {"metadata": {"a": "b"}, "prompt_cache_key": "session", "service_tier": "flex"}
    assert sent(kind, Route.CHAT, temperature=None, seed=None, **ours) == sent(kind, Route.CHAT)
    ours = {"metadata": {}, "service_tier": "auto"}
    assert sent(kind, Route.MESSAGES, top_k=None, **ours) == sent(kind, Route.MESSAGES)


@pytest.mark.parametrize(
    ("kind", "route", "fields"),
    [
        (OPENAI, Route.CHAT, {"user": "jane", "safety_identifier": None}),
        (OPENAI, Route.CHAT, {"user": "older", "safety_identifier": "jane"}),
        (OPENAI, Route.COMPLETIONS, {"user": "jane"}),
        (OPENAI, Route.RESPONSES, {"safety_identifier": "jane"}),
        (OPENAI, Route.EMBEDDINGS, {"user": "jane"}),
        (OPENAI, Route.MESSAGES, {"metadata": {"user_id": "jane"}}),
        (ANTHROPIC, Route.MESSAGES, {"metadata": {"user_id": "jane"}}),
        (ANTHROPIC, Route.CHAT, {"user": "jane", "metadata": {"user_id": "not Anthropic's"}}),
    ],
)
def test_a_provider_can_tell_end_users_apart_and_knows_none(
    kind: str, route: Route, fields: dict[str, Any]
) -> None:
    body = sent(kind, route, **fields)
    assert "jane" not in orjson.dumps(body).decode()
    named = body.get("metadata", {}).get("user_id") if kind == ANTHROPIC else None
    named = named or body.get("safety_identifier") or body.get("user")
    # The same one has the same name on every route, another one has another.
    assert named == sent(OPENAI, Route.CHAT, user="jane")["safety_identifier"]
    assert named != sent(OPENAI, Route.CHAT, user="jack")["safety_identifier"]
    assert len(named) == 32


def test_arguments_of_a_call_keep_their_numbers() -> None:
    arguments = '{"a":1.10,"b":12345678901234567890123}'
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    answered = [*said, {"role": "tool", "tool_call_id": "c", "content": "1"}]
    assert arguments.encode() in asked(ANTHROPIC, Route.CHAT, messages=answered).body


def test_the_count_of_an_input_names_no_end_user() -> None:
    assert "safety_identifier" not in sent(OPENAI, Route.INPUT_TOKENS, user="jane")
    assert "metadata" not in sent(ANTHROPIC, Route.COUNT_TOKENS, metadata={"user_id": "jane"})


MARK = {"type": "ephemeral", "ttl": "1h", "scope": "global"}
SENT_MARK = {"type": "ephemeral"}


def test_marks_of_what_is_to_be_cached_go_where_they_were_and_to_messages_alone() -> None:
    text = {"type": "text", "text": "x"}
    tool = {"name": "f", "input_schema": {"type": "object"}}
    fields: dict[str, Any] = {
        "cache_control": MARK,
        "system": [text, text | {"cache_control": MARK}],
        "tools": [{"type": "web_search_20250305", "name": "web"}, tool | {"cache_control": MARK}],
        "messages": [
            {"role": "user", "content": [text | {"cache_control": {"type": "other"}}, text]},
            {"role": "user", "content": [{"type": "image", "cache_control": MARK, "source": PIXEL}]},
        ],
    }
    there = sent(ANTHROPIC, Route.MESSAGES, **deepcopy(fields))
    assert there["cache_control"] == SENT_MARK
    assert there["system"] == [text, text | {"cache_control": SENT_MARK}]
    assert there["tools"] == [tool | {"cache_control": SENT_MARK}]
    assert there["messages"][0]["content"] == [text, text]
    assert there["messages"][1]["content"][0]["cache_control"] == SENT_MARK
    assert "cache_control" in sent(ANTHROPIC, Route.COUNT_TOKENS, **deepcopy(fields))
    assert b"cache_control" not in orjson.dumps(sent(OPENAI, Route.MESSAGES, **deepcopy(fields)))


def test_marks_leave_no_trace_in_the_request() -> None:
    """It may go on to an engine, whose cache needs none."""
    parsed = parse(Route.MESSAGES, cache_control=MARK)
    before = deepcopy(parsed.body)
    with cache_marks(parsed):
        assert parsed.body["cache_control"] == SENT_MARK
    assert parsed.body == before


def test_marks_of_a_chat_go_to_messages() -> None:
    text = {"type": "text", "text": "x", "cache_control": MARK}
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    body = sent(
        ANTHROPIC, Route.CHAT,
        messages=[{"role": "system", "content": [text]}, {"role": "user", "content": [text]}],
        tools=[{"type": "function", "function": function, "cache_control": MARK}],
    )  # fmt: skip
    for marked in (body["system"][0], body["messages"][0]["content"][0], body["tools"][0]):
        assert marked["cache_control"] == SENT_MARK
