"""Answers of a provider in the caller's dialect: whole, streamed, and both ways. The official SDKs read them
all.
"""

import contextlib
import json
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.meter import Produced, ProtocolViolation
from gateway.stream.meter_choices import ChoicesMeter
from gateway.stream.meter_typed import MessagesMeter
from gateway.translate import chat_answer, message_answer
from tests.gateway.translate import providers
from tests.gateway.translate.callers import (
    chat_of,
    chat_stream,
    fed,
    message_expected,
    message_seen,
    messages_stream,
    seen_in_chat,
    to_chat,
    to_message,
)
from tests.gateway.translate.providers import Answer, answers, chunk, event
from tests.gateway.translate.sdks import chunks_of, completion_of, events_of, message_of

SMALL = Answer(text="hi")
CHAT_DONE = chunk({}, finish_reason="stop") + b"data: [DONE]\n\n"


@given(answers())
def test_a_whole_message_is_a_chat_completion(answer: Answer) -> None:
    assert seen_in_chat(to_chat(providers.message(answer))) == chat_of(answer)


@given(answers())
def test_a_whole_chat_completion_is_a_message(answer: Answer) -> None:
    assert message_seen(to_message(providers.completion(answer))) == message_expected(answer)


@given(st.data())
def test_a_streamed_message_is_the_chat_completion_however_it_is_cut(data: st.DataObject) -> None:
    answer = data.draw(answers())
    stream = data.draw(providers.message_streams(answer))
    pieces = [*data.draw(st.composite(providers.cut)(stream))]
    said = fed(chat_stream(), pieces)
    assert seen_in_chat(completion_of(said)) == chat_of(answer)
    assert said == chat_stream().feed(stream)
    assert said.count(b"[DONE]") == 1
    assert said.endswith(b"\n\ndata: [DONE]\n\n")


@given(st.data())
def test_a_streamed_chat_completion_is_the_message_however_it_is_cut(data: st.DataObject) -> None:
    answer = data.draw(answers())
    stream = data.draw(providers.chat_streams(answer))
    pieces = [*data.draw(st.composite(providers.cut)(stream))]
    said = fed(messages_stream(), pieces)
    assert message_seen(message_of(said)) == message_expected(answer)
    assert said == messages_stream().feed(stream)


@given(st.data())
def test_a_message_comes_back_as_it_was(data: st.DataObject) -> None:
    answer = data.draw(answers())
    there = chat_stream().feed(data.draw(providers.message_streams(answer)))
    assert message_seen(message_of(messages_stream().feed(there))) == message_expected(answer)
    whole = json.dumps(providers.message(answer)).encode()
    there = chat_answer(whole, answer_id="x", model="x", created=1)
    assert message_seen(to_message(json.loads(there))) == message_expected(answer)


@given(st.data())
def test_a_chat_completion_comes_back_as_it_was(data: st.DataObject) -> None:
    answer = data.draw(answers())
    there = messages_stream().feed(data.draw(providers.chat_streams(answer)))
    assert seen_in_chat(completion_of(chat_stream().feed(there))) == chat_of(answer)
    there = message_answer(json.dumps(providers.completion(answer)).encode(), answer_id="x", model="x")
    assert seen_in_chat(to_chat(json.loads(there))) == chat_of(answer)


@given(st.data())
def test_meters_read_the_providers_usage(data: st.DataObject) -> None:
    answer = data.draw(answers())
    prompt = answer.uncached + answer.cached + answer.written
    produced = Produced(prompt, answer.cached, answer.output, prompt) if answer.output else Produced()
    chat = ChoicesMeter(1, 1, None, wants_usage=True, wants_continuous=False)
    passed = chat.feed(chat_stream().feed(data.draw(providers.message_streams(answer))))
    assert (chat.produced(), chat.finished, chat.anomaly) == (produced, True, None)
    assert seen_in_chat(completion_of(passed)) == chat_of(answer)
    messages = MessagesMeter(None)
    passed = messages.feed(messages_stream().feed(data.draw(providers.chat_streams(answer))))
    assert (messages.produced(), messages.finished, messages.anomaly) == (produced, True, None)
    assert message_seen(message_of(passed)) == message_expected(answer)


def test_chunks_take_the_meters_fast_way() -> None:
    """A meter rewrites the beginning and the end of a chunk that it knows, and decodes any other."""
    said = chat_stream().feed(_message_stream("a", "b"))
    meter = ChoicesMeter(1, 1, None, wants_usage=False, wants_continuous=False)
    meter.model, meter.tier = "asked", b"default"
    passed = meter.feed(said)
    assert b'"service_tier":"default","id":"chatcmpl-1"' in passed
    assert passed.count(b'"model":"asked"') == 4
    assert b'"usage"' not in passed


def _message_stream(*texts: str, ending: dict[str, Any] | None = None) -> bytes:
    start = providers.message(SMALL) | {"content": [], "stop_reason": None}
    deltas = [
        event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})
        for text in texts
    ]
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    ending = {"stop_reason": "end_turn", "stop_sequence": None} | (ending or {})
    end = {"type": "message_delta", "delta": ending, "usage": {"output_tokens": 2}}
    return b"".join(
        [
            event({"type": "message_start", "message": start}),
            event(block),
            *deltas,
            event({"type": "content_block_stop", "index": 0}),
            event(end),
            event({"type": "message_stop"}),
        ]
    )


def test_usage_is_streamed_to_chat_callers_who_asked_for_it() -> None:
    chunks = chunks_of(chat_stream(include_usage=False).feed(_message_stream("a")))
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    *_, last = chunks_of(chat_stream().feed(_message_stream("a")))
    assert (last.choices, last.usage and last.usage.total_tokens) == ([], 7)


def test_figures_that_come_late_as_null_stand() -> None:
    nulls = {"input_tokens": None, "cache_read_input_tokens": None, "output_tokens": 2}
    ending = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": nulls}
    start = providers.message(SMALL) | {"content": [], "stop_reason": None}
    said = [{"type": "message_start", "message": start}, ending, {"type": "message_stop"}]
    read = completion_of(chat_stream().feed(b"".join(map(event, said))))
    assert read.usage is not None
    assert (read.usage.prompt_tokens, read.usage.completion_tokens) == (5, 2)


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [("pause_turn", "length"), ("model_context_window_exceeded", "length"), ("refusal", "content_filter"),
     ("something_new", "stop")],
)  # fmt: skip
def test_stop_reasons_that_chat_has_no_word_for(stop_reason: str, finish_reason: str) -> None:
    whole = to_chat(providers.message(SMALL) | {"stop_reason": stop_reason})
    streamed = completion_of(chat_stream().feed(_message_stream("hi", ending={"stop_reason": stop_reason})))
    assert [one.choices[0].finish_reason for one in (whole, streamed)] == [finish_reason] * 2


def test_a_refusal_keeps_its_explanation() -> None:
    details = {"type": "refusal", "category": None, "explanation": "not this"}
    ending = {"stop_reason": "refusal", "stop_details": details}
    whole = to_chat(providers.message(SMALL) | ending | {"content": []})
    streamed = completion_of(chat_stream().feed(_message_stream(ending=ending)))
    for read in (whole, streamed):
        assert (read.choices[0].message.content, read.choices[0].message.refusal) == (None, "not this")


def test_a_refusal_of_chat_is_text_of_a_refused_message() -> None:
    whole = providers.completion(SMALL)
    whole["choices"][0]["message"] |= {"content": None, "refusal": "not this"}
    parts = [chunk({"refusal": "not "}), chunk({"refusal": "this"}), chunk({}, finish_reason="stop")]
    streamed = message_of(messages_stream().feed(b"".join([*parts, b"data: [DONE]\n\n"])))
    for read in (to_message(whole), streamed):
        assert read.stop_reason == "refusal"
        assert [block.model_dump(include={"text"}) for block in read.content] == [{"text": "not this"}]


def test_a_forced_call_ends_with_tool_use() -> None:
    """OpenAI says `stop` when the request has named the function."""
    answer = Answer(calls=(("c1", "f", "{}"),))
    whole = providers.completion(answer)
    whole["choices"][0]["finish_reason"] = "stop"
    assert to_message(whole).stop_reason == "tool_use"


def test_interleaved_calls_become_blocks_one_after_another() -> None:
    def call(index: int, arguments: str, **more: Any) -> bytes:
        name = {"name": f"f{index}"} if more else {}
        return chunk({"tool_calls": [{"index": index, "function": {"arguments": arguments} | name} | more]})

    said = messages_stream().feed(
        call(0, "", id="c0") + call(1, "", id="c1") + call(0, '{"a"') + call(1, '{"b":') + call(0, ":1}")
        + chunk({"content": "and"}) + call(1, "2}") + call(2, "", id="c2") + chunk({"content": " so"})
        + chunk({}, finish_reason="tool_calls") + b"data: [DONE]\n\n"
    )  # fmt: skip
    read = message_of(said)
    assert [getattr(block, "input", None) or getattr(block, "text", None) for block in read.content] == [
        {"a": 1}, {"b": 2}, "and", None, " so",
    ]  # fmt: skip
    assert [getattr(block, "id", None) for block in read.content] == ["c0", "c1", None, "c2", None]


def test_a_complete_call_does_not_hold_up_the_next() -> None:
    stream = messages_stream()
    first = {"index": 0, "id": "c0", "function": {"name": "f", "arguments": '{"a":1}'}}
    second = {"index": 1, "id": "c1", "function": {"name": "g", "arguments": '{"b":'}}
    stream.feed(chunk({"tool_calls": [first]}))
    assert b'"partial_json":"{\\"b\\":"' in stream.feed(chunk({"tool_calls": [second]}))
    with pytest.raises(ProtocolViolation):
        stream.feed(chunk({"tool_calls": [{"index": 0, "function": {"arguments": "more"}}]}))


def test_arguments_may_begin_with_spaces() -> None:
    """Anthropic's SDK reads the arguments so far at each delta, and fails if they are spaces alone."""
    pieces = ["", " ", "\n ", '{"a":', "1} "]
    calls = [{"index": 0, "function": {"arguments": piece}} for piece in pieces]
    calls[0] |= {"id": "c0", "function": {"name": "f", "arguments": ""}}
    said = b"".join(chunk({"tool_calls": [call]}) for call in calls) + CHAT_DONE
    (block,) = message_of(messages_stream().feed(said)).content
    assert block.model_dump(include={"input"}) == {"input": {"a": 1}}


def test_usage_may_come_before_the_last_chunk() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    told = b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode()
    read = message_of(messages_stream().feed(chunk({"content": "a"}) + told + CHAT_DONE))
    assert (read.usage.input_tokens, read.usage.output_tokens) == (5, 1)


def test_input_that_comes_with_the_start_of_a_block_is_kept() -> None:
    block = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 12345678901234567890123}}
    said = chat_stream().feed(
        event({"type": "content_block_start", "index": 0, "content_block": block})
        + event({"type": "content_block_stop", "index": 0})
    )
    arguments = [
        call.function.arguments
        for one in chunks_of(said)
        for call in one.choices[0].delta.tool_calls or ()
        if call.function
    ]
    assert arguments == ["", '{"a": 12345678901234567890123}']


def test_arguments_keep_their_numbers() -> None:
    answer = Answer(calls=(("c", "f", '{"a":1.10,"b":12345678901234567890123}'),))
    said = message_answer(json.dumps(providers.completion(answer)).encode(), answer_id="m", model="m")
    assert b'{"a":1.10,"b":12345678901234567890123}' in said
    back = chat_answer(said, answer_id="m", model="m", created=1)
    assert b'{\\"a\\":1.10,\\"b\\":12345678901234567890123}' in back


@pytest.mark.parametrize("arguments", ["[1]", "null", "{", '{"a":', "x", '"{}"'])
def test_arguments_that_are_no_object_are_a_protocol_violation(arguments: str) -> None:
    whole = providers.completion(Answer(calls=(("c", "f", ""),)))
    call = whole["choices"][0]["message"]["tool_calls"][0]
    call["function"]["arguments"] = arguments
    with pytest.raises(ProtocolViolation):
        to_message(whole)
    whole["choices"][0]["finish_reason"] = "length"
    stream = chunk({"tool_calls": [{"index": 0} | call]}, finish_reason="length") + b"data: [DONE]\n\n"
    if arguments.startswith("{"):  # the answer was cut
        for read in (to_message(whole), message_of(messages_stream().feed(stream))):
            assert read.stop_reason == "max_tokens"
            assert read.content[0].model_dump(include={"input"}) == {"input": {}}
        return
    with pytest.raises(ProtocolViolation):
        to_message(whole)
    with pytest.raises(ProtocolViolation):
        messages_stream().feed(stream)


def test_an_answer_without_usage_is_not_free() -> None:
    whole = {**providers.completion(SMALL)}
    del whole["usage"]
    meter = MessagesMeter(None)
    said = messages_stream().feed(chunk({"content": "hi"}) + CHAT_DONE)
    meter.feed(said)
    assert (meter.exact, meter.anomaly) == (False, "usage_malformed")
    message_of(said)
    assert json.loads(message_answer(json.dumps(whole).encode(), answer_id="m", model="m"))["usage"] == {
        "output_tokens": 0
    }
    without = {**providers.message(SMALL), "usage": None}
    assert "usage" not in json.loads(
        chat_answer(json.dumps(without).encode(), answer_id="m", model="m", created=1)
    )


def test_a_cached_part_above_the_prompt_stays_wrong() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}}
    last = json.dumps({"choices": [], "usage": usage}).encode()
    meter = MessagesMeter(None)
    meter.feed(
        messages_stream().feed(
            chunk({"content": "a"}, finish_reason="stop") + b"data: %b\n\ndata: [DONE]\n\n" % last
        )
    )
    assert meter.anomaly == "usage_cached_above_prompt"


def test_what_was_written_to_a_cache_is_part_of_the_prompt() -> None:
    details = {"cached_tokens": 3, "cache_write_tokens": 9}
    whole = providers.completion(SMALL)
    whole["usage"] = {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": details}
    usage = to_message(whole).usage
    assert (usage.input_tokens, usage.cache_creation_input_tokens, usage.cache_read_input_tokens) == (0, 2, 3)


def test_blocks_of_a_kind_are_joined() -> None:
    content = [
        {"type": "thinking", "thinking": "a", "signature": "s"},
        {"type": "text", "text": "b"},
        {"type": "thinking", "thinking": "c", "signature": "s"},
        {"type": "text", "text": "d"},
    ]
    seen = seen_in_chat(to_chat(providers.message(SMALL) | {"content": content}))
    assert (seen["thinking"], seen["content"]) == ("ac", "bd")


def test_an_error_in_a_messages_stream_is_one_in_chat_and_the_last() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    stream = chat_stream()
    said = stream.feed(_message_stream("a", "b").partition(b"event: content_block_stop")[0] + event(error))
    with pytest.raises(openai.APIError) as caught:
        chunks_of(said)
    assert (caught.value.message, caught.value.type) == ("Overloaded", "overloaded_error")
    assert b"[DONE]" not in said
    assert stream.feed(_message_stream("c")) == b""


def test_an_error_in_a_chat_stream_is_one_in_messages_and_the_last() -> None:
    error = {"error": {"message": "slow down", "type": "rate_limit_error", "param": None, "code": None}}
    stream = messages_stream()
    said = stream.feed(chunk({"content": "a"}) + b"data: %b\n\n" % json.dumps(error).encode())
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(events_of(said))
    assert caught.value.type == "rate_limit_error"
    assert stream.feed(chunk({"content": "b"}) + b"data: [DONE]\n\n") == b""


def test_nothing_follows_the_end() -> None:
    chat, messages = chat_stream(), messages_stream()
    assert chat.feed(_message_stream("a") + _message_stream("b")).count(b'"content"') == 1
    assert chat.feed(_message_stream("c")) == b""
    done = chunk({"content": "a"}, finish_reason="stop") + b"data: [DONE]\n\n"
    assert messages.feed(done + done).count(b"event: message_stop") == 1
    assert messages.feed(done) == b""


def test_other_forms_of_events_are_read() -> None:
    """Providers leave out the space after the colon, end lines with CRLF, and send comments."""
    stream = _message_stream("a").replace(b": {", b":{").replace(b"event: ", b"event:")
    stream = (b": hello\n\n" + stream).replace(b"\n", b"\r\n")
    assert completion_of(fed(chat_stream(), [stream[at : at + 1] for at in range(len(stream))]))
    said = b":\n\nid: 4\n" + chunk({"content": "a"}, finish_reason="stop") + b"data:[DONE]\n\n"
    assert message_of(messages_stream().feed(said)).content


def test_new_types_of_events_and_blocks_are_left_out() -> None:
    block = {"type": "something_new", "text": "x", "id": "s", "content": {"type": "a_result"}}
    assert to_chat(providers.message(SMALL) | {"content": [block]}).choices[0].message.content is None
    new = [
        {"type": "content_block_start", "index": 9, "content_block": block},
        {
            "type": "content_block_delta",
            "index": 9,
            "delta": {"type": "input_json_delta", "partial_json": "{"},
        },
        {"type": "content_block_delta", "index": 9, "delta": {"type": "new_delta", "partial_new": [1]}},
        {"type": "content_block_stop", "index": 9},
        {"type": "message_note", "note": {}},
    ]
    start, _, rest = _message_stream("a").partition(b"event: content_block_start")
    said = chat_stream().feed(start + b"".join(map(event, new)) + b"event: content_block_start" + rest)
    assert said == chat_stream().feed(_message_stream("a"))


@pytest.mark.parametrize(
    "stream",
    [
        b"data: {}\n\ndata: [DONE]\n\n", b"data: <html>\n\n", b"data: [1]\n\n", b'data: {"choices":5}\n\n',
        b"data: \xff\n\n", b"data: " + b"[" * 100_000 + b"\n\n",
        chunk({"content": 5}), chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
        chunk({"tool_calls": [{"index": -1, "id": "a", "function": {"name": "f"}}]}),
        b"".join(
            chunk({"tool_calls": [{"index": at, "id": "a", "function": {"name": "f"}}]}) for at in range(129)
        ),
    ],
)  # fmt: skip
def test_what_is_no_chat_stream_is_a_protocol_violation(stream: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        messages_stream().feed(stream)


def test_what_waits_for_a_call_is_bounded() -> None:
    stream = messages_stream()
    stream.feed(chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]}))
    pieces = chunk({"content": "x" * 500_000}) * 20
    with pytest.raises(ProtocolViolation):
        stream.feed(pieces)


@pytest.mark.parametrize(
    "stream",
    [
        b"data: <html>\n\n", b"data: 5\n\n", b'data: {"type":5}\n\n', event({"type": "message_stop"}),
        event({"type": "message_delta", "delta": {"stop_reason": None}}) + event({"type": "message_stop"}),
        event({"type": "content_block_delta", "index": "0", "delta": {"text": "a"}}),
    ],
)  # fmt: skip
def test_what_is_no_messages_stream_is_a_protocol_violation(stream: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        chat_stream().feed(stream)


@given(st.data())
def test_broken_answers_raise_nothing_else(data: st.DataObject) -> None:
    answer = data.draw(answers())
    whole = [json.dumps(make(answer)).encode() for make in (providers.message, providers.completion)]
    streams = [data.draw(make(answer)) for make in (providers.message_streams, providers.chat_streams)]
    broken = []
    for good in (*whole, *streams):
        at = data.draw(st.integers(0, len(good)))
        bad = data.draw(st.binary(max_size=3) | st.sampled_from([b"null", b"5", b'"', b"{}", b"[]"]))
        broken.append(good[:at] + bad + good[at + data.draw(st.integers(0, 8)) :])
    for read in (
        lambda: chat_answer(broken[0], answer_id="m", model="m", created=1),
        lambda: message_answer(broken[1], answer_id="m", model="m"),
        lambda: chat_stream().feed(broken[2]),
        lambda: messages_stream().feed(broken[3]),
    ):
        with contextlib.suppress(ProtocolViolation):
            read()
