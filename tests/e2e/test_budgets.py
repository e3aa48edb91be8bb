"""A budget stops its tenant, whichever gateway is asked and however many ask at once."""

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fixtures.crowd import crowd
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import GatewayProcess, wait_until
from tests.fixtures.stack import Stack, empty_stack
from tests.fixtures.webhook import Webhook

pytestmark = pytest.mark.together

MODEL, FREE = "sim", "free"
# A request of 100 tokens of output costs a hundredth of a dollar, and a little for its prompt.
PRICE = {"input": "1", "cached_input": "1", "output": "100"}
TOKENS, CALLERS = 100, 200
BODY: dict[str, Any] = {
    "model": MODEL, "max_tokens": TOKENS, "ignore_eos": True,
    "messages": [{"role": "user", "content": "Say something of the sea."}],
}  # fmt: skip


# As the SDK says it.
ASKED: dict[str, Any] = {**{name: BODY[name] for name in BODY if name != "ignore_eos"},
                         "extra_body": {"ignore_eos": True}}  # fmt: skip


class Shop:
    """Two gateways on one simulated engine."""

    def __init__(self, stack: Stack, second: GatewayProcess) -> None:
        self.stack, self.second = stack, second

    @property
    def ports(self) -> list[int]:
        return [self.stack.gateway.port, self.second.port]

    def budget(self, *words: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.stack.taas("budget", "set", *words, "--json"))
        return shown

    def spent(self, tenant: str) -> Decimal:
        """What the tenant owes, once all its requests are in the ledger."""
        self.at_rest()
        return Decimal(json.loads(self.stack.taas("usage", "--tenant", tenant, "--json"))["total"]["amount"])

    def at_rest(self) -> None:
        stack = self.stack
        stream = f"{{c:{stack.cell}}}:usage"
        wait_until(lambda: not stack.open_ids() and not stack.redis.xlen(stream), "ledger of all requests")

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.stack.gateway.url}/v1", api_key=key)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, postgres_server: str) -> Iterator[Shop]:
    home: Path = tmp_path_factory.mktemp("budgets")
    with ExitStack() as ending:
        stack = empty_stack(home, postgres_server, ending)
        stack.start_billing()
        for model, price in ((MODEL, PRICE), (FREE, dict.fromkeys(PRICE, "0"))):
            engine = SimEngine("--decode-ms", "1", "--slots", "64", model=model)
            ending.callback(engine.close)
            engine.start()
            stack.admin("POST", "models", name=model, context_tokens=8192)
            stack.admin("POST", "prices", model=model, **price)
            stack.admin("POST", "instances", model=model, url=engine.url, key=engine.key, instance=model)
        stack.cell = MODEL
        _, stack.key = stack.new_tenant()
        second = stack.make_gateway(TAAS_GATEWAY_METRICS_PORT="0")
        ending.callback(second.stop)
        stack.gateway.start()
        second.start()
        for model in (MODEL, FREE):
            stack.await_served(model)
        yield Shop(stack, second)


async def test_200_callers_of_two_gateways_spend_a_dollar_and_no_more_than_was_said(shop: Shop) -> None:
    tenant, key = shop.stack.new_tenant()
    shop.budget("--tenant", tenant, "--usd", "1.00", "--per", "month")
    statuses = await crowd(shop.ports, key, BODY, CALLERS)
    assert set(statuses) == {200, 429}
    spent = shop.spent(tenant)
    receipts = statuses.count(200)
    # What is held is the most that a request can cost but for its prompt, which is estimated: each may have
    # been some tokens longer.
    most = Decimal(1) + receipts * Decimal("0.00005")
    print(f"{receipts} of {CALLERS} answered, {spent} USD spent of 1.00, at most {most} was said")
    assert Decimal("0.98") < spent <= most
    assert shop.budget("--tenant", tenant, "--usd", "1.00", "--per", "month")["spent"] == f"{spent:f}"
    again = await crowd(shop.ports, key, BODY, 4)
    assert set(again) == {429}
    shop.stack.audit()


def test_an_sdk_gives_up_at_once_and_says_why_until_it_is_raised(shop: Shop) -> None:
    tenant, key = shop.stack.new_tenant()
    shop.budget("--tenant", tenant, "--usd", "0.015", "--per", "day")
    with shop.client(key) as client:
        client.chat.completions.create(**ASKED)
        shop.at_rest()
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(**ASKED)
        assert refused.value.code == "insufficient_quota"
        assert refused.value.type == "insufficient_quota"
        assert "The daily budget of this account is used up. It begins again at " in str(refused.value)
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert refused.value.response.request.headers["x-stainless-retry-count"] == "0"
        raised = shop.budget(
            "--tenant", tenant, "--usd", "0.015", "--per", "day", "--raise", "0.01", "--raise-until", "1h"
        )
        assert raised["raised"]["usd"] == "0.01"
        assert math.isclose(float(raised["left"]), 0.015, abs_tol=1e-3)
        client.chat.completions.create(**ASKED)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**ASKED)
    shop.stack.taas("budget", "remove", raised["budget"])
    with shop.client(key) as client:
        client.chat.completions.create(**ASKED)


def test_a_projects_and_a_keys_budget_stop_only_them(shop: Shop) -> None:
    tenant, key = shop.stack.new_tenant()
    other = json.loads(shop.stack.taas("key", "create", "--tenant", tenant, "--json"))
    shop.budget("--tenant", tenant, "--project", "e2e", "--usd", "0", "--per", "total")
    shop.budget("--key", other["key_id"], "--usd", "0.011", "--per", "total")
    with shop.client(key) as stopped, shop.client(other["key"]) as free:
        with pytest.raises(openai.RateLimitError) as refused:
            stopped.chat.completions.create(**ASKED)
        assert "The budget of this project is used up." in str(refused.value)
        free.chat.completions.create(**ASKED)
        shop.at_rest()
        with pytest.raises(openai.RateLimitError):
            free.chat.completions.create(**ASKED)
    listed = json.loads(shop.stack.taas("budget", "list", "--tenant", tenant, "--json"))["data"]
    assert {each["per"] for each in listed} == {"total"}
    assert {each["until_ms"] for each in listed} == {None}


def test_what_costs_nothing_is_not_stopped(shop: Shop) -> None:
    stack = shop.stack
    tenant, key = stack.new_tenant()
    shop.budget("--tenant", tenant, "--usd", "0", "--per", "day")
    with shop.client(key) as client:
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**ASKED)
        client.chat.completions.create(**ASKED | {"model": FREE})


def test_a_refused_request_holds_nothing(shop: Shop) -> None:
    """It is refused by a limit, after its budget had room."""
    tenant, key = shop.stack.new_tenant()
    made = shop.budget("--tenant", tenant, "--usd", "0.5", "--per", "day")
    shop.stack.admin("PUT", "limits", tenant=tenant, model="*", requests_per_minute=0)
    with shop.client(key) as client, pytest.raises(openai.RateLimitError) as refused:
        client.with_options(max_retries=0).chat.completions.create(**ASKED)
    assert refused.value.code == "rate_limit_exceeded"
    fields, held = f"{{b:{tenant}}}:budgets", f"{{b:{tenant}}}:held"
    wait_until(lambda: not shop.stack.redis.hlen(held), "nothing held")
    assert shop.stack.redis.hget(fields, f"{made['budget']}:held") == "0"


def test_somebody_is_told_before_it_is_used_up(shop: Shop) -> None:
    tenant, key = shop.stack.new_tenant()
    made = shop.budget("--tenant", tenant, "--usd", "0.02", "--per", "day")
    with closing(Webhook()) as webhook:
        words = ("budget", "alert", made["budget"], "--percent", "40", "--url", webhook.url, "--json")
        secret = json.loads(shop.stack.taas(*words))["secret"]
        with shop.client(key) as client:
            client.chat.completions.create(**ASKED)
        wait_until(lambda: bool(webhook.taken), "alert", 30)
        ((_, body),) = webhook.taken
    said = json.loads(body)
    assert (said["budget"], said["percent"], said["tenant"]) == (made["budget"], 40, tenant)
    assert Decimal(said["spent"]) == shop.spent(tenant)
    assert secret not in shop.stack.log("billing")


def test_a_caller_sees_what_it_has_used_and_may_use(shop: Shop) -> None:
    stack = shop.stack
    tenant, key = stack.new_tenant()
    other = json.loads(stack.taas("key", "create", "--tenant", tenant, "--json"))
    shop.budget("--tenant", tenant, "--usd", "5", "--per", "month")
    shop.budget("--key", other["key_id"], "--usd", "1", "--per", "day")
    stack.admin("PUT", "limits", tenant=tenant, model="*", requests_per_minute=600)
    credit = json.loads(stack.taas("credit", "grant", "--tenant", tenant, "--usd", "5", "--json"))
    for each in (key, key, other["key"]):
        with shop.client(each) as client:
            client.chat.completions.create(**ASKED)
    spent = shop.spent(tenant)
    with stack.gateway.client(other["key"]) as client:
        seen = client.get("/v1/usage/me").json()
        proven = client.get("/v1/usage/checkpoints").json()
        assert proven == {"data": [], "head": None, "next": None, "public_key": None, "audit_log": None}
        assert client.get("/v1/usage/checkpoints?limit=0").status_code == 400
        assert client.get("/v1/usage/me", headers={"authorization": "Bearer sk-no"}).status_code == 401
    used = {of: (row["requests"], row["tokens"]["output"]) for of, row in seen["used"].items()}
    assert used == {"tenant": (3, 3 * TOKENS), "project": (1, TOKENS), "key": (1, TOKENS)}
    assert Decimal(seen["used"]["tenant"]["amount"]) == spent
    assert [(each["of"], each["per"], each["usd"]) for each in seen["budgets"]] == [
        ("tenant", "month", "5.00"), ("key", "day", "1.00"),
    ]  # fmt: skip
    assert Decimal(seen["budgets"][0]["spent"]) == spent
    assert Decimal(seen["projected"]) >= spent
    assert seen["credits"] == [{"credit": credit["credit"], "left": "5.00", "expires_ms": None}]
    assert [(each["of"], each["requests_per_minute"]) for each in seen["limits"]] == [("tenant", 600)]
    with stack.gateway.client(key) as client:
        assert [each["of"] for each in client.get("/v1/usage/me").json()["budgets"]] == ["tenant"]
    assert "USED BY" in stack.taas("key", "usage", other["key_id"])
