"""Each fault does what its name says, to the request it was ordered for and to no other."""

import json
from typing import Any

import httpx
import pytest

from loadtest import plain_http
from loadtest.engine.fault_answers import LEAK
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import wait_until
from tests.loadtest.test_engine_answers import events

STREAM: dict[str, Any] = {
    "max_tokens": 10,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}


def chat(marker: str = "", **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"tell me {marker}"}],
        "max_tokens": 10,
        "ignore_eos": True,
    } | more


def read_until_broken(
    engine: SimEngine, body: dict[str, Any], request_id: str = "x"
) -> tuple[str, type[Exception] | None]:
    """What arrived, and how the transport failed, if it did."""
    text = ""
    headers = {"authorization": f"Bearer {engine.key}", "x-request-id": request_id}
    try:
        with httpx.stream(
            "POST", f"{engine.url}/v1/chat/completions", json=body, headers=headers, timeout=5
        ) as answer:
            for piece in answer.iter_text():
                text += piece
    except httpx.TransportError as exc:
        return text, type(exc)
    return text, None


@pytest.mark.parametrize("death", ["reset", "close"])
def test_die_after_tokens_delivers_and_counts_exactly_so_many(engine: SimEngine, death: str) -> None:
    before = engine.counters()["generation"]
    text, broken = read_until_broken(engine, chat(f"[[fault:die_after_tokens=4:{death}]]", **STREAM), "dead")
    assert broken in (httpx.ReadError, httpx.RemoteProtocolError)
    assert [chunk["usage"]["completion_tokens"] for chunk in events(text)] == [0, 1, 2, 3, 4]
    assert engine.counters()["generation"] - before == engine.truth()["dead"]["output"] == 4
    assert engine.truth()["dead"]["finish"] == "died"


def test_die_before_first_token_counts_nothing(engine: SimEngine) -> None:
    before = engine.counters()
    text, broken = read_until_broken(engine, chat("[[fault:die_before_first_token]]", **STREAM))
    assert (events(text), broken is not None) == ([], True)
    assert engine.counters() == before


def test_the_whole_process_can_die(make_engine: EngineMaker) -> None:
    engine = make_engine()
    text, broken = read_until_broken(engine, chat("[[fault:die_after_tokens=3:exit]]", **STREAM))
    assert (len(events(text)), broken is not None) == (4, True)
    with pytest.raises(httpx.TransportError):
        engine.post("/v1/chat/completions", chat())
    # Its connections close a moment before it is gone.
    wait_until(lambda: not engine.alive(), "end of the process")
    engine.restart()
    assert engine.counters()["generation"] == 0
    engine.post("/v1/chat/completions", chat()).raise_for_status()


def test_refuse_closes_at_once_and_only_as_often_as_ordered(engine: SimEngine) -> None:
    engine.faults("refuse", count=2)
    for _ in range(2):
        with pytest.raises(httpx.TransportError):
            engine.post("/v1/chat/completions", chat())
    engine.post("/v1/chat/completions", chat()).raise_for_status()


@pytest.mark.parametrize("how", ["silent", "headers"])
def test_hang_answers_nothing(engine: SimEngine, how: str) -> None:
    headers = {"authorization": f"Bearer {engine.key}"}
    with pytest.raises(httpx.ReadTimeout):
        plain_http.post(
            f"{engine.url}/v1/chat/completions",
            json=chat(f"[[fault:hang={how}]]", **STREAM),
            headers=headers,
            timeout=0.3,
        )


def test_stall_stops_in_the_middle_and_can_still_be_aborted(engine: SimEngine) -> None:
    seen = ""
    headers = {"authorization": f"Bearer {engine.key}", "x-request-id": "stuck"}
    with httpx.stream(
        "POST",
        f"{engine.url}/v1/chat/completions",
        json=chat("[[fault:stall_after_tokens=3]]", **STREAM),
        headers=headers,
    ) as answer:
        for line in answer.iter_lines():
            seen += line + "\n"
            if '"completion_tokens":3' in line and not engine.truth()["stuck"]["finish"]:
                assert engine.counters()["running"] == 1
                engine.post("/inference/v1/abort_requests", {"request_ids": ["chatcmpl-stuck"]})
    assert events(seen)[-1]["usage"]["completion_tokens"] == 3
    assert engine.truth()["stuck"]["finish"] == "abort"


@pytest.mark.parametrize(("value", "tokens"), [("", 10), ("=4", 4)])
def test_end_without_done_is_clean_for_http_and_says_no_finish_and_no_total(
    engine: SimEngine, value: str, tokens: int
) -> None:
    text, broken = read_until_broken(engine, chat(f"[[fault:end_without_done{value}]]", **STREAM), "cut")
    assert broken is None
    assert "[DONE]" not in text
    chunks = events(text)
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]] == [None] * (
        tokens + 1
    )
    assert engine.truth()["cut"]["output"] == tokens


def test_end_without_done_of_a_whole_answer_lacks_usage_and_finish(engine: SimEngine) -> None:
    answer = engine.post("/v1/chat/completions", chat("[[fault:end_without_done]]")).json()
    assert ("usage" in answer, answer["choices"][0]["finish_reason"]) == (False, None)


def test_usage_can_be_missing(engine: SimEngine) -> None:
    text, _ = read_until_broken(engine, chat("[[fault:usage=missing]]", **STREAM))
    assert '"usage"' not in text
    assert text.endswith("data: [DONE]\n\n")
    assert "usage" not in engine.post("/v1/chat/completions", chat("[[fault:usage=missing]]")).json()


@pytest.mark.parametrize("kind", ["negative", "zero", "huge", "cached_gt_prompt"])
def test_usage_can_lie_in_whole_answers_and_in_streams(engine: SimEngine, kind: str) -> None:
    body = chat(f"[[fault:usage={kind}]]")
    text, _ = read_until_broken(engine, body | STREAM)
    for usage in (engine.post("/v1/chat/completions", body).json()["usage"], events(text)[-1]["usage"]):
        wrong = {
            "negative": usage["completion_tokens"] < 0,
            "zero": usage["prompt_tokens"] == usage["completion_tokens"] == 0,
            "huge": usage["completion_tokens"] > 1_000_000,
            "cached_gt_prompt": usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"],
        }
        assert wrong[kind]


def test_usage_can_run_backwards(engine: SimEngine) -> None:
    text, _ = read_until_broken(engine, chat("[[fault:usage=backwards]]", **STREAM))
    counts = [chunk["usage"]["completion_tokens"] for chunk in events(text)]
    assert counts != sorted(counts)
    assert counts[-1] < max(counts)


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_a_status_comes_in_the_engines_form_with_something_to_leak(engine: SimEngine, status: int) -> None:
    answer = engine.post("/v1/chat/completions", chat(f"[[fault:status={status}]]"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)
    assert LEAK in answer.text


def test_garbage_kinds_are_what_they_say(engine: SimEngine) -> None:
    def answer(kind: str) -> httpx.Response:
        return engine.post("/v1/chat/completions", chat(f"[[fault:garbage={kind}]]", **STREAM))

    assert answer("html").headers["content-type"] == "text/html"
    assert answer("gzip").headers["content-encoding"] == "gzip"
    assert len(answer("long_line").content) > 10_000_000
    assert "data:" not in answer("not_sse").text
    with pytest.raises(json.JSONDecodeError):
        events(answer("truncated_json").text)
    assert bytes(range(256)) in answer("binary").content
    with pytest.raises(httpx.RemoteProtocolError):
        answer("bad_chunk")


def test_duplicate_and_out_of_order_chunks_carry_wrong_running_counts(engine: SimEngine) -> None:
    def counts(kind: str) -> list[int]:
        text, _ = read_until_broken(engine, chat(f"[[fault:garbage={kind}]]", **STREAM))
        return [chunk["usage"]["completion_tokens"] for chunk in events(text)]

    assert counts("duplicate") == [0, 1, 2, 2, *range(3, 11), 10]
    assert counts("out_of_order") == [0, 1, 3, 2, *range(4, 11), 10]


def test_slow_drip_slows_only_the_request_that_was_ordered(engine: SimEngine) -> None:
    dripping = httpx.stream(
        "POST",
        f"{engine.url}/v1/chat/completions",
        json=chat("[[fault:slow_drip=60000]]", **STREAM),
        headers={"authorization": f"Bearer {engine.key}"},
    )
    with dripping as answer:
        first = next(line for line in answer.iter_lines() if '"completion_tokens":1' in line)
        assert first
        assert engine.post("/v1/chat/completions", chat()).json()["usage"]["completion_tokens"] == 10


def test_an_order_hits_the_next_requests_that_fit_and_no_other(engine: SimEngine) -> None:
    engine.faults("status", 500, count=1, route="completions")
    engine.post("/v1/chat/completions", chat()).raise_for_status()
    assert engine.post("/v1/completions", {"prompt": "a"}).status_code == 500
    assert engine.post("/v1/completions", {"prompt": "a"}).status_code == 200
    engine.faults("status", 503, count=None, model="another")
    assert engine.post("/v1/completions", {"prompt": "a"}).status_code == 200
    engine.faults("status", 503, count=None)
    assert {engine.post("/v1/completions", {"prompt": "a"}).status_code for _ in range(3)} == {503}
    engine.reset()
    assert engine.post("/v1/completions", {"prompt": "a"}).status_code == 200


@pytest.mark.parametrize(
    "order", [("no_such_fault", None), ("garbage", "nice"), ("status", "high"), ("usage", None)]
)
def test_an_order_with_a_typing_error_is_refused(engine: SimEngine, order: tuple[str, str | None]) -> None:
    with pytest.raises(httpx.HTTPStatusError):
        engine.faults(*order)


def test_what_was_received_can_be_read_back(engine: SimEngine) -> None:
    engine.post("/v1/chat/completions", chat("canary"), x_request_id="seen", x_tenant="none")
    received = engine.requests()[-1]
    assert (received["path"], received["body"]["messages"][0]["content"]) == (
        "/v1/chat/completions",
        "tell me canary",
    )
    assert ["x-request-id", "seen"] in received["headers"]
