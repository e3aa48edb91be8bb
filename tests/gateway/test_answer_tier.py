"""The tier in answers: said once, where the dialect says it, and nothing else of an answer changes. Fed with what vLLM 0.32 sends."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.usage_event import CapacityClass
from gateway.answer_tier import chunk_told, whole_told
from gateway.meter import Meter, ProtocolViolation
from gateway.meter_for import meter_for
from gateway.meter_plain import PlainMeter
from gateway.protocol import used_tier
from gateway.request import Route
from tests.gateway.protocol.bodies import parse

TIERS = [used_tier(class_) for class_ in CapacityClass]
# What a tenant may have written anywhere, to look like the member itself.
TRICK = '"service_tier":null,"object":"chat.completion.chunk" service_tier'


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose members all have names of their own."""
    assert len({name for name, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


def read(raw: bytes) -> Any:
    return json.loads(raw, object_pairs_hook=once)


def events(raw: bytes) -> list[Any]:
    """What the data lines of a stream say."""
    lines = [line for line in raw.split(b"\n") if line.startswith(b"data: ") and line != b"data: [DONE]"]
    return [read(line[6:]) for line in lines]


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def chunk(text: str, tokens: int, finish: str | None = None, **more: object) -> bytes:
    usage = {"prompt_tokens": 5, "total_tokens": 5 + tokens, "completion_tokens": tokens}
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + compact({**head, "choices": [choice], **more, "usage": usage}) + b"\n\n"


def total(tokens: int) -> bytes:
    usage = {"prompt_tokens": 5, "total_tokens": 5 + tokens, "completion_tokens": tokens}
    return b"data: " + compact({"id": "c", "choices": [], "usage": usage}) + b"\n\ndata: [DONE]\n\n"


def event(kind: str, **fields: object) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + compact({"type": kind, **fields}) + b"\n\n"


def told_meter(route: Route, tier: bytes | None, **changes: Any) -> Meter:
    return meter_for(parse(route, **changes), tier)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("route", [Route.CHAT, Route.COMPLETIONS])
def test_each_chunk_says_the_tier_and_is_else_the_same(route: Route, tier: bytes) -> None:
    raw = b": ping\n\n" + chunk("a", 1) + chunk(TRICK, 2) + chunk("", 3, "stop") + total(3)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    plain, told = told_meter(route, None, **options), told_meter(route, tier, **options)
    before, after = events(plain.feed(raw)), events(told.feed(raw))
    assert len(after) == 4
    assert after == [{**one, "service_tier": tier.decode()} for one in before]
    assert told.produced() == plain.produced()
    assert told.finished
    assert told.exact


def test_each_chunk_of_several_samples_says_the_tier() -> None:
    reader = told_meter(Route.CHAT, b"flex", stream=True, n=2)
    passed = events(reader.feed(chunk("a", 1) + chunk("b", 1).replace(b'"index":0', b'"index":1')))
    assert [one["service_tier"] for one in passed] == ["flex", "flex"]


def test_an_engines_own_tier_is_replaced() -> None:
    for own in (None, "scale", {"service_tier": 1}):
        reader = told_meter(Route.CHAT, b"priority", stream=True)
        raw = chunk("a", 1, service_tier=own) + chunk("b", 2, "stop", service_tier=own)
        assert [one["service_tier"] for one in events(reader.feed(raw))] == ["priority", "priority"]


def test_without_a_tier_the_bytes_stay_as_they_are() -> None:
    reader = told_meter(
        Route.CHAT, None, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}
    )
    raw = chunk("a", 1, service_tier="scale") + total(1).removesuffix(b"data: [DONE]\n\n")
    assert reader.feed(raw) == raw


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    | st.sampled_from(["service_tier", TRICK]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("service_tier"), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
json_objects = st.dictionaries(st.text() | st.sampled_from(["service_tier", "usage", "id"]), json_values, max_size=4)


@given(json_objects, st.sampled_from(TIERS), st.booleans())
def test_whatever_a_chunk_holds_only_its_tier_changes(said: dict[str, Any], tier: bytes, spaced: bool) -> None:
    raw = json.dumps(said).encode() if spaced else compact(said)
    assert events(chunk_told(b"data: " + raw, tier)) == [{**said, "service_tier": tier.decode()}]


@given(json_objects, st.sampled_from(TIERS), st.booleans())
def test_whatever_an_answer_holds_only_its_tier_changes(said: dict[str, Any], tier: bytes, spaced: bool) -> None:
    raw = json.dumps(said).encode() if spaced else compact(said)
    assert read(whole_told(raw, json.loads(raw), Route.CHAT, tier)) == {**said, "service_tier": tier.decode()}


def test_a_chunk_that_is_no_json_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation):
        chunk_told(b'data: {"service_tier"', b"flex")
    assert chunk_told(b": \n", b"flex") == b": \n"


def whole(route: Route, answer: dict[str, Any], tier: bytes | None) -> bytes:
    reader = told_meter(route, tier)
    assert isinstance(reader, PlainMeter)
    reader.feed(compact(answer))
    passed = reader.close()
    assert reader.exact or route in {Route.COUNT_TOKENS, Route.TOKENIZE}
    return passed


CHAT_USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
TYPED_USAGE = {"input_tokens": 5, "output_tokens": 2}
CHOICE = {"index": 0, "message": {"role": "assistant", "content": TRICK}, "finish_reason": "stop"}


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    ("route", "answer"),
    [
        (Route.CHAT, {"id": "c", "choices": [CHOICE], "service_tier": None, "usage": CHAT_USAGE}),
        (Route.COMPLETIONS, {"id": "c", "choices": [{"text": TRICK}], "service_tier": None, "usage": CHAT_USAGE}),
        (Route.RESPONSES, {"id": "r", "metadata": {"service_tier": "mine"}, "service_tier": "auto", "usage": TYPED_USAGE}),
        (Route.EMBEDDINGS, {"id": "e", "data": [{"embedding": [0.1, -1e-05]}], "usage": CHAT_USAGE}),
    ],
)  # fmt: skip
def test_a_whole_answer_says_the_tier_beside_its_usage(route: Route, answer: dict[str, Any], tier: bytes) -> None:
    assert read(whole(route, answer, tier)) == {**answer, "service_tier": tier.decode()}
    assert whole(route, answer, None) == compact(answer)


def test_the_numbers_of_an_embedding_are_not_written_again() -> None:
    answer = {"data": [{"embedding": [0.1, 2.0]}], "usage": CHAT_USAGE}
    assert whole(Route.EMBEDDINGS, answer, b"flex") == b'{"service_tier":"flex",' + compact(answer)[1:]


@pytest.mark.parametrize(("tier", "word"), [(b"priority", "priority"), (b"default", "standard"), (b"flex", "flex")])
def test_a_message_says_the_tier_in_its_usage(tier: bytes, word: str) -> None:
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"service_tier": None}}
    answer = {"id": "m", "content": [use], "usage": TYPED_USAGE}
    assert read(whole(Route.MESSAGES, answer, tier)) == {**answer, "usage": {**TYPED_USAGE, "service_tier": word}}


def test_an_answer_nested_deeper_than_can_be_written_stays_as_it_is() -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    answer = {"content": [{"type": "tool_use", "input": {"x": deep}}], "usage": TYPED_USAGE}
    assert whole(Route.MESSAGES, answer, b"flex") == compact(answer)


@pytest.mark.parametrize("route", [Route.COUNT_TOKENS, Route.TOKENIZE])
def test_what_produces_nothing_says_no_tier(route: Route) -> None:
    assert whole(route, {"count": 5}, b"default") == compact({"count": 5})


def test_a_streamed_message_says_the_tier_where_it_starts() -> None:
    start = {"id": "m", "usage": {"input_tokens": 5, "output_tokens": 0}}
    rest = (
        event("content_block_delta", delta={"type": "text_delta", "text": TRICK}, index=0)
        + event("message_delta", delta={"stop_reason": "end_turn"}, usage=TYPED_USAGE)
        + event("message_stop")
    )
    reader = told_meter(Route.MESSAGES, b"default", stream=True)
    passed = reader.feed(event("message_start", message=start) + rest)
    assert passed.startswith(b"event: message_start\ndata: {")
    assert passed.endswith(rest)
    assert events(passed)[0]["message"] == {
        "id": "m",
        "usage": {"input_tokens": 5, "output_tokens": 0, "service_tier": "standard"},
    }
    assert reader.exact


def test_a_streamed_response_says_the_tier_wherever_it_shows_itself() -> None:
    shown = {"id": "resp_1", "metadata": {"service_tier": "mine"}, "service_tier": "auto", "usage": None}
    delta = event("response.output_text.delta", delta=TRICK, sequence_number=2)
    raw = (
        event("response.created", response=shown, sequence_number=0)
        + event("response.in_progress", response=shown, sequence_number=1)
        + delta
        + event("response.completed", response={**shown, "usage": TYPED_USAGE}, sequence_number=3)
    )
    reader = told_meter(Route.RESPONSES, b"flex", stream=True)
    before, passed = events(raw), reader.feed(raw)
    for one in before:
        if "response" in one:
            one["response"]["service_tier"] = "flex"
    assert events(passed) == before
    assert delta in passed
    assert reader.finished
    assert reader.exact
