"""Callers that leave real vLLM's answers: at once, after the head, in the middle, at the very end,
streamed and not, on every route.
"""

import pytest

from tests.e2e.raw_caller import FINISH, LONG, ROUTES, TOKEN, RawCaller, body_of
from tests.fixtures.gateway import wait_until
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.vllm


def assert_ended_as_left(stack: Stack, request_id: str, output_most: int = LONG) -> None:
    """Stopped at once, and billed for what was produced until then."""
    receipt = stack.receipt(request_id)
    assert receipt["ending"] == "client_disconnect", receipt
    assert receipt["billed"] == receipt["produced"], receipt
    assert receipt["anomaly"] is None
    assert receipt["produced"]["output"] < output_most
    assert receipt["delivered"]["output"] <= receipt["produced"]["output"]


def assert_stops(stack: Stack, request_id: str) -> None:
    """The engine is free again long before it could have made the answer: within a second, on an idle
    machine.
    """
    left = stack.engine_counters().generation
    wait_until(
        lambda: request_id not in stack.open_ids() and stack.engine_running() == 0, "stop of the engine", 30.0
    )
    assert stack.engine_counters().generation - left < LONG // 10


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", ROUTES)
def test_fault_42_caller_that_leaves_at_once_stops_the_engine(stack: Stack, path: str, stream: bool) -> None:
    with RawCaller(stack, path, body_of(path, tokens=LONG, stream=stream)):
        (request_id,) = stack.await_open(1)
    assert_stops(stack, request_id)
    assert_ended_as_left(stack, request_id)


@pytest.mark.parametrize("path", ROUTES)
def test_fault_42_whole_answer_left_while_it_is_made_is_billed_as_produced(stack: Stack, path: str) -> None:
    with RawCaller(stack, path, body_of(path, tokens=LONG, stream=False)):
        (request_id,) = stack.await_open(1)
        before = stack.engine_counters().generation
        wait_until(lambda: stack.engine_counters().generation > before + 2, "tokens", 30.0)
    assert_stops(stack, request_id)
    assert_ended_as_left(stack, request_id)
    assert stack.receipt(request_id)["billed"]["output"] > 2


@pytest.mark.parametrize("tokens", [0, 5], ids=["after the head", "in the middle"])
@pytest.mark.parametrize("path", ROUTES)
def test_fault_42_stream_that_is_left_is_billed_as_produced(stack: Stack, path: str, tokens: int) -> None:
    with RawCaller(stack, path, body_of(path, tokens=LONG)) as caller:
        caller.read_until(b"\r\n\r\n")
        if tokens:
            caller.read_until(TOKEN[path], tokens)
    assert_stops(stack, caller.request_id)
    assert_ended_as_left(stack, caller.request_id)
    assert stack.receipt(caller.request_id)["billed"]["output"] >= tokens


@pytest.mark.parametrize("path", ROUTES)
def test_fault_42_stream_left_after_its_last_token_is_billed_in_full(stack: Stack, path: str) -> None:
    with RawCaller(stack, path, body_of(path, tokens=6)) as caller:
        caller.read_until(FINISH[path])
    receipt = stack.receipt(caller.request_id)
    assert receipt["ending"] in {"complete", "client_disconnect"}
    assert receipt["billed"] == receipt["produced"]
    assert receipt["billed"]["output"] == 6


def test_nothing_of_all_this_is_unaccounted_for(stack: Stack) -> None:
    stack.assert_conserved()
