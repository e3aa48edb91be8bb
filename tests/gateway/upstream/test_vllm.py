"""What an engine is sent, and what it never sees."""

from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from billing.wire.usage_event import CapacityClass
from gateway.request import Route
from gateway.upstream import vllm
from tests.gateway.protocol.bodies import SMALLEST, parse
from tests.gateway.upstream.asked import SALT, body_for, call_for


@pytest.mark.parametrize("route", Route)
def test_the_model_is_the_engines_and_the_callers_body_stays_as_it_was(route: Route) -> None:
    parsed = parse(route)
    assert body_for(parsed, by_priority=True, default_max_tokens=9)["model"] == "engine-m"
    assert parsed.body == SMALLEST[route]


@pytest.mark.parametrize(
    "route", [Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES, Route.EMBEDDINGS]
)
def test_every_route_with_a_prefix_cache_is_salted(route: Route) -> None:
    assert body_for(parse(route))["cache_salt"] == SALT


@pytest.mark.parametrize("route", [Route.MESSAGES, Route.COUNT_TOKENS])
def test_an_edit_of_the_context_that_changes_nothing_stays_here(route: Route) -> None:
    edits = [{"type": "clear_thinking_20251015", "keep": "all"}]
    assert body_for(parse(route, context_management={"edits": edits})) == body_for(parse(route))


def test_no_body_is_made_without_a_salt() -> None:
    with pytest.raises(AssertionError):
        call_for(parse(Route.CHAT), cache_salt="")


@pytest.mark.parametrize("route", [Route.CHAT, Route.COMPLETIONS])
def test_streams_report_usage_on_every_chunk_whatever_the_caller_asked(route: Route) -> None:
    usage = {"include_usage": True, "continuous_usage_stats": True}
    assert body_for(parse(route, stream=True))["stream_options"] == usage
    assert (
        body_for(parse(route, stream=True, stream_options={"include_usage": False}))["stream_options"]
        == usage
    )
    assert "stream_options" not in body_for(parse(route))


def test_a_response_has_our_id_and_is_not_stored() -> None:
    body = body_for(
        parse(Route.RESPONSES, metadata={"a": "b"}, stream=True, stream_options={"include_obfuscation": True})
    )
    assert (body["request_id"], body["store"], body["metadata"]) == ("resp_1", False, {"a": "b"})
    assert "stream_options" not in body


@pytest.mark.parametrize("route", [Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.EMBEDDINGS])
def test_an_engine_that_schedules_by_priority_is_told_it_in_the_body(route: Route) -> None:
    assert body_for(parse(route), by_priority=True)["priority"] == 10
    assert "priority" not in body_for(parse(route))
    assert call_for(parse(route), by_priority=True).headers == b"x-request-id: req_1\r\n"


def test_priority_of_a_message_is_in_a_header() -> None:
    parsed = parse(Route.MESSAGES)
    assert "priority" not in body_for(parsed, by_priority=True)
    headers = [call_for(parsed, by_priority=True, class_=class_).headers for class_ in CapacityClass]
    assert headers == [
        b"x-request-id: req_1\r\nx-vllm-priority: %d\r\n" % priority for priority in (0, 10, 20)
    ]
    assert call_for(parsed).headers == b"x-request-id: req_1\r\n"


@pytest.mark.parametrize("route", [Route.COUNT_TOKENS, Route.TOKENIZE, Route.INPUT_TOKENS])
def test_what_is_only_counted_is_not_scheduled(route: Route) -> None:
    call = call_for(parse(route), by_priority=True)
    assert call.headers == b"x-request-id: req_1\r\n"
    assert not {"priority", "cache_salt"} & orjson.loads(call.body).keys()


@pytest.mark.parametrize(
    ("route", "changes", "ids"),
    [
        (Route.CHAT, {"n": 2}, ["chatcmpl-req_1"]),
        (Route.MESSAGES, {}, ["chatcmpl-req_1"]),
        (Route.COMPLETIONS, {"prompt": ["a", "b"]}, ["cmpl-req_1-0", "cmpl-req_1-1"]),
        (Route.EMBEDDINGS, {"input": ["a", "b"]}, ["embd-req_1-0", "embd-req_1-1"]),
        (Route.RERANK, {"documents": ["a"]}, ["score-req_1-0", "score-req_1-1"]),
        (Route.SCORE, {}, ["score-req_1-0", "score-req_1-1"]),
        (Route.RESPONSES, {}, ["resp_1_0"]),
    ],
)
def test_a_request_is_stopped_by_all_its_ids(route: Route, changes: dict[str, Any], ids: list[str]) -> None:
    call = vllm.abort(parse(route, **changes), "req_1")
    assert call.path == b"/inference/v1/abort_requests"
    assert orjson.loads(call.body) == {"request_ids": ids}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"requests":{}}',
        b'{"requests":{"req_1":["running",1,0]}}',
        b'{"requests":{"req_1":["running",-1,0,0]}}',
        b'{"requests":{"req_1":["running",1,2,0]}}',
        b'{"requests":{"req_1":[1,1,0,0]}}',
    ],
)
def test_a_count_that_cannot_be_believed_is_none(answer: bytes) -> None:
    assert vllm.read_count(answer, "req_1") is None


def test_a_count_says_whether_more_may_come() -> None:
    known = [
        (state, vllm.read_count(b'{"requests":{"req_1":["%b",5,2,3]},"age_ms":10}' % state, "req_1"))
        for state in (b"running", b"finished", b"unknown")
    ]
    told = {state: (count.finished, count.known) for state, count in known if count is not None}
    assert told == {b"running": (False, True), b"finished": (True, True), b"unknown": (True, False)}
    assert all(
        count is not None and (count.prompt, count.cached, count.output) == (5, 2, 3) for _, count in known
    )


def test_what_is_the_accounts_stays_here() -> None:
    account = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "flex",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
    }
    assert not set(account) & set(body_for(parse(Route.CHAT, **account)))
    messages = body_for(
        parse(
            Route.MESSAGES,
            metadata={"user_id": "u"},
            service_tier="auto",
            cache_control={"type": "ephemeral"},
        )
    )
    assert set(messages) == {"model", "messages", "max_tokens", "cache_salt"}


def test_nulls_and_values_without_effect_are_left_out() -> None:
    body = body_for(
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
    assert body_for(parse(Route.COMPLETIONS, echo=True, best_of=1))["echo"] is True


@pytest.mark.parametrize(
    ("route", "name"),
    [(Route.CHAT, "max_tokens"), (Route.COMPLETIONS, "max_tokens"), (Route.RESPONSES, "max_output_tokens")],
)
def test_fault_10_a_missing_max_tokens_becomes_the_policys_default(route: Route, name: str) -> None:
    assert body_for(parse(route), default_max_tokens=20)[name] == 20
    assert body_for(parse(route, **{name: 5}), default_max_tokens=20)[name] == 5
    assert name not in body_for(parse(route))


def test_the_default_gives_way_to_min_tokens_and_to_the_newer_name() -> None:
    assert body_for(parse(Route.CHAT, min_tokens=30), default_max_tokens=20)["max_tokens"] == 30
    assert "max_tokens" not in body_for(parse(Route.CHAT, max_completion_tokens=5), default_max_tokens=20)


@pytest.mark.parametrize("route", [Route.EMBEDDINGS, Route.COUNT_TOKENS, Route.TOKENIZE])
def test_routes_that_generate_nothing_get_no_default(route: Route) -> None:
    assert "max_tokens" not in body_for(parse(route), default_max_tokens=20)


def test_what_an_answer_must_begin_with_is_enforced_by_the_engine() -> None:
    parsed = replace(parse(Route.CHAT, stream=True), begins_with=" a+b")
    assert body_for(parsed)["structured_outputs"] == {"regex": r"\ a\+b[\s\S]*"}
    assert "structured_outputs" not in body_for(parse(Route.CHAT, stream=True))
