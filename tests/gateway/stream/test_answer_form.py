"""The form of answers: the model as it was asked for, the tier, no empty extras; what was generated stays.
Fed with what vLLM 0.32 sends.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.wire.usage_event import CapacityClass
from gateway.protocol import used_tier
from gateway.request import Route
from gateway.routes import ROUTES
from gateway.stream.answer_form import answer_written
from gateway.stream.meter import Meter
from gateway.stream.meter_for import meter_for
from gateway.stream.meter_plain import PlainMeter
from tests.gateway.protocol.bodies import parse

TIERS = [used_tier(class_) for class_ in CapacityClass]
ASKED = 'asked "for"'
SERVED = "/srv/engine-side-name"
# What a model may write, to look like members of an answer.
TRICK = (
    f'"service_tier":null,"model":"{SERVED}","reasoning":null,"finish_reason":null,"token_ids":null}}]}} '
    "service_tier"
)
# Where a vendor sends null itself.
KEPT = {"finish_reason", "logprobs", "content", "refusal"}
CHAT_USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
TYPED_USAGE = {"input_tokens": 5, "output_tokens": 2}


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


def chat_chunk(delta: object, tokens: int, finish: str | None = None, **more: object) -> dict[str, Any]:
    """As vLLM writes one, with continuous usage."""
    ended = {} if finish is None else {"stop_reason": None}
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": None,
        "finish_reason": finish,
        **ended,
        "token_ids": None,
    }
    usage = {
        "prompt_tokens": 5,
        "total_tokens": 5 + tokens,
        "completion_tokens": tokens,
        "completion_tokens_details": None,
    }
    head = {"id": "chatcmpl-req_1", "object": "chat.completion.chunk", "created": 1, "model": SERVED}
    return {**head, "choices": [choice], "usage": usage, **more}


def text_chunk(text: str, tokens: int, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}
    usage = {"prompt_tokens": 5, "total_tokens": 5 + tokens, "completion_tokens": tokens}
    head = {"id": "cmpl-req_1", "object": "text_completion", "created": 1, "model": SERVED}
    return {**head, "choices": [choice | {"prompt_token_ids": None, "token_ids": None}], "usage": usage}


def total(tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 5, "total_tokens": 5 + tokens, "completion_tokens": tokens}
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": SERVED,
        "choices": [],
        "usage": usage,
    }


def data(*chunks: dict[str, Any]) -> bytes:
    return b"".join([b"data: " + compact(one) + b"\n\n" for one in chunks])


def event(kind: str, **fields: object) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + compact({"type": kind, **fields}) + b"\n\n"


def without_extras(value: Any) -> Any:
    """What is left of an answer of chat or completions: no null that no vendor sends."""
    if isinstance(value, list):
        return [without_extras(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: without_extras(one) for name, one in value.items() if one is not None or name in KEPT}


def meter(route: Route, tier: bytes | None = None, **changes: Any) -> Meter:
    return meter_for(parse(route, model=ASKED, **changes), tier)


STREAMS = {
    Route.CHAT: [
        chat_chunk({"role": "assistant", "content": ""}, 0, prompt_token_ids=None, prompt_text=None),
        *(chat_chunk({"content": text}, at) for at, text in enumerate(("a", TRICK, "b"), 1)),
        chat_chunk({"reasoning": None, "x": None, "content": TRICK}, 4),
        chat_chunk({"content": None, "tool_calls": [{"index": 0, "function": {"arguments": TRICK}}]}, 5),
        chat_chunk({}, 6, "stop"),
    ],
    Route.COMPLETIONS: [*(text_chunk(text, at) for at, text in enumerate(("a", TRICK, "b"), 1)),
    text_chunk("", 6, "length")],
}  # fmt: skip


@pytest.mark.parametrize("tier", [None, *TIERS])
@pytest.mark.parametrize("route", STREAMS)
def test_each_chunk_says_model_and_tier_and_has_no_empty_extras(route: Route, tier: bytes | None) -> None:
    told = {} if tier is None else {"service_tier": tier.decode()}
    reader = meter(route, tier, stream=True, stream_options={"include_usage": True})
    passed = events(reader.feed(b": ping\n\n" + data(*STREAMS[route], total(6)) + b"data: [DONE]\n\n"))
    sent = [{name: value for name, value in one.items() if name != "usage"} for one in STREAMS[route]] + [
        total(6)
    ]
    assert passed == [without_extras(one) | {"model": ASKED} | told for one in sent]
    assert reader.finished
    assert reader.exact


@given(
    st.lists(st.text() | st.sampled_from([TRICK, '"token_ids":null', ',"x":null']), max_size=6), st.booleans()
)
def test_no_text_is_taken_for_a_member(texts: list[str], logprobs: bool) -> None:
    reader = meter(Route.CHAT, b"flex", stream=True)
    for at, text in enumerate(texts, 1):
        said = chat_chunk({"content": text}, at)
        if logprobs:
            said["choices"][0]["logprobs"] = {
                "content": [{"token": text, "logprob": -1.0, "bytes": [1], "top_logprobs": []}]
            }
        (written,) = events(reader.feed(data(said)))
        del said["usage"]
        assert written == without_extras(said) | {"model": ASKED, "service_tier": "flex"}
        assert reader.produced().output == at


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (Route.CHAT, b'"delta":{"content":%b}'),
        (Route.CHAT, b'"delta":{"reasoning":%b}'),
        (Route.CHAT, b'"delta":{"tool_calls":[{"index":0,"function":{"arguments":%b}}]}'),
        (Route.COMPLETIONS, b'"text":%b,"logprobs":null'),
    ],
)
def test_text_in_mid_stream_is_passed_on_byte_by_byte(route: Route, said: bytes) -> None:
    chunk = data(chat_chunk({"content": "a"}, 1) if route is Route.CHAT else text_chunk("a", 1))
    opening, end = chunk.split(b'"index":0,')[0] + b'"index":0,', chunk[chunk.index(b',"finish_reason"') :]
    text = said % b'"\\u00e9 \\" \\\\"'
    reader = meter(route, stream=True)
    reader.feed(chunk)
    passed = reader.feed(opening + text + end.replace(b'_tokens":1', b'_tokens":2'))
    assert text in passed
    assert reader.produced().output == 2


def test_each_chunk_of_several_samples_says_it_too() -> None:
    reader = meter(Route.CHAT, b"flex", stream=True, n=2)
    second = chat_chunk({"content": "b"}, 1)
    second["choices"][0]["index"] = 1
    passed = events(reader.feed(data(chat_chunk({"content": "a"}, 1), second)))
    assert [(one["model"], one["service_tier"]) for one in passed] == [(ASKED, "flex")] * 2


def test_an_engines_own_tier_is_replaced() -> None:
    for own in (None, "scale", {"service_tier": 1}):
        reader = meter(Route.CHAT, b"priority", stream=True)
        raw = data(
            chat_chunk({"content": "a"}, 1, service_tier=own), chat_chunk({}, 2, "stop", service_tier=own)
        )
        assert [one["service_tier"] for one in events(reader.feed(raw))] == ["priority", "priority"]


def test_a_stream_of_another_kind_of_engine_says_it_too() -> None:
    reader = meter(Route.CHAT, b"flex", stream=True)
    head = {"model": SERVED, "id": "c", "system_fingerprint": None, "service_tier": "auto"}
    sent = [
        {**head, "choices": [{"index": 0, "delta": {"reasoning_content": None, "content": text}}]}
        for text in "ab"
    ]
    raw = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in sent)
    choices = [[{"index": 0, "delta": {"content": text}}] for text in "ab"]
    assert events(reader.feed(raw)) == [
        {"model": ASKED, "id": "c", "service_tier": "flex", "choices": one} for one in choices
    ]


def test_reasoning_that_says_something_is_passed_on() -> None:
    said = chat_chunk({"reasoning": "hm", "reasoning_content": "hm"}, 1)
    (passed,) = events(meter(Route.CHAT, stream=True).feed(data(said)))
    assert passed["choices"][0]["delta"] == {"reasoning": "hm", "reasoning_content": "hm"}


# Whole answers


def whole(route: Route, answer: dict[str, Any], tier: bytes | None = None) -> bytes:
    reader = meter(route, tier)
    assert isinstance(reader, PlainMeter)
    reader.feed(compact(answer))
    passed = reader.close()
    assert reader.exact or route in {Route.COUNT_TOKENS, Route.TOKENIZE}
    return passed


CHAT_MESSAGE = {
    "role": "assistant", "content": TRICK, "refusal": None, "annotations": None, "audio": None,
    "function_call": None, "tool_calls": [], "reasoning": None,
}  # fmt: skip
CHAT_CHOICE = {
    "index": 0, "message": CHAT_MESSAGE, "logprobs": None, "finish_reason": "stop", "stop_reason": None,
    "token_ids": None, "routed_experts": None,
}  # fmt: skip
CHAT = {
    "id": "c", "object": "chat.completion", "created": 1, "model": SERVED, "choices": [CHAT_CHOICE],
    "service_tier": None, "system_fingerprint": "f",
    "usage": CHAT_USAGE | {
        "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": 3, "multimodal_tokens": None},
        "completion_tokens_details": None,
    },
    "prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None, "kv_transfer_params": None,
    "ec_transfer_params": None, "metrics": None,
}  # fmt: skip


@pytest.mark.parametrize("tier", [None, *TIERS])
def test_a_whole_chat_answer_has_what_openai_sends(tier: bytes | None) -> None:
    told = {} if tier is None else {"service_tier": tier.decode()}
    choice = {"index": 0, "logprobs": None, "finish_reason": "stop"}
    message = {"role": "assistant", "content": TRICK, "refusal": None}
    usage = {**CHAT_USAGE, "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": 3}}
    assert read(whole(Route.CHAT, CHAT, tier)) == {
        "id": "c", "object": "chat.completion", "created": 1, "model": ASKED, "system_fingerprint": "f",
        "choices": [choice | {"message": message}], "usage": usage, **told,
    }  # fmt: skip


def test_what_an_engine_says_beside_the_answer_is_kept_where_it_says_something() -> None:
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": TRICK}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "stop_reason": "END"}
    (passed,) = read(whole(Route.CHAT, CHAT | {"choices": [choice]}))["choices"]
    assert passed == choice


def test_a_whole_completion_has_what_openai_sends() -> None:
    extras = dict.fromkeys(
        ("stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts")
    )
    choice = {"index": 0, "text": TRICK, "logprobs": None, "finish_reason": "length"}
    answer = {"id": "c", "model": SERVED, "choices": [choice | extras], "metrics": None, "usage": CHAT_USAGE}
    assert read(whole(Route.COMPLETIONS, answer)) == {
        "id": "c", "model": ASKED, "choices": [choice], "usage": CHAT_USAGE,
    }  # fmt: skip


RESPONSE = {
    "id": "resp_1", "model": SERVED, "instructions": None, "metadata": {"service_tier": "mine",
    "model": SERVED}, "previous_response_id": None,
    "service_tier": "auto", "text": None, "kv_transfer_params": None, "input_messages": None, "usage": None,
    "tools": [{"type": "function", "name": "f", "strict": None, "parameters": {"x": None}, "async": None,
    "output_schema": None}],
}  # fmt: skip
RESPONSE_WRITTEN = {
    "id": "resp_1", "model": ASKED, "instructions": None, "metadata": {"service_tier": "mine",
    "model": SERVED}, "previous_response_id": None,
    "service_tier": "flex", "usage": None, "tools": [{"type": "function", "name": "f", "strict": None,
    "parameters": {"x": None}}],
}  # fmt: skip
PART = {"annotations": [], "text": TRICK, "type": "output_text"}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
CALL = {
    "id": "fc_1",
    "type": "function_call",
    "name": "f",
    "arguments": '{"x":null,"y":null}',
    "status": "completed",
}
OUTPUT = [
    MESSAGE | {"content": [PART | {"logprobs": None}], "phase": None},
    CALL | {"async": None, "namespace": None},
]
OUTPUT_WRITTEN = [MESSAGE | {"content": [PART]}, CALL]
TURNS = {"input_tokens_per_turn": [], "cached_tokens_per_turn": []}


def test_a_whole_response_has_what_openai_sends() -> None:
    usage = TYPED_USAGE | {"input_tokens_details": {"cached_tokens": 0, **TURNS}}
    answer = RESPONSE | {"output": OUTPUT, "usage": usage}
    assert read(whole(Route.RESPONSES, answer, b"flex")) == RESPONSE_WRITTEN | {
        "output": OUTPUT_WRITTEN,
        "usage": TYPED_USAGE | {"input_tokens_details": {"cached_tokens": 0}},
    }


def test_a_streamed_response_says_it_wherever_it_shows_itself() -> None:
    delta = event("response.output_text.delta", delta=TRICK, logprobs=[], sequence_number=4)
    raw = [
        event("response.created", response=RESPONSE, sequence_number=0),
        event("response.in_progress", response=RESPONSE, sequence_number=1),
        event(
            "response.output_item.added", item=MESSAGE | {"phase": None}, output_index=0, sequence_number=2
        ),
        event("response.content_part.added", part=PART | {"logprobs": None}, sequence_number=3),
        delta,
        event("response.output_item.done", item=OUTPUT[1], sequence_number=5),
        event(
            "response.completed",
            response=RESPONSE | {"output": OUTPUT, "usage": TYPED_USAGE},
            sequence_number=6,
        ),
    ]
    reader = meter(Route.RESPONSES, b"flex", stream=True)
    passed = reader.feed(b"".join(raw))
    created, progress, item, part, text, call, completed = events(passed)
    assert created["response"] == progress["response"] == RESPONSE_WRITTEN
    assert item["item"] == MESSAGE
    assert part["part"] == PART
    assert text["delta"] == TRICK
    assert delta in passed
    assert call["item"] == CALL
    assert completed["response"] == RESPONSE_WRITTEN | {"output": OUTPUT_WRITTEN, "usage": TYPED_USAGE}
    assert [one["sequence_number"] for one in events(passed)] == list(range(7))
    assert reader.finished
    assert reader.exact


@pytest.mark.parametrize(
    ("tier", "word"), [(b"priority", "priority"), (b"default", "standard"), (b"flex", "flex")]
)
def test_a_message_says_the_tier_in_its_usage_and_has_what_anthropic_sends(tier: bytes, word: str) -> None:
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"service_tier": None, "model": SERVED}}
    answer = {"id": "m", "content": [use], "model": SERVED, "stop_reason": "tool_use", "usage": TYPED_USAGE}
    assert read(whole(Route.MESSAGES, answer, tier)) == {
        **answer, "model": ASKED, "stop_sequence": None, "usage": {**TYPED_USAGE, "service_tier": word},
    }  # fmt: skip


def test_a_streamed_message_says_it_where_it_starts() -> None:
    start = {"id": "m", "model": SERVED, "usage": {"input_tokens": 5, "output_tokens": 0}}
    rest = (
        event("content_block_delta", delta={"type": "text_delta", "text": TRICK}, index=0)
        + event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=TYPED_USAGE)
        + event("message_stop")
    )
    reader = meter(Route.MESSAGES, b"default", stream=True)
    passed = reader.feed(event("message_start", message=start) + rest)
    assert passed.startswith(b"event: message_start\ndata: {")
    assert passed.endswith(rest)
    assert events(passed)[0]["message"] == {
        "id": "m", "model": ASKED, "stop_reason": None, "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 0, "service_tier": "standard"},
    }  # fmt: skip
    assert reader.exact


def test_an_answer_nested_deeper_than_the_fast_encoder_writes_says_it_too() -> None:
    deep: Any = None
    for _ in range(400):
        deep = [deep]
    answer = {"model": SERVED, "content": [{"type": "tool_use", "input": {"x": deep}}], "usage": TYPED_USAGE}
    passed = read(whole(Route.MESSAGES, answer, b"flex"))
    assert passed["model"] == ASKED
    assert passed["content"] == answer["content"]


EMBEDDINGS = {"id": "embd-1", "object": "list", "created": 1, "model": SERVED, "data": [{"index": 0,
"embedding": [0.1, 2.50]}]}  # fmt: skip


def test_the_numbers_of_an_embedding_are_not_written_again() -> None:
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    answer = compact(EMBEDDINGS | {"usage": usage | {"prompt_tokens_details": None}}).replace(
        b"0.1", b"1.0e-1"
    )
    written = answer_written(answer, json.loads(answer), ROUTES[Route.EMBEDDINGS].answer, ASKED, b"flex")
    assert read(written) == {**EMBEDDINGS, "model": ASKED, "usage": usage, "service_tier": "flex"}
    assert b"1.0e-1" in written


def test_scores_are_not_written_again_and_documents_come_back_as_they_were_given() -> None:
    scores = compact({**EMBEDDINGS, "id": "score-1", "data": [{"index": 0, "score": 0.5}], "usage": None})
    scores = scores.replace(b"0.5", b"5.0e-1")
    written = answer_written(scores, json.loads(scores), ROUTES[Route.SCORE].answer, ASKED, None)
    assert read(written)["model"] == ASKED
    assert b',"data":[{"index":0,"score":5.0e-1}]' in written
    document = {"text": f'{SERVED} ,"multi_modal":null,"service_tier":null', "multi_modal": None}
    ranked = {"id": "score-1", "model": SERVED, "usage": {"prompt_tokens": 5, "total_tokens": 5}}
    results = [{"index": 0, "document": document, "relevance_score": 0.5}]
    assert read(whole(Route.RERANK, {**ranked, "results": results}, b"flex")) == {
        **ranked,
        "model": ASKED,
        "results": [{**results[0], "document": {"text": document["text"]}}],
        "service_tier": "flex",
    }


@pytest.mark.parametrize("more", [{"service_tier": None}, {"usage": CHAT_USAGE}])
def test_embeddings_of_another_kind_of_engine_say_it_too(more: dict[str, Any]) -> None:
    answer = {"data": EMBEDDINGS["data"], "model": SERVED, "usage": CHAT_USAGE, **more}
    assert read(whole(Route.EMBEDDINGS, answer, b"flex")) == {
        "data": EMBEDDINGS["data"], "model": ASKED, "usage": CHAT_USAGE, "service_tier": "flex",
    }  # fmt: skip


@pytest.mark.parametrize("route", [Route.COUNT_TOKENS, Route.TOKENIZE])
def test_what_produces_nothing_stays_as_it_is(route: Route) -> None:
    assert whole(route, {"count": 5, "token_strs": None}, b"default") == compact(
        {"count": 5, "token_strs": None}
    )
