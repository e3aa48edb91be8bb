"""The meters of messages and responses streams, fed with what vLLM 0.32 sends."""

import json

import pytest

from gateway.stream.meter import Produced, ProtocolViolation
from gateway.stream.meter_typed import MessagesMeter, ResponsesMeter


def event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: ".encode() + json.dumps({"type": kind, **fields}).encode() + b"\n\n"


START = event("message_start", message={"id": "m", "usage": {"input_tokens": 31, "output_tokens": 0}})
DELTA = event("content_block_delta", delta={"type": "text_delta", "text": "a"}, index=0)
STOP = event("message_stop")


def message_delta(**usage: int) -> bytes:
    return event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)


def test_messages_prompt_includes_what_was_cached() -> None:
    reader = MessagesMeter(None)
    raw = (
        START
        + DELTA
        + DELTA
        + message_delta(
            input_tokens=15, output_tokens=2, cache_creation_input_tokens=0, cache_read_input_tokens=16
        )
        + STOP
    )
    assert reader.feed(raw) == raw
    assert reader.produced() == Produced(31, 16, 2, 31)
    assert reader.finished
    assert reader.exact


def test_messages_between_the_ends_are_counted_and_never_exact() -> None:
    reader = MessagesMeter(None)
    reader.feed(START + DELTA + DELTA)
    assert reader.produced() == Produced(31, 0, 2, 31)
    assert reader.counted()
    assert not reader.exact


def test_messages_before_the_first_token_cost_nothing() -> None:
    reader = MessagesMeter(None)
    reader.feed(START)
    assert reader.produced() == Produced()


def test_fault_28_a_message_that_only_stops_is_not_finished() -> None:
    reader = MessagesMeter(None)
    reader.feed(START + DELTA)
    assert not reader.finished


def test_fault_30_a_message_without_usage_is_an_anomaly() -> None:
    reader = MessagesMeter(None)
    reader.feed(START + DELTA + STOP)
    assert reader.finished
    assert reader.anomaly == "usage_missing"


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": "x", "output_tokens": 1},
        {"output_tokens": 1},
        {"input_tokens": 1.5, "output_tokens": 1},
    ],
)
def test_fault_30_malformed_usage_is_named(usage: dict[str, object]) -> None:
    reader = MessagesMeter(None)
    reader.feed(START + event("message_delta", delta={}, usage=usage))
    assert reader.anomaly == "usage_malformed"


@pytest.mark.parametrize(
    "raw", [b"hello\n\n", STOP + DELTA, b"event: message_start\ndata: {x\n\n", b"data: {}\n\n"]
)
def test_fault_29_garbage_is_a_violation(raw: bytes) -> None:
    reader = MessagesMeter(None)
    with pytest.raises(ProtocolViolation):
        reader.feed(START + message_delta(input_tokens=1, output_tokens=1) + raw)


def test_an_error_event_is_a_failure_and_not_passed_on() -> None:
    reader = MessagesMeter(None)
    assert b"10.0.0.1" not in reader.feed(START + event("error", error={"message": "at 10.0.0.1"}))
    assert reader.failed


def completed(kind: str = "response.completed", **usage: object) -> bytes:
    return event(kind, response={"id": "resp_1", "usage": usage or None})


OUTPUT = event("response.output_text.delta", delta="a")


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
def test_responses_say_all_at_the_end(kind: str) -> None:
    reader = ResponsesMeter(None)
    raw = (
        event("response.created", response={})
        + OUTPUT
        + completed(kind, input_tokens=32, input_tokens_details={"cached_tokens": 16}, output_tokens=4)
    )
    assert reader.feed(raw) == raw
    assert reader.produced() == Produced(32, 16, 4, 32)
    assert reader.finished


def test_what_a_response_says_before_any_token_waits_for_the_first() -> None:
    reader = ResponsesMeter(None)
    first = event("response.created", response={}) + event("response.in_progress", response={})
    assert reader.feed(first) == b""
    assert reader.feed(OUTPUT) == first + OUTPUT
    assert reader.feed(OUTPUT) == OUTPUT


def numbered(number: int, **fields: object) -> bytes:
    return event("response.output_text.delta", delta='"sequence_number":9', **fields, sequence_number=number)


def test_numbered_events_in_order_are_passed_whatever_they_carry() -> None:
    raw = numbered(1) + numbered(2, item={"sequence_number": 70}) + numbered(5)
    assert ResponsesMeter(None).feed(raw) == raw


@pytest.mark.parametrize("numbers", [(1, 1), (1, 3, 2)])
def test_fault_29_an_event_twice_or_out_of_order_is_a_violation(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolViolation, match="out of order"):
        ResponsesMeter(None).feed(b"".join(numbered(number) for number in numbers))


@pytest.mark.parametrize("message", [[], "x", {"usage": []}, {"usage": {"input_tokens": "7"}}, None])
def test_fault_30_a_prompt_that_is_no_number_is_not_taken(message: object) -> None:
    reader = MessagesMeter(None)
    reader.feed(event("message_start", message=message) + DELTA)
    assert reader.produced() == Produced(0, 0, 1, 0)


@pytest.mark.parametrize("usage", [[], "x", 7])
def test_fault_30_usage_that_is_no_object_is_malformed(usage: object) -> None:
    reader = MessagesMeter(None)
    reader.feed(START + event("message_delta", delta={}, usage=usage))
    assert reader.anomaly == "usage_malformed"


def test_a_failed_response_is_a_failure() -> None:
    reader = ResponsesMeter(None)
    reader.feed(OUTPUT + event("response.failed", response={}))
    assert reader.failed


def test_a_response_without_usage_is_an_anomaly() -> None:
    reader = ResponsesMeter(None)
    reader.feed(OUTPUT + completed())
    assert reader.anomaly == "usage_missing"
