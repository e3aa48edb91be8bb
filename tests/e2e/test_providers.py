"""The whole product over another provider's API, without an engine: an operator adds it, both SDKs are
answered, and the books are right.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.fixtures.gateway import wait_until
from tests.fixtures.provider import PROVIDER_KEY, SimProvider
from tests.fixtures.secure_stores import Certificates
from tests.fixtures.stack import Stack, empty_stack

pytestmark = pytest.mark.together

SAID: Any = [{"role": "user", "content": "Say something of the sea, and of the wind that is over it."}]
ROUTES = {"openai": ["chat", "messages"], "anthropic": ["messages", "chat"]}
SLOTS = 2
# USD per million tokens, as the operator sets them: what tenants pay, and what the providers charge.
SALES = {
    "openai": {"input": "2.50", "cached_input": "1.25", "output": "10"},
    "anthropic": {"input": "3.60", "cached_input": "0.36", "cache_write": "4.5", "output": "18"},
}
COSTS = {
    "openai": {"input": "2", "cached_input": "0.5", "output": "8"},
    "anthropic": {"input": "3", "cached_input": "0.3", "cache_write": "3.75", "output": "15"},
}


class Shop:
    """An installation with a model for each dialect, named as the dialect."""

    def __init__(self, stack: Stack, providers: dict[str, SimProvider], key: str) -> None:
        self.stack, self.providers, self.key = stack, providers, key

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.stack.gateway.url}/v1", api_key=self.key, max_retries=0)

    def anthropic(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.stack.gateway.url, api_key=self.key, max_retries=0)


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str, certificates: Certificates
) -> Iterator[Shop]:
    home = tmp_path_factory.mktemp("providers")
    trusted = {"TAAS_UPSTREAM_CA_FILE": certificates.path("ca.pem")}
    with ExitStack() as ending:
        stack = empty_stack(home, postgres_server, ending)
        stack.start_billing(**trusted)
        providers = {}
        for dialect, routes in ROUTES.items():
            provider = providers[dialect] = SimProvider(dialect, certificates, "--decode-ms", "10")
            ending.callback(provider.close)
            provider.start()
            stack.admin("POST", "models", name=dialect, context_tokens=8192, routes=routes)
            stack.admin("POST", "prices", model=dialect, **SALES[dialect])
            add(stack, home, provider)
            stack.admin("POST", "cost-prices", model=dialect, **COSTS[dialect])
        _, key = stack.new_tenant()
        stack.gateway = stack.make_gateway(**trusted, TAAS_READ_ON_S="1")
        stack.gateway.start()
        yield Shop(stack, providers, key)


def add(stack: Stack, home: Path, provider: SimProvider) -> None:
    path = home / f"{provider.dialect}.key"
    path.touch(0o600)
    path.write_text(f"{provider.key}\n")
    said = stack.taas(
        "instance", "add", "--model", provider.dialect, "--provider", provider.dialect, "--url",
        f"{provider.url}/v1", "--key-file", str(path), "--engine-model", "big-1", "--instance",
        f"at-{provider.dialect}", "--max-concurrency", str(SLOTS),
    )  # fmt: skip
    assert f"at-{provider.dialect} serves {provider.dialect}" in said
    assert PROVIDER_KEY not in said


def assert_billed(shop: Shop, request_id: str, provider: SimProvider) -> None:
    """To the token that the provider counted, at the model's price."""
    receipt = shop.stack.receipt(request_id, shop.key)
    truth = list(provider.truth().values())[-1]
    counted = {"prompt": truth["prompt"], "cached": truth["cached"], "output": truth["output"]}
    billed = dict(receipt["billed"])
    billed.pop("written", None)
    assert billed == counted, receipt
    assert receipt["billed"] == receipt["produced"]
    assert (receipt["usage_source"], receipt["ending"]) == ("engine", "complete")
    assert float(receipt["amount"]) > 0


@pytest.mark.parametrize("stream", [False, True])
def test_openais_sdk_is_answered_and_billed_by_the_providers_figures(shop: Shop, stream: bool) -> None:
    with shop.openai() as client:
        raw = client.chat.completions.with_raw_response.create(
            model="openai", messages=SAID, max_tokens=9, stream=stream
        )
        answer: Any = raw.parse()
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer) if stream else ""
        text = text or answer.choices[0].message.content
    assert text
    assert_billed(shop, raw.headers["x-request-id"], shop.providers["openai"])


def test_anthropics_sdk_is_answered_and_billed_by_the_providers_figures(shop: Shop) -> None:
    for _ in range(2):  # the second one reads what the first one has put into the provider's cache
        with (
            shop.anthropic() as client,
            client.messages.stream(model="anthropic", messages=SAID, max_tokens=9) as stream,
        ):
            message = stream.get_final_message()
            request_id = stream.response.headers["request-id"]
        assert (message.model, message.usage.output_tokens) == ("anthropic", 9)
        assert_billed(shop, request_id, shop.providers["anthropic"])
    assert shop.stack.receipt(request_id, shop.key)["billed"]["cached"] > 0


def test_a_budget_of_thought_goes_to_a_provider(shop: Shop) -> None:
    """The entry of a model says of templates whether it thinks. A provider has none, and may think."""
    budget: Any = {"type": "enabled", "budget_tokens": 1024}
    asked: Any = {"messages": SAID, "max_tokens": 1030}

    def sent(model: str, create: Any, **thinking: Any) -> Any:
        provider = shop.providers[model]
        provider.faults("stop_after", 2)
        assert "x-taas-ignored" not in create(model=model, **asked, **thinking).headers
        return provider.requests()[-1]["body"]

    with shop.openai() as chat, shop.anthropic() as messages:
        completions, own = chat.chat.completions.with_raw_response, messages.messages.with_raw_response
        tokens = {"thinking_token_budget": 1024}
        assert sent("anthropic", completions.create, extra_body=tokens)["thinking"] == budget
        assert sent("anthropic", own.create, thinking=budget)["thinking"] == budget
        assert sent("openai", own.create, thinking=budget)["reasoning_effort"] == "low"


def openais(usage: openai.types.CompletionUsage) -> dict[str, int]:
    """Tokens by kind of price, as a chat caller reads them: its prompt tokens are all of them."""
    details = usage.prompt_tokens_details
    assert details is not None
    cached, written = details.cached_tokens or 0, details.cache_write_tokens or 0
    return {
        "input": usage.prompt_tokens - cached - written, "cached_input": cached, "cache_write": written,
        "output": usage.completion_tokens,
    }  # fmt: skip


def anthropics(usage: anthropic.types.Usage) -> dict[str, int]:
    """The same of a message: its input tokens are those that no cache has to do with."""
    return {
        "input": usage.input_tokens, "cached_input": usage.cache_read_input_tokens or 0,
        "cache_write": usage.cache_creation_input_tokens or 0, "output": usage.output_tokens,
    }  # fmt: skip


def by_hand(used: list[tuple[str, dict[str, int]]], prices: dict[str, dict[str, str]]) -> Decimal:
    """USD for these tokens of these models."""
    return (
        sum(
            (
                Decimal(count) * Decimal(prices[model].get(kind, prices[model]["input"]))
                for model, tokens in used
                for kind, count in tokens.items()
            ),
            Decimal(0),
        )
        / 10**6
    )


def test_bill_cost_and_margin_of_a_mix_are_what_they_are_by_hand(shop: Shop) -> None:
    """From the figures that callers read in their answers, in both dialects, of both providers."""
    tenant, shop_key = shop.stack.new_tenant()
    used: list[tuple[str, dict[str, int]]] = []
    mine = Shop(shop.stack, shop.providers, shop_key)
    with mine.openai() as chat, mine.anthropic() as messages:
        for turn in range(3):
            said: Any = [{"role": "user", "content": f"{SAID[0]['content']} {'And then? ' * 20 * turn}"}]
            for model in ROUTES:
                answer = chat.chat.completions.create(model=model, messages=said, max_tokens=7 + turn)
                assert answer.usage is not None
                used.append((model, openais(answer.usage)))
                message = messages.messages.create(
                    model=model, messages=said, max_tokens=5, cache_control={"type": "ephemeral"}
                )
                used.append((model, anthropics(message.usage)))
                stream = chat.chat.completions.create(
                    model=model, messages=said, max_tokens=4, stream=True,
                    stream_options={"include_usage": True},
                )  # fmt: skip
                *_, last = stream
                assert last.usage is not None
                used.append((model, openais(last.usage)))
    assert {kind for _, tokens in used for kind, count in tokens.items() if count} == {
        "input", "cached_input", "cache_write", "output",
    }  # fmt: skip
    wait_until(lambda: usage_of(shop, tenant)["total"]["requests"] == len(used), "all of it in the ledger")
    report = usage_of(shop, tenant)
    amount, cost = by_hand(used, SALES), by_hand(used, COSTS)
    total = report["total"]
    assert [Decimal(total[name]) for name in ("amount", "cost", "margin")] == [amount, cost, amount - cost]
    apart = ("uncosted", "untold", "unpriced", "quarantined")
    assert [total[word]["requests"] for word in apart] == [0, 0, 0, 0]
    for line in report["lines"]:
        of_model = [each for each in used if each[0] == line["model"]]
        assert (Decimal(line["amount"]), Decimal(line["cost"])) == (
            by_hand(of_model, SALES), by_hand(of_model, COSTS),
        )  # fmt: skip


def test_economics_know_what_tenants_pay_and_providers_charge(shop: Shop) -> None:
    """For each model, of all tenants, what usage says; and nothing of it is earned by machines."""

    def told(*words: str) -> Any:
        return json.loads(shop.stack.taas(*words, "--from", "1h", "--json"))["lines"]

    with shop.openai() as chat:
        chat.chat.completions.create(model="openai", messages=SAID, max_tokens=5)

    def agree() -> bool:
        usage = {each["model"]: (each["amount"], each["cost"]) for each in told("usage", "--by", "model")}
        lines = {
            each["model"]: each for each in told("economics", "--by", "model") if each["model"] in ROUTES
        }
        return bool(lines) and all(
            (each["revenue_tokens"], each["cost_providers"]) == usage[name]
            and (each["unit_hours"]["used"], each["machine_hours"]) == ("0", "0")
            for name, each in lines.items()
        )

    wait_until(agree, "economics that agree with usage", 20)


def usage_of(shop: Shop, tenant: str) -> Any:
    return json.loads(shop.stack.taas("usage", "--tenant", tenant, "--by", "day,model", "--json"))


def test_a_tenant_sees_no_cost_and_nothing_of_the_provider(shop: Shop) -> None:
    with shop.anthropic() as client:
        message = client.messages.with_raw_response.create(model="anthropic", messages=SAID, max_tokens=5)
    request_id = message.headers["request-id"]
    shop.stack.receipt(request_id, shop.key)
    seen = httpx.get(
        f"{shop.stack.gateway.url}/v1/usage/requests/{request_id}",
        headers={"authorization": f"Bearer {shop.key}"}, trust_env=False,
    )  # fmt: skip
    assert seen.json()["billed"]["output"] == 5
    for word in ("cost", "margin", "provider", "at-anthropic", "big-1"):
        assert word not in seen.text
    told = json.loads(shop.stack.taas("request", "show", request_id, "--json"))["provider"]
    assert (told["kind"], told["model"], told["usage"]["output_tokens"]) == ("anthropic", "big-1", 5)


def test_no_more_requests_run_there_than_it_has_slots(shop: Shop) -> None:
    wait_until(lambda: bool(shop.stack.redis.hget("{c:openai}:room", "m:at-openai")), "its slots")
    provider = shop.providers["openai"]
    provider.faults("slow_drip", 300, count=SLOTS)
    with shop.openai() as client, ExitStack() as open_streams:
        streams = [
            open_streams.enter_context(
                client.chat.completions.create(model="openai", messages=SAID, max_tokens=60, stream=True)
            )
            for _ in range(SLOTS)
        ]
        asked = len(provider.requests())
        with pytest.raises(openai.APITimeoutError):  # it waits for a slot
            client.with_options(timeout=1.5).chat.completions.create(
                model="openai", messages=SAID, max_tokens=1
            )
        assert len(provider.requests()) == asked
        streams[0].close()
        client.chat.completions.create(model="openai", messages=SAID, max_tokens=1)
        assert len(provider.requests()) == asked + 1


def test_the_audit_reads_no_counters_there_and_misses_nothing(shop: Shop) -> None:
    report = shop.stack.audit()
    assert report["residual_tokens"] == 0
    assert {each["instance"]: each["counters"] for each in report["instances"]} == {
        "at-openai": False, "at-anthropic": False,
    }  # fmt: skip
    # Streams that a caller left: the provider did not say what they cost.
    assert {finding["kind"] for finding in report["findings"]} <= {"quarantined"}
    shown = shop.stack.taas("audit")
    assert shown.count(" none\n") == 2
    assert "counters: none. Hold a provider's instance" in shown
    assert "taas reconcile provider FILE" in shown


def test_no_log_and_no_page_has_the_key(shop: Shop) -> None:
    texts = [path.read_text(errors="replace") for path in shop.stack.home.rglob("*.log")]
    assert len(texts) > 1
    assert not [text for text in texts if PROVIDER_KEY in text]
