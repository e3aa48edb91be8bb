"""Two gateways on one Redis and one real vLLM."""

from collections.abc import Iterator

import pytest

from tests.e2e.raw_caller import CHAT, body_of
from tests.e2e.request_counts import ledger_entries
from tests.fixtures.crowd import crowd
from tests.fixtures.gateway import GatewayProcess
from tests.fixtures.stack import Stack

pytestmark = pytest.mark.vllm

CALLERS, REQUESTS_PER_MINUTE = 200, 10


@pytest.fixture
def second_gateway(stack: Stack) -> Iterator[GatewayProcess]:
    gateway = stack.make_gateway(TAAS_GATEWAY_METRICS_PORT="0")
    gateway.start()
    yield gateway
    assert gateway.terminate() == 0


async def test_fault_39_two_gateways_and_200_callers_admit_exactly_the_limit(
    stack: Stack, second_gateway: GatewayProcess
) -> None:
    tenant, key = stack.new_tenant()
    stack.admin("PUT", "limits", tenant=tenant, model="*", requests_per_minute=REQUESTS_PER_MINUTE)
    ports = [stack.gateway.port, second_gateway.port]
    began_s = redis_s(stack)
    statuses = await crowd(ports, key, body_of(CHAT, "hi", tokens=2, stream=False), CALLERS)
    # A minute's requests at once, and one more for each share of a minute that has passed: none in 6 seconds.
    most = REQUESTS_PER_MINUTE + int((redis_s(stack) - began_s) * REQUESTS_PER_MINUTE / 60)
    assert set(statuses) == {200, 429}
    assert REQUESTS_PER_MINUTE <= statuses.count(200) <= most
    stack.assert_conserved()
    assert (
        len(set(ledger_entries(stack, tenant))) == len(ledger_entries(stack, tenant)) == statuses.count(200)
    )


def redis_s(stack: Stack) -> float:
    seconds, micros = stack.redis.time()
    return float(seconds) + micros / 1e6
