"""Streams of real vLLM that end without their last events: the connection to the engine is closed or reset in
the middle of an event, or the answer ends as if all had been said. The engine lives on.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.e2e.engine_relay import Break, EngineRelay, engine_behind_relay
from tests.e2e.raw_caller import LONG, ROUTES, TOKEN, RawCaller, body_of, the_error
from tests.e2e.request_counts import assert_recorded_as_counted
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def relay(stack: Stack) -> Iterator[EngineRelay]:
    with engine_behind_relay(stack) as relay:
        yield relay


@pytest.mark.parametrize("way", Break, ids=[way.name.lower() for way in Break])
def test_fault_28_stream_without_its_last_events_is_an_error_and_absorbed_to_the_token(
    stack: Stack, relay: EngineRelay, way: Break
) -> None:
    tenant, key = stack.new_tenant()
    # Failures in a row would take the instance out of rotation.
    with RawCaller(stack, ROUTES[0], body_of(ROUTES[0], tokens=2), key) as good:
        good.read_all()
    with ExitStack() as closing, ThreadPoolExecutor(len(ROUTES)) as reading:
        callers = [
            closing.enter_context(RawCaller(stack, path, body_of(path, tokens=LONG), key)) for path in ROUTES
        ]
        for path, caller in zip(ROUTES, callers, strict=True):
            caller.read_until(TOKEN[path], 3)
        relay.broken = way
        answers = [reading.submit(caller.read_all) for caller in callers]
        texts = [answer.result() for answer in answers]
        relay.broken = None
    for caller, text in zip(callers, texts, strict=True):
        assert "engine_failed" in the_error(text)
        receipt = stack.receipt(caller.request_id, key)
        assert (receipt["ending"], receipt["pricing"]) == ("engine_died", "nothing_billed"), receipt
        assert receipt["billed"] == {"prompt": 0, "cached": 0, "output": 0}
        assert receipt["absorbed"]["output"] == receipt["produced"]["output"] >= 3
        assert receipt["absorbed"]["prompt"] == receipt["produced"]["prompt"]
    stack.assert_conserved()
    assert_recorded_as_counted(stack, tenant, [caller.request_id for caller in (good, *callers)])
