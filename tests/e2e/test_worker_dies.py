"""vLLM killed under its streams: each ends with one error, none is billed, and the worker brings it back."""

import pytest

from tests.e2e.raw_caller import CHAT, LONG, ROUTES, TOKEN, RawCaller, body_of, callers_of, the_error
from tests.fixtures.gateway import wait_until
from tests.fixtures.stack import Stack, kill_9

pytestmark = pytest.mark.vllm


def test_fault_26_and_27_killed_engine_ends_streams_with_one_error_and_comes_back(stack: Stack) -> None:
    before = stack.instance()
    assert before is not None
    whole_body = body_of(CHAT, tokens=LONG, stream=False)
    with callers_of(stack, ROUTES, tokens=LONG) as callers, RawCaller(stack, CHAT, whole_body) as whole:
        for path, caller in zip(ROUTES, callers, strict=True):
            caller.read_until(TOKEN[path], 3)
        ids = stack.await_open(5)
        # So that the worker and the audit have seen tokens of all five.
        counted = stack.engine_counters().generation
        wait_until(lambda: stack.engine_counters().generation > counted + 100, "tokens", 60.0)
        kill_9(stack.engine_pid())
        assert b" 50" in whole.read_all()[:13], whole.seen[:200]
        texts = [caller.read_all() for caller in callers]
    for text in texts:
        assert "engine_failed" in the_error(text)
    with RawCaller(stack, CHAT, body_of(CHAT, tokens=4)) as late:
        assert b" 503 " in late.read_all()[:20], late.seen
        assert b"retry-after" in late.seen
    for request_id in ids:
        receipt = stack.receipt(request_id)
        assert receipt["ending"] == "engine_died", receipt
        assert receipt["billed"]["output"] == 0
        assert receipt["absorbed"]["output"] == receipt["produced"]["output"]
        assert receipt["produced"]["output"] >= (3 if receipt["stream"] else 0)
    stack.await_engine(not_epoch=before["epoch"])
    stack.await_served()
    with RawCaller(stack, CHAT, body_of(CHAT, tokens=4)) as caller:
        assert b"[DONE]" in caller.read_all()
    assert stack.receipt(caller.request_id)["billed"]["output"] == 4
    # What died with the engine's counters is said as lost, not as a residual.
    stack.assert_conserved()
