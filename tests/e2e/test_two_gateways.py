"""Two gateways on one Redis and one real vLLM."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.raw_caller import CHAT, body_of
from tests.e2e.request_counts import ledger_entries
from tests.fixtures.crowd import crowd
from tests.fixtures.gateway import GatewayProcess, wait_until
from tests.fixtures.stack import MODEL, Stack

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


def test_fault_22_of_fifty_callers_one_is_answered_and_the_others_told_its_bill(
    stack: Stack, second_gateway: GatewayProcess
) -> None:
    tenant, key = stack.new_tenant()
    said: Any = [{"role": "user", "content": "Tell a story."}]
    asked: Any = {"model": MODEL, "messages": said, "max_tokens": 24, "extra_body": {"ignore_eos": True}}

    def ask(number: int) -> Any:
        gateway = (stack.gateway, second_gateway)[number % 2]
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
            try:
                return client.chat.completions.create(**asked, extra_headers={"Idempotency-Key": "story"})
            except openai.ConflictError as refused:
                return refused

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    (served,) = [answer for answer in answers if not isinstance(answer, openai.ConflictError)]
    assert served.usage.completion_tokens == 24
    assert {answer.code for answer in answers if answer is not served} <= {
        "idempotency_key_in_use", "idempotency_request_done",
    }  # fmt: skip
    stack.await_rest()
    done = ask(1)
    receipt = done.body["receipt"]
    (first,) = set(ledger_entries(stack, tenant))
    assert first == receipt["request_id"] == done.response.headers["original-request"]
    assert receipt["billed"]["output"] == 24
    stack.taas("tenant", "set", tenant, "--retain-answers", "1h")
    again: list[Any] = []

    def kept() -> bool:
        with openai.OpenAI(base_url=f"{stack.gateway.url}/v1", api_key=key, max_retries=0) as client:
            headers = {"Idempotency-Key": f"kept-{len(again)}"}
            answer = client.chat.completions.create(**asked, extra_headers=headers)
            try:
                again.append((answer, client.chat.completions.create(**asked, extra_headers=headers)))
            except openai.ConflictError:
                again.append(None)  # the gateway does not know yet what the tenant wants
        return again[-1] is not None

    wait_until(kept, "a stored answer")
    assert again[-1][0] == again[-1][1]
    stack.assert_conserved()
    assert len(set(ledger_entries(stack, tenant))) == 1 + len(again)


def test_fault_22_after_kill_9_the_books_say_how_a_request_ended(stack: Stack) -> None:
    tenant, key = stack.new_tenant()
    body = body_of(CHAT, "Tell a long story.", tokens=400, stream=True) | {"ignore_eos": True}
    headers = {"idempotency-key": "long"}
    dying = stack.make_gateway(TAAS_GATEWAY_METRICS_PORT="0", TAAS_LEASE_MS="2000")
    dying.start()
    with (
        contextlib.suppress(httpx.TransportError),
        dying.client(key) as client,
        client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        dying.kill()
        list(lines)

    def told() -> dict[str, Any]:
        with stack.gateway.client(key) as client:
            answer = client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 409, answer.text
        error: dict[str, Any] = answer.json()["error"]
        return error

    wait_until(lambda: told()["code"] == "idempotency_request_done", "the end of the request", instead=told)
    receipt = told()["receipt"]
    assert (receipt["ending"], receipt["billed"]["output"]) == ("gateway_died", 0)
    stack.await_rest()
    stack.assert_conserved()
    assert len(set(ledger_entries(stack, tenant))) == 1


def redis_s(stack: Stack) -> float:
    seconds, micros = stack.redis.time()
    return float(seconds) + micros / 1e6
