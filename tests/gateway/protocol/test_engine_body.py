"""What an engine is sent, and what it never sees."""

from typing import Any

import orjson
import pytest

from gateway.protocol import engine_body, engine_headers, with_priority
from gateway.request import ParsedRequest, Route
from tests.gateway.protocol.bodies import SMALLEST, parse

SALT = "ab" * 32


def for_engine(
    parsed: ParsedRequest, *, priority: int | None = None, default_max_tokens: int | None = None
) -> dict[str, Any]:
    request_id = "resp_1" if parsed.route.name is Route.RESPONSES else "req_1"
    raw = engine_body(
        parsed,
        engine_model="engine-m",
        request_id=request_id,
        cache_salt=SALT,
        priority=priority,
        default_max_tokens=default_max_tokens,
    )
    body: dict[str, Any] = orjson.loads(raw)
    return body


@pytest.mark.parametrize("route", Route)
def test_the_model_is_the_engines_and_the_callers_body_stays_as_it_was(route: Route) -> None:
    parsed = parse(route)
    assert for_engine(parsed, priority=3, default_max_tokens=9)["model"] == "engine-m"
    assert parsed.body == SMALLEST[route]


@pytest.mark.parametrize("route", [Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES, Route.EMBEDDINGS])
def test_every_route_with_a_prefix_cache_is_salted(route: Route) -> None:
    assert for_engine(parse(route))["cache_salt"] == SALT


@pytest.mark.parametrize("route", [Route.MESSAGES, Route.COUNT_TOKENS])
def test_an_edit_of_the_context_that_changes_nothing_stays_here(route: Route) -> None:
    edits = [{"type": "clear_thinking_20251015", "keep": "all"}]
    assert for_engine(parse(route, context_management={"edits": edits})) == for_engine(parse(route))


def test_no_body_is_made_without_a_salt() -> None:
    with pytest.raises(AssertionError):
        engine_body(
            parse(Route.CHAT), engine_model="m", request_id="r", cache_salt="", priority=None, default_max_tokens=None
        )


@pytest.mark.parametrize("route", [Route.CHAT, Route.COMPLETIONS])
def test_streams_report_usage_on_every_chunk_whatever_the_caller_asked(route: Route) -> None:
    usage = {"include_usage": True, "continuous_usage_stats": True}
    assert for_engine(parse(route, stream=True))["stream_options"] == usage
    assert for_engine(parse(route, stream=True, stream_options={"include_usage": False}))["stream_options"] == usage
    assert "stream_options" not in for_engine(parse(route))


def test_a_response_has_our_id_and_is_not_stored() -> None:
    body = for_engine(
        parse(Route.RESPONSES, metadata={"a": "b"}, stream=True, stream_options={"include_obfuscation": True})
    )
    assert (body["request_id"], body["store"], body["metadata"]) == ("resp_1", False, {"a": "b"})
    assert "stream_options" not in body


@pytest.mark.parametrize("route", Route)
def test_a_priority_is_put_into_a_body_that_is_made_already(route: Route) -> None:
    parsed = parse(route)
    without = orjson.dumps(for_engine(parsed))
    assert orjson.loads(with_priority(parsed, without, 20)) == for_engine(parsed, priority=20)


def test_priority_is_in_the_body_or_on_messages_in_a_header() -> None:
    for route in (Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.EMBEDDINGS):
        assert for_engine(parse(route), priority=-7)["priority"] == -7
        assert "priority" not in for_engine(parse(route))
        assert engine_headers(parse(route), priority=-7) == []
    assert "priority" not in for_engine(parse(Route.MESSAGES), priority=-7)
    assert engine_headers(parse(Route.MESSAGES), priority=-7) == [(b"x-vllm-priority", b"-7")]
    assert engine_headers(parse(Route.MESSAGES), priority=None) == []


def test_what_is_the_accounts_stays_here() -> None:
    account = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "flex",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
    }
    assert not set(account) & set(for_engine(parse(Route.CHAT, **account)))
    messages = for_engine(
        parse(Route.MESSAGES, metadata={"user_id": "u"}, service_tier="auto", cache_control={"type": "ephemeral"})
    )
    assert set(messages) == {"model", "messages", "max_tokens", "cache_salt"}


def test_nulls_and_values_without_effect_are_left_out() -> None:
    body = for_engine(
        parse(
            Route.CHAT,
            temperature=None,
            n=None,
            min_tokens=None,
            modalities=["text"],
            verbosity="medium",
            echo=False,
            cache_salt=None,
        )
    )
    assert set(body) == {"model", "messages", "cache_salt"}
    assert for_engine(parse(Route.COMPLETIONS, echo=True, best_of=1))["echo"] is True


@pytest.mark.parametrize(
    ("route", "name"),
    [(Route.CHAT, "max_tokens"), (Route.COMPLETIONS, "max_tokens"), (Route.RESPONSES, "max_output_tokens")],
)
def test_fault_10_a_missing_max_tokens_becomes_the_policys_default(route: Route, name: str) -> None:
    assert for_engine(parse(route), default_max_tokens=20)[name] == 20
    assert for_engine(parse(route, **{name: 5}), default_max_tokens=20)[name] == 5
    assert name not in for_engine(parse(route))


def test_the_default_gives_way_to_min_tokens_and_to_the_newer_name() -> None:
    assert for_engine(parse(Route.CHAT, min_tokens=30), default_max_tokens=20)["max_tokens"] == 30
    assert "max_tokens" not in for_engine(parse(Route.CHAT, max_completion_tokens=5), default_max_tokens=20)


@pytest.mark.parametrize("route", [Route.EMBEDDINGS, Route.COUNT_TOKENS, Route.TOKENIZE])
def test_routes_that_generate_nothing_get_no_default(route: Route) -> None:
    assert "max_tokens" not in for_engine(parse(route), default_max_tokens=20)
