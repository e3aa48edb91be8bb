"""Redis loses everything under a whole installation: nobody gets its limits twice, owners stay owners,
what runs ends as if nothing had been.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis

from billing.wire import redis_keys
from loadtest import plain_http
from loadtest.scenarios.speed import EngineSpeed
from loadtest.scenarios.stack import MODEL, ScenarioStack, running
from tests.fixtures.gateway import Catalogue, StartGateway, wait_until

pytestmark = pytest.mark.together

TOKENS = 300


@pytest.fixture(scope="module")
def stack() -> Iterator[ScenarioStack]:
    with running(EngineSpeed(slots=8, decode_ms=20.0)) as stack:
        stack.add_tenant("owner")
        stack.add_tenant("guest")
        stack.add_tenant("limited")
        limit = {"tenant": "limited", "model": "*", "requests_per_minute": 2}
        stack.admin.put("/admin/v1/limits", json=limit).raise_for_status()
        stack.sign("owner", 4000)
        yield stack


def ask(stack: ScenarioStack, tenant: str, tokens: int, gateway: int = 0) -> httpx.Response:
    """One streamed chat, read to its end."""
    return plain_http.post(
        f"http://127.0.0.1:{stack.ports[gateway]}/v1/chat/completions", timeout=60,
        headers={"authorization": f"Bearer {stack.keys[tenant]}"},
        json={"model": MODEL, "messages": [{"role": "user", "content": "sea"}], "max_tokens": tokens,
        "stream": True, "ignore_eos": True},
    )  # fmt: skip


def in_flight(client: redis.Redis) -> dict[str, int]:
    found: Any = client.hgetall(redis_keys.flight(MODEL))
    return {
        name: int(value) for name, value in found.items() if name[:2] in {"r:", "o:", "f:"} and int(value)
    }


def receipt(stack: ScenarioStack, answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = stack.admin.get(f"/admin/v1/requests/{answer.headers['x-request-id']}").json()
    return found


def test_fault_35_flushall_gives_nobody_its_limits_twice_and_ends_no_stream(stack: ScenarioStack) -> None:
    with (
        redis.Redis.from_url(stack.redis_url, decode_responses=True) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        used_up = [ask(stack, "limited", 1).status_code for _ in range(3)]
        assert used_up == [200, 200, 429]
        wait_until(lambda: client.xlen(redis_keys.usage_stream(MODEL)) == 0, "all usage in SQL")
        streams = [
            threads.submit(ask, stack, tenant, TOKENS, n) for n, tenant in enumerate(("owner", "guest"))
        ]
        running_there = {"r:engine-0": 1, "o:engine-0": 1}
        wait_until(lambda: in_flight(client) == running_there, "two streams")
        client.flushall()
        # At once: before anything is there again.
        at_once = [threads.submit(ask, stack, "owner", 1, n % 2) for n in range(4)]
        limited = threads.submit(ask, stack, "limited", 1)
        owners = [each.result() for each in at_once]
        assert [(each.status_code, each.headers.get("x-taas-class")) for each in owners] == [
            (200, "reserved")
        ] * 4
        assert limited.result().status_code == 429
        wait_until(lambda: in_flight(client) == running_there, "the same two streams again")
        assert not any(each.done() for each in streams)
        ended = [each.result() for each in streams]
        for answer, class_ in zip(ended, ("reserved", "on_demand"), strict=True):
            assert answer.text.rstrip().endswith("data: [DONE]")
            wait_until(lambda answer=answer: receipt(stack, answer).get("state") == "recorded", "its record")  # type: ignore[misc]
            known = receipt(stack, answer)
            assert (known["ending"], known["class"], known["billed"]["output"]) == (
                "complete",
                class_,
                TOKENS,
            )
            assert not known.get("orphan")
        assert in_flight(client) == {}
    wait_until(
        lambda: stack.admin.get("/admin/v1/audit").json()["residual_tokens"] == 0, "every token accounted for"
    )


def test_fault_35_who_waited_is_told_to_stand_in_line_anew(stack: ScenarioStack) -> None:
    def in_line() -> int:
        return client.zcard(redis_keys.waiting_requests(MODEL, "o", stack.tenants["guest"]))

    with (
        redis.Redis.from_url(stack.redis_url, decode_responses=True) as client,
        ThreadPoolExecutor(16) as threads,
    ):
        streams = [threads.submit(ask, stack, "guest", TOKENS) for _ in range(12)]
        wait_until(lambda: in_line() >= 4, "a line")
        client.flushall()
        wait_until(lambda: in_line() >= 1, "a line again")
        assert [each.result().status_code for each in streams] == [200] * 12


def test_fault_35_an_emptied_redis_does_not_say_that_a_key_is_wrong(
    catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    gateway = start_gateway()
    catalogue.redis.delete(redis_keys.PROJECTION)
    with gateway.client("sk-unknown") as client:
        answer = client.get("/v1/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "dependency_unavailable")
        catalogue.redis.set(redis_keys.PROJECTION, "a test:2")
        assert client.get("/v1/models").status_code == 401
