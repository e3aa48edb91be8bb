"""The meter of chat and completions streams, fed with what vLLM 0.32 sends."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.meter import Produced, ProtocolViolation
from gateway.stream.meter_choices import ChoicesMeter


def chunk(
    tokens: int, text: str = "x", *, index: int = 0, finish: str | None = None, prompt: int = 31
) -> bytes:
    """A chat chunk as vLLM writes it with continuous usage."""
    body = {
        "id": "chatcmpl-req_1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": index,
                "delta": {"content": text},
                "logprobs": None,
                "finish_reason": finish,
                "token_ids": None,
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "total_tokens": prompt + tokens,
            "completion_tokens": tokens,
            "completion_tokens_details": None,
        },
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def total(tokens: int, prompt: int = 31, cached: int = 0) -> bytes:
    """The closing usage chunk."""
    usage = {
        "prompt_tokens": prompt,
        "total_tokens": prompt + tokens,
        "completion_tokens": tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    body = {
        "id": "chatcmpl-req_1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [],
        "usage": usage,
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def stream(tokens: int) -> bytes:
    """A whole good stream of so many tokens."""
    pieces = (
        [chunk(0, "")] + [chunk(i, f"t{i}") for i in range(1, tokens)] + [chunk(tokens, "end", finish="stop")]
    )
    return b"".join(pieces) + total(tokens, cached=16) + DONE


def meter(
    samples: int = 1,
    prompts: int = 1,
    *,
    usage: bool = False,
    continuous: bool = False,
    most: int | None = None,
) -> ChoicesMeter:
    return ChoicesMeter(samples, prompts, most, usage, continuous)


def feed_event_by_event(reader: ChoicesMeter, raw: bytes) -> None:
    for event in raw.replace(b"}\n\n", b"}\n\n|").split(b"|"):
        reader.feed(event)


def events(passed: bytes) -> list[dict[str, object]]:
    return [json.loads(event[6:]) for event in passed.split(b"\n\n") if event and event != b"data: [DONE]"]


def test_usage_is_read_and_taken_out_when_the_caller_did_not_ask() -> None:
    reader = meter()
    passed = reader.feed(stream(5))
    assert reader.produced() == Produced(31, 16, 5, 31)
    assert reader.finished
    assert reader.exact
    assert reader.anomaly is None
    assert all("usage" not in event and event["choices"] for event in events(passed))
    assert passed.endswith(DONE)
    assert len(events(passed)) == 6


def test_usage_at_the_end_is_kept_when_asked_for() -> None:
    passed = meter(usage=True).feed(stream(3))
    seen = events(passed)
    assert seen[-1]["usage"] is not None
    assert all("usage" not in event for event in seen[:-1])


def test_continuous_usage_is_kept_when_asked_for() -> None:
    raw = stream(3)
    assert meter(usage=True, continuous=True).feed(raw) == raw


@given(st.lists(st.integers(1, 2000), max_size=20), st.integers(1, 30))
def test_any_cut_of_the_bytes_gives_the_same_answer(cuts: list[int], tokens: int) -> None:
    raw = stream(tokens)
    whole = meter().feed(raw)
    reader, passed, position = meter(), b"", 0
    for cut in [*cuts, len(raw)]:
        passed += reader.feed(raw[position : position + cut])
        position += cut
    assert passed + reader.feed(raw[position:]) == whole
    assert reader.produced() == Produced(31, 16, tokens, 31)


@given(
    st.lists(st.tuples(st.text(max_size=5) | st.just("%d"), st.integers(0, 2)), max_size=12), st.booleans()
)
def test_a_chunk_alone_is_read_as_among_others(said: list[tuple[str, int]], named: bool) -> None:
    tokens, raw = 0, [chunk(0, "")]
    for text, more in said:
        tokens += more
        raw.append(chunk(tokens, text))
    readers = [meter() for _ in range(2)]
    for reader in readers:
        reader.counts, reader.model = [], "100%d" if named else None
    alone, among = readers
    try:
        passed = among.feed(b"".join(raw))
    except ProtocolViolation:  # two alike are one that was sent twice
        with pytest.raises(ProtocolViolation):
            feed_event_by_event(alone, b"".join(raw))
        return
    assert b"".join(map(alone.feed, raw)) == passed
    assert (alone.produced(), alone.counts, alone.anomaly) == (among.produced(), among.counts, among.anomaly)
    assert [event["choices"][0]["delta"]["content"] for event in events(passed)] == [  # type: ignore[index]
        "",
        *(text for text, _ in said),
    ]


def test_a_chunk_whose_figures_contradict_each_other_is_not_taken_for_the_next_one() -> None:
    reader = meter()
    for piece in (chunk(1), chunk(2), chunk(3, prompt=33)):
        reader.feed(piece)
    reader.feed(chunk(4, "y").replace(b'"total_tokens":35', b'"total_tokens":37'))
    assert reader.produced() == Produced(31, 0, 4, 31)


def test_usage_before_the_text_is_taken_out_too() -> None:
    reader = meter()
    opening = (
        b'data: {"id":"c","usage":{"prompt_tokens":5,"total_tokens":6,"completion_tokens":1},"model":"m",'
    )
    for text in (b"a", b"b", b"c"):
        said = b'"choices":[{"index":0,"text":"%b","logprobs":null,"finish_reason":null}]}\n\n' % text
        assert b"usage" not in reader.feed(opening + said)


def test_a_stream_cut_in_the_middle_shows_what_the_engine_had_counted() -> None:
    reader = meter()
    reader.feed(chunk(0, "") + chunk(1) + chunk(2, "y"))
    assert reader.produced() == Produced(31, 0, 2, 31)
    assert not reader.exact
    assert not reader.finished


def test_no_token_means_nothing_produced_though_usage_names_the_prompt() -> None:
    reader = meter()
    reader.feed(chunk(0, ""))
    assert reader.produced() == Produced()


def test_text_that_looks_like_usage_is_left_alone() -> None:
    text = ',"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":999} "finish_reason":"stop"'
    reader = meter()
    passed = reader.feed(chunk(1, text))
    assert events(passed)[0]["choices"][0]["delta"]["content"] == text  # type: ignore[index]
    assert reader.produced().output == 1


def test_samples_count_their_prompt_once_for_the_bill_and_each_for_the_engine() -> None:
    reader = meter(3)
    reader.feed(chunk(2, index=0) + chunk(3, index=1, text="b"))
    assert reader.produced() == Produced(31, 0, 5, 62)
    reader.feed(
        chunk(4, index=2)
        + b"".join(chunk(4, "", index=i, finish="stop") for i in range(3))
        + total(12)
        + DONE
    )
    assert reader.produced() == Produced(31, 0, 12, 93)


def test_prompt_lists_count_each_prompt() -> None:
    reader = meter(2, 2)
    reader.feed(chunk(1, index=0, prompt=3) + chunk(1, index=1, prompt=2, text="b"))
    assert reader.produced() == Produced(5, 0, 2, 5)


def test_an_engine_without_usage_on_chunks_is_counted_until_its_total() -> None:
    bare = (
        b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":" tok%d"},'
        b'"finish_reason":null}]}\n\n'
    )
    reader = meter()
    reader.feed(bare % 1 + bare % 2)
    assert reader.counted()
    assert reader.output_tokens() == 2
    end = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    reader.feed(end + total(2, 32) + DONE)
    assert reader.produced() == Produced(32, 0, 2, 32)
    assert reader.exact


@pytest.mark.parametrize(
    ("bytes_", "rule"),
    [
        (b"<html>no</html>\n\n", "not a data event"),
        (b"data: {broken\n\n", "not JSON"),
        (b"data: [1]\n\n", "not an object"),
        (b'data: {"id":"x"}\n\n', "without choices"),
        (chunk(1) + b"data: [1]\n\n", "not an object"),
        (chunk(1) + chunk(2)[:-3] + b"\n\n", "not JSON"),
        (chunk(1) + chunk(1), "sent twice"),
        (chunk(1) + chunk(2) + chunk(2), "sent twice"),
        (chunk(1) + DONE, "without a finish reason"),
        (stream(2) + DONE, "twice"),
        (chunk(1) + chunk(2, finish="stop") + total(2) + DONE + chunk(3), "after"),
        (chunk(1) + total(1) + DONE + chunk(2), "after"),
        (chunk(1) + chunk(2).replace(b'"x"', b'"x\n\ny"'), "not JSON"),
        (chunk(1) + chunk(2).replace(b'"x"', b'"\\x"'), "not JSON"),
        (
            chunk(1, finish="stop") + b'\n{"index":0,"text":"free","finish_reason":null}]}\n\n',
            "not a data event",
        ),
        (b'\n{"index":0,"text":"free","finish_reason":null}]}\n\n', "not a data event"),
        (stream(2) + chunk(3), "after"),
        (chunk(1, index=5, finish="stop"), "valid index"),
        (b"data: " + b"x" * (1 << 21), "longer than"),
    ],
)
def test_fault_29_garbage_is_a_violation(bytes_: bytes, rule: str) -> None:
    with pytest.raises(ProtocolViolation, match=rule):
        meter().feed(bytes_)
    with pytest.raises(ProtocolViolation, match=rule):
        feed_event_by_event(meter(), bytes_)


@pytest.mark.parametrize(
    ("last", "anomaly"),
    [
        (total(-1), "usage_negative"),
        (total(2, cached=99), "usage_cached_above_prompt"),
        (total(11), "usage_above_max_tokens"),
        (total(1), "usage_backwards"),
        (b"", "usage_missing"),
    ],
)
def test_fault_30_wrong_usage_is_named_and_not_taken(last: bytes, anomaly: str) -> None:
    reader = meter(most=10)
    reader.feed(chunk(1) + chunk(2, "end", finish="stop") + last + DONE)
    assert reader.anomaly == anomaly
    assert not reader.exact
    assert reader.produced().output == 2


@pytest.mark.parametrize("samples", [1, 2])
def test_fault_30_usage_that_goes_back_in_mid_stream_is_named(samples: int) -> None:
    reader = meter(samples)
    reader.feed(chunk(5) + chunk(3, "b"))
    assert reader.anomaly == "usage_backwards"
    assert reader.produced().output == 5


@pytest.mark.parametrize(("figure", "anomaly"), [(999, "usage_above_max_tokens"), (-5, "usage_negative")])
@pytest.mark.parametrize("samples", [1, 2])
def test_fault_30_impossible_figures_in_mid_stream_are_named_and_counted_instead(
    figure: int, anomaly: str, samples: int
) -> None:
    reader = meter(samples, most=10)
    reader.feed(chunk(1) + chunk(figure, "a") + chunk(figure, "b"))
    assert reader.anomaly == anomaly
    assert reader.produced() == Produced(31, 0, 3 if samples == 1 else 1, 31)


def test_an_explicit_zero_is_not_missing() -> None:
    reader = meter()
    reader.feed(chunk(0, "", finish="stop") + total(0) + DONE)
    assert reader.anomaly is None
    assert reader.produced() == Produced()


def test_an_error_inside_the_stream_is_a_failure_and_not_passed_on() -> None:
    reader = meter()
    assert b"error" not in reader.feed(chunk(1) + b'data: {"error":{"message":"at 10.0.0.1"}}\n\n')
    assert reader.failed


def test_a_stop_inside_the_engine_is_not_passed_on_as_an_end() -> None:
    reader = meter()
    passed = reader.feed(chunk(1) + chunk(1, "", finish="abort") + total(1) + DONE)
    assert reader.aborted
    assert b"abort" not in passed
    assert reader.produced() == Produced(31, 0, 1, 31)


def test_a_stop_before_the_first_token_is_one_although_no_chunk_says_so() -> None:
    meter = ChoicesMeter(1, 1, 50, wants_usage=True, wants_continuous=False)
    assert meter.feed(chunk(0, "")) != b""
    assert meter.feed(total(0)) == b""
    meter.feed(DONE)
    assert (meter.finished, meter.aborted, meter.exact, meter.produced()) == (True, True, True, Produced())


def test_usage_of_what_was_stopped_is_read_and_not_passed_on() -> None:
    meter = ChoicesMeter(1, 1, 50, wants_usage=True, wants_continuous=False)
    meter.counts = []
    meter.feed(chunk(1, "a") + chunk(2, "b"))
    assert meter.counts == [1, 2]
    assert meter.feed(chunk(4, "c", finish="abort") + total(4)) == b""
    assert meter.produced() == Produced(31, 0, 4, 31)
    assert meter.last_chunk is not None
    assert meter.last_chunk["choices"][0]["delta"] == {"content": "c"}
