"""The meters of providers' answers, where they differ from those of engines."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.request import Route
from gateway.stream.meter import Meter, Produced, ProtocolViolation
from gateway.stream.meter_provider import cache_written, kept_usage, provider_meter
from tests.gateway.protocol.bodies import parse


def meter_of(route: Route, **fields: Any) -> Meter:
    return provider_meter(parse(route, **{"stream": True, **fields}))


def chunk(usage: Any = None, *, said: str = "", finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": said}, "finish_reason": finish}
    whole = {
        "id": "c-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "big",
        "choices": [choice],
    }
    return b"data: " + json.dumps(whole | {"usage": usage} | fields).encode() + b"\n\n"


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + json.dumps({"type": kind, **fields}).encode() + b"\n\n"


def datas(passed: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in passed.split(b"\n") if line.startswith(b"data: {")]


DONE = b"data: [DONE]\n\n"
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 2,
    "total_tokens": 9,
    "prompt_tokens_details": {"cached_tokens": 3},
}


@pytest.mark.parametrize("wanted", [False, True])
def test_usage_in_a_chunk_of_its_own_is_the_bill(wanted: bool) -> None:
    meter = meter_of(Route.CHAT, stream_options={"include_usage": wanted})
    raw = chunk(said="a") + chunk(said="b", finish="stop") + chunk(USAGE, choices=[]) + DONE
    passed = datas(meter.feed(raw))
    assert (meter.produced(), meter.exact, meter.finished) == (Produced(7, 3, 2, 7), True, True)
    assert [each["usage"]["completion_tokens"] for each in passed if "usage" in each] == [2] * wanted


@pytest.mark.parametrize("wanted", [False, True])
def test_usage_on_the_last_chunk_is_the_bill_too(wanted: bool) -> None:
    meter = meter_of(Route.CHAT, stream_options={"include_usage": wanted})
    passed = datas(meter.feed(chunk(said="a") + chunk(USAGE, said="b", finish="stop") + DONE))
    assert (meter.produced(), meter.exact) == (Produced(7, 3, 2, 7), True)
    assert [each["usage"]["completion_tokens"] for each in passed if "usage" in each] == [2] * wanted


def test_several_samples_have_one_usage_together() -> None:
    meter = meter_of(Route.CHAT, n=2)
    choices = [{"index": at, "delta": {"content": "a"}, "finish_reason": "stop"} for at in (0, 1)]
    meter.feed(b"".join(chunk(choices=[choice]) for choice in choices))
    meter.feed(chunk(USAGE, choices=[]) + DONE)
    assert (meter.produced(), meter.anomaly) == (Produced(7, 3, 2, 7), None)


def test_usage_on_every_chunk_is_of_the_whole_request_and_of_no_sample() -> None:
    meter = meter_of(Route.CHAT, n=2, max_tokens=2)
    whole = USAGE | {"completion_tokens": 4}
    choices = [{"index": at, "delta": {"content": "a"}, "finish_reason": "stop"} for at in (0, 1)]
    meter.feed(b"".join(chunk(whole, choices=[choice]) for choice in choices) + DONE)
    assert (meter.produced(), meter.anomaly) == (Produced(7, 3, 4, 7), None)


def test_an_answer_has_one_id_of_ours_and_nothing_of_the_providers_machines() -> None:
    meter = meter_of(Route.CHAT)
    passed = datas(meter.feed(chunk(said="a", system_fingerprint="fp_1", obfuscation="x") + chunk(said="b")))
    assert len({each["id"] for each in passed}) == 1
    assert passed[0]["id"].startswith("chatcmpl-")
    assert passed[0]["id"] != "c-1"
    assert not {"system_fingerprint", "obfuscation"} & passed[0].keys()


@pytest.mark.parametrize("raw", [b"data: {\n\n", b"data: []\n\n", b'data: {"id": "c"}\n\n', b"x\n\n"])
def test_what_is_no_chunk_breaks_the_protocol(raw: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        meter_of(Route.CHAT).feed(raw)


def messages(start: Any, end: Any) -> Meter:
    meter = meter_of(Route.MESSAGES)
    meter.feed(event("message_start", message={"id": "m", "usage": start}))
    meter.feed(event("content_block_delta", delta={"type": "text_delta", "text": "a"}, index=0))
    meter.feed(event("message_delta", delta={"stop_reason": "end_turn"}, usage=end) + event("message_stop"))
    return meter


START = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 20,
    "cache_read_input_tokens": 30,
    "output_tokens": 1,
}


@pytest.mark.parametrize(
    ("end", "produced"),
    [
        ({"output_tokens": 5}, Produced(60, 30, 5, 60)),
        ({"output_tokens": 5, "input_tokens": None}, Produced(60, 30, 5, 60)),
        ({"output_tokens": 5, "input_tokens": 12}, Produced(62, 30, 5, 62)),
        ({"output_tokens": 5, "input_tokens": 60, "cache_read_input_tokens": 0,
          "cache_creation_input_tokens": 0}, Produced(60, 0, 5, 60)),
    ],
)  # fmt: skip
def test_a_message_has_its_prompt_from_the_beginning_unless_the_end_says_more(
    end: dict[str, Any], produced: Produced
) -> None:
    meter = messages(START, end)
    assert (meter.produced(), meter.exact, meter.anomaly) == (produced, True, None)


@pytest.mark.parametrize(
    "figures", [{}, None, {"input_tokens": "5"}, {"output_tokens": -1}, {"input_tokens": -99}]
)
def test_a_message_with_a_wrong_figure_is_flagged(figures: Any) -> None:
    meter = messages({} if figures == {} else START, figures)
    assert meter.anomaly is not None
    assert not meter.exact


def test_each_chunk_has_our_id_and_nothing_of_the_providers_machines() -> None:
    inside = '"id":"theirs-%d","system_fingerprint":"theirs","provider":"theirs","created":1,"model":"theirs"'
    said = '"choices":[{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}]'
    meter = meter_of(Route.CHAT)
    passed = b"".join(meter.feed(f"data: {{{inside % at},{said}}}\n\n".encode()) for at in (1, 1, 2))
    assert b"theirs" not in passed
    assert len({each["id"] for each in datas(passed)}) == 1


def test_until_its_end_a_message_is_counted_with_the_whole_prompt() -> None:
    meter = meter_of(Route.MESSAGES)
    meter.feed(event("message_start", message={"id": "m", "usage": START}))
    meter.feed(event("content_block_delta", delta={"type": "text_delta", "text": "a"}, index=0))
    assert (meter.produced(), meter.counted(), meter.exact) == (Produced(60, 0, 1, 60), True, False)


@given(pieces=st.lists(st.integers(1, 60), min_size=1), said=st.lists(st.text(max_size=8), min_size=1))
def test_however_a_stream_is_cut_it_is_read_alike(pieces: list[int], said: list[str]) -> None:
    raw = b"".join(chunk(said=text) for text in said) + chunk(finish="stop") + chunk(USAGE, choices=[]) + DONE
    whole, cut = meter_of(Route.CHAT), meter_of(Route.CHAT)
    passed, at, passed_cut = whole.feed(raw), 0, b""
    while at < len(raw):
        step = pieces[at % len(pieces)]
        passed_cut += cut.feed(raw[at : at + step])
        at += step
    assert cut.produced() == whole.produced() == Produced(7, 3, 2, 7)
    assert [each["choices"] for each in datas(passed_cut)] == [each["choices"] for each in datas(passed)]


def test_figures_of_a_usage_object_are_kept_and_no_text() -> None:
    told = {
        "input_tokens": 9, "cache_creation": {"ephemeral_5m_input_tokens": 2, "note": "what was said"},
        "service_tier": "standard", "What was said?": 1, "output_tokens": True, "cost": 0.1,
    }  # fmt: skip
    kept = {"input_tokens": 9, "cache_creation": {"ephemeral_5m_input_tokens": 2}}
    assert kept_usage(told) == kept
    assert kept_usage(None) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=9) | st.just("a"), inner, max_size=9)
        ),
        max_leaves=40,
    )
)
def test_whatever_a_provider_says_only_figures_are_kept(said: Any) -> None:
    def figures(kept: Any, depth: int) -> None:
        assert depth >= 0
        for name, figure in kept.items():
            assert name.isascii()
            if type(figure) is dict:
                figures(figure, depth - 1)
            else:
                assert type(figure) is int

    if type(said) is dict:
        kept = kept_usage(said)
        figures(kept, 3)
        assert json.loads(json.dumps(kept)) == kept
        assert cache_written(said) >= 0


@pytest.mark.parametrize(
    ("told", "written"),
    [
        ({"cache_creation_input_tokens": 7}, 7),
        ({"prompt_tokens_details": {"cache_write_tokens": 5}}, 5),
        ({"input_tokens_details": {"cache_write_tokens": 3}}, 3),
        ({"prompt_tokens_details": {"cached_tokens": 5}}, 0),
        ({"cache_creation_input_tokens": -7}, 0),
        ({"cache_creation_input_tokens": "7"}, 0),
        ({}, 0),
    ],
)
def test_what_was_put_into_the_cache(told: dict[str, Any], written: int) -> None:
    assert cache_written(told) == written
