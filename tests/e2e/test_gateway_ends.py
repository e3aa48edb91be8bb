"""A gateway that ends while real vLLM streams through it: killed, and told to stop."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.raw_caller import CHAT, END, LONG, ROUTES, TOKEN, RawCaller, body_of, callers_of, the_error
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.vllm


def test_fault_37_kill_9_of_a_gateway_leaves_one_absorbed_entry_a_request(stack: Stack) -> None:
    whole_body = body_of(CHAT, tokens=LONG, stream=False)
    with callers_of(stack, ROUTES, tokens=LONG) as callers, RawCaller(stack, CHAT, whole_body) as whole:
        for path, caller in zip(ROUTES, callers, strict=True):
            caller.read_until(TOKEN[path], 3)
        ids = stack.await_open(5)
        stack.gateway.kill()
        for caller in [*callers, whole]:
            caller.read_all()
    stack.restart_gateway()
    for request_id in ids:
        receipt = stack.receipt(request_id)
        assert (receipt["ending"], receipt["pricing"]) == ("gateway_died", "nothing_billed"), receipt
        assert receipt["billed"] == {"prompt": 0, "cached": 0, "output": 0}
        assert receipt["absorbed"]["output"] == receipt["produced"]["output"]
    stack.assert_conserved()


def test_fault_41_sigterm_lets_streams_end_and_bills_them(stack: Stack) -> None:
    paths = [*ROUTES, *ROUTES]
    with callers_of(stack, paths, tokens=40) as callers, ThreadPoolExecutor(len(paths)) as reading:
        for path, caller in zip(paths, callers, strict=True):
            caller.read_until(TOKEN[path])
        answers = [reading.submit(caller.read_all) for caller in callers]
        assert stack.gateway.terminate(timeout_s=40) == 0
        for path, answer in zip(paths, answers, strict=True):
            assert END[path] in answer.result()
    stack.restart_gateway()
    for caller in callers:
        receipt = stack.receipt(caller.request_id)
        assert receipt["ending"] == "complete", receipt
        assert receipt["billed"] == receipt["produced"]
    stack.assert_conserved()


def test_fault_41_streams_that_outlast_the_drain_end_with_an_error_and_none_is_unsettled(
    stack: Stack,
) -> None:
    longer, stack.gateway = stack.gateway, stack.make_gateway(TAAS_DRAIN_S="1", TAAS_SETTLE_S="5")
    longer.stop()
    stack.gateway.start()
    try:
        stack.await_served()
        with callers_of(stack, ROUTES, tokens=LONG) as callers, ThreadPoolExecutor(len(ROUTES)) as reading:
            for path, caller in zip(ROUTES, callers, strict=True):
                caller.read_until(TOKEN[path])
            answers = [reading.submit(caller.read_all) for caller in callers]
            assert stack.gateway.terminate(timeout_s=20) == 0
            texts = [answer.result() for answer in answers]
    finally:
        stack.gateway.stop()
        stack.gateway = longer
        stack.restart_gateway()
    for caller, text in zip(callers, texts, strict=True):
        assert "gateway_stopped" in the_error(text)
        receipt = stack.receipt(caller.request_id)
        assert receipt["ending"] == "gateway_stopped", receipt
        assert receipt["billed"]["output"] == 0
        assert receipt["absorbed"]["output"] == receipt["produced"]["output"] > 0
    stack.assert_conserved()
