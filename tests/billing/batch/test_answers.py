"""What a gateway's answer means for a line, and the usage that answers tell."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.batch.answers import (
    FAILURES_MAX,
    Answered,
    Usage,
    failures_of,
    result_line,
    retry_in_s,
    unserved_line,
    usage_of,
)
from billing.wire.routes import Dialect


def answered(status: int, **headers: str) -> Answered:
    return Answered(status, {name.replace("_", "-"): value for name, value in headers.items()}, {})


@pytest.mark.parametrize("status", [429, 503])
def test_what_has_no_room_now_is_waited_for_as_long_as_it_says(status: int) -> None:
    assert retry_in_s(answered(status, retry_after_ms="90000"), 1, FAILURES_MAX) == 90
    assert retry_in_s(answered(status, retry_after_ms="300000", x_should_retry="false"), 1, 0) == 300
    assert retry_in_s(answered(status), 1, 0) == 1
    assert retry_in_s(answered(status), 50, 0) == 60


@pytest.mark.parametrize("status", [429, 503])
def test_what_no_waiting_helps_is_the_result(status: int) -> None:
    assert retry_in_s(answered(status, x_should_retry="false"), 1, 0) is None


@pytest.mark.parametrize("status", [401, 408, 500, 502, 504])
def test_a_failure_is_tried_so_often_and_then_is_the_result(status: int) -> None:
    assert retry_in_s(answered(status), 1, FAILURES_MAX - 1) is not None
    assert retry_in_s(answered(status), 1, FAILURES_MAX) is None


@pytest.mark.parametrize(
    "error", [{"code": "request_quarantined"}, {"details": {"error_code": "request_quarantined"}}]
)
def test_fault_32_a_line_that_may_kill_engines_is_tried_once_more(error: dict[str, Any]) -> None:
    refused = Answered(503, {"retry-after-ms": "600000", "x-should-retry": "false"}, {"error": error})
    assert retry_in_s(refused, 2, 0) == 600
    assert retry_in_s(refused, 4, failures_of(refused)) is None
    assert failures_of(answered(503)) == 0 < failures_of(answered(502))


@pytest.mark.parametrize("status", [200, 400, 403, 404, 413])
def test_any_other_answer_is_the_result(status: int) -> None:
    assert retry_in_s(answered(status), 1, 0) is None


@given(st.integers(1, 10**6), st.text(max_size=9))
def test_a_wait_is_never_negative_and_has_an_end(attempt: int, said: str) -> None:
    wait_s = retry_in_s(Answered(429, {"retry-after-ms": said}, {}), attempt, 0)
    assert wait_s is not None
    assert 0 < wait_s <= 3_600


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 5},
          "completion_tokens_details": {"reasoning_tokens": 2}}, (9, 5, 4, 2)),
        ({"input_tokens": 9, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 5},
          "output_tokens_details": {"reasoning_tokens": 2}}, (9, 5, 4, 2)),
        ({"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": 5,
          "cache_creation_input_tokens": 1}, (9, 5, 4, 0)),
        ({"prompt_tokens": 9, "total_tokens": 9}, (9, 0, 0, 0)),
        ({"prompt_tokens": -1, "completion_tokens": True, "prompt_tokens_details": None}, (0, 0, 0, 0)),
        (None, (0, 0, 0, 0)),
    ],
)  # fmt: skip
def test_usage_is_read_in_every_dialect(usage: Any, told: tuple[int, int, int, int]) -> None:
    found = usage_of({"usage": usage})
    assert found == Usage(
        input_tokens=told[0], cached_tokens=told[1], output_tokens=told[2], reasoning_tokens=told[3]
    )


def test_results_have_the_form_of_their_dialect() -> None:
    refused = Answered(400, {}, {"type": "error", "error": {"type": "invalid_request_error", "message": "m"}})
    line = json.loads(result_line(Dialect.ANTHROPIC, "a", "req_1", refused))
    assert line == {"custom_id": "a", "result": {"type": "errored", "error": refused.body}}
    line = json.loads(result_line(Dialect.OPENAI, "a", "req_1", refused))
    assert line["response"] == {"status_code": 400, "request_id": "req_1", "body": refused.body}
    assert (line["id"], line["error"]) == ("batch_req_1", None)
    kinds = [
        json.loads(unserved_line(Dialect.ANTHROPIC, "a", "b_1", outcome))["result"]["type"]
        for outcome in ("expired", "cancelled")
    ]
    assert kinds == ["expired", "canceled"]
