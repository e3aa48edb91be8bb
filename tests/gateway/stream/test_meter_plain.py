"""The meter of whole answers."""

import json

import pytest

from gateway.request import Route
from gateway.routes import ROUTES
from gateway.stream.meter import Produced, ProtocolViolation
from gateway.stream.meter_plain import PlainMeter


def read(
    route: Route, answer: object, samples: int = 1, prompts: int = 1, most: int | None = None
) -> PlainMeter:
    reader = PlainMeter(ROUTES[route].answer, samples, prompts, most)
    raw = json.dumps(answer).encode()
    assert reader.feed(raw[:7]) == b""
    assert reader.feed(raw[7:]) == b""
    assert reader.close() == raw
    return reader


def chat(prompt: object, output: object, cached: object = 0) -> dict[str, object]:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return {"choices": [{"index": 0, "finish_reason": "stop"}], "usage": usage}


def test_chat_usage_is_read() -> None:
    assert read(Route.CHAT, chat(31, 5, 16)).produced() == Produced(31, 16, 5, 31)


def test_several_samples_share_a_prompt_on_the_bill() -> None:
    assert read(Route.CHAT, chat(130, 9), samples=3).produced() == Produced(130, 0, 9, 390)


def test_a_list_of_prompts_is_counted_plainly() -> None:
    assert read(Route.COMPLETIONS, chat(5, 6), samples=2, prompts=2).produced() == Produced(5, 0, 6, 5)


def test_messages_and_responses_are_read_in_their_own_words() -> None:
    message = {
        "usage": {
            "input_tokens": 15,
            "output_tokens": 4,
            "cache_read_input_tokens": 16,
            "cache_creation_input_tokens": 0,
        }
    }
    assert read(Route.MESSAGES, message).produced() == Produced(31, 16, 4, 31)
    response = {
        "error": None,
        "usage": {"input_tokens": 32, "input_tokens_details": {"cached_tokens": 8}, "output_tokens": 4},
    }
    assert read(Route.RESPONSES, response).produced() == Produced(32, 8, 4, 32)


def test_counting_tokens_produces_none() -> None:
    reader = read(Route.COUNT_TOKENS, {"input_tokens": 31})
    assert reader.produced() == Produced()
    assert reader.anomaly is None


@pytest.mark.parametrize(
    ("answer", "anomaly", "clamped"),
    [
        ({"choices": []}, "usage_missing", Produced()),
        (chat(-1, 2), "usage_negative", Produced(0, 0, 2, 0)),
        (chat(5, -2), "usage_negative", Produced()),
        (chat(5, 2, 9), "usage_cached_above_prompt", Produced(5, 5, 2, 5)),
        (chat(5, 99), "usage_above_max_tokens", Produced(5, 0, 10, 5)),
        (chat("5", 2), "usage_malformed", Produced()),
        (chat(5, True), "usage_malformed", Produced()),
        (chat(5, 2, "x"), "usage_malformed", Produced()),
        ({"usage": []}, "usage_malformed", Produced()),
    ],
)
def test_fault_30_wrong_usage_is_named_clamped_and_never_exact(
    answer: object, anomaly: str, clamped: Produced
) -> None:
    reader = read(Route.CHAT, answer, most=10)
    assert reader.anomaly == anomaly
    assert reader.produced() == clamped
    assert not reader.exact


@pytest.mark.parametrize("empty", [[], ""])
def test_of_embeddings_of_which_one_was_aborted_the_usage_is_not_believed(empty: object) -> None:
    """vLLM says the prompts of all of them, read or not."""
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    data = [{"index": 0, "embedding": [0.5]}, {"index": 1, "embedding": empty}]
    reader = read(Route.EMBEDDINGS, {"data": data, "usage": usage}, prompts=2, samples=2)
    assert (reader.aborted, reader.exact, reader.produced()) == (True, False, Produced())
    whole = read(Route.EMBEDDINGS, {"data": data[:1], "usage": usage})
    assert (whole.aborted, whole.exact, whole.produced()) == (False, True, Produced(9, 0, 0, 9))


def test_after_a_stop_the_usage_is_believed_only_where_tokens_were_produced() -> None:
    scores = read(Route.SCORE, {"data": [{"index": 0, "score": 0.5}], "usage": {"prompt_tokens": 9}})
    scores.distrust()
    assert (scores.exact, scores.produced()) == (False, Produced())
    chat = read(Route.CHAT, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}})
    chat.distrust()
    assert (chat.exact, chat.produced().output) == (True, 2)


@pytest.mark.parametrize("raw", [b"<html></html>", b"[1]", b"", b'{"a":'])
def test_fault_29_an_answer_that_is_no_object_is_a_violation(raw: bytes) -> None:
    reader = PlainMeter(ROUTES[Route.CHAT].answer, 1, 1, None)
    reader.feed(raw)
    with pytest.raises(ProtocolViolation):
        reader.close()


def test_fault_29_an_endless_answer_is_a_violation() -> None:
    reader = PlainMeter(ROUTES[Route.CHAT].answer, 1, 1, None)
    for _ in range(32):
        reader.feed(b"x" * (1 << 20))
    with pytest.raises(ProtocolViolation):
        reader.feed(b"x")
