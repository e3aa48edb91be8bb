"""One installation sells what another one serves: our own gateway, over TLS, is the provider of a second one,
in both dialects. What the one bills, the other pays, to the pico-dollar.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import wait_until
from tests.fixtures.secure_stores import Certificates
from tests.fixtures.stack import Stack, empty_stack
from tests.fixtures.tls_front import TlsFront

# What the wholesaler's tenants pay is what its provider instances cost the retailer.
WHOLESALE = {"input": "0.70", "cached_input": "0.07", "cache_write": "0.875", "output": "2.10"}
RETAIL = {"input": "1", "cached_input": "0.1", "cache_write": "1.25", "output": "3"}
THERE = "sim"
DIALECTS = ("openai", "anthropic")
SAID: Any = [{"role": "user", "content": "Say something of the sea, and of the wind that is over it. " * 3}]
PARAMETERS: Any = {"type": "object", "properties": {"text": {"type": "string"}}}
ARGUMENTS = {"text": "a word"}


class Trade:
    """The two installations. `retail` has a model of each dialect, named as it; both are `sim` there."""

    def __init__(self, retail: Stack, wholesale: Stack, engine: SimEngine) -> None:
        self.retail, self.wholesale, self.engine = retail, wholesale, engine
        self.accounts: dict[str, str] = {}  # the retailer's tenants at the wholesaler, by dialect
        self.tenant, self.key = retail.new_tenant()

    def chat(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.retail.gateway.url}/v1", api_key=self.key, max_retries=0)

    def messages(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.retail.gateway.url, api_key=self.key, max_retries=0)

    def sold(self) -> Any:
        """The retailer's usage report."""
        return usage_of(self.retail, self.tenant)

    def bought(self) -> dict[str, Any]:
        """The wholesaler's, by dialect."""
        return {dialect: usage_of(self.wholesale, account) for dialect, account in self.accounts.items()}


def usage_of(stack: Stack, tenant: str) -> Any:
    return json.loads(stack.taas("usage", "--tenant", tenant, "--by", "day,model", "--json"))


@pytest.fixture(scope="module")
def trade(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str, certificates: Certificates
) -> Iterator[Trade]:
    trusted = {"TAAS_UPSTREAM_CA_FILE": certificates.path("ca.pem")}
    with ExitStack() as ending:
        wholesale = empty_stack(tmp_path_factory.mktemp("wholesale"), postgres_server, ending)
        wholesale.start_billing()
        engine = SimEngine("--decode-ms", "5", model=THERE)
        ending.callback(engine.close)
        engine.start()
        wholesale.admin("POST", "models", name=THERE, context_tokens=8192, routes=["chat", "messages"])
        wholesale.admin("POST", "prices", model=THERE, **WHOLESALE)
        wholesale.admin("POST", "instances", model=THERE, url=engine.url, key=engine.key, instance="engine")
        accounts = {dialect: wholesale.new_tenant() for dialect in DIALECTS}
        wholesale.gateway.start()
        certificate, private = certificates.path("server.pem"), certificates.path("server.key")
        front = TlsFront(wholesale.gateway.port, certificate, private)
        ending.callback(front.close)

        home = tmp_path_factory.mktemp("retail")
        retail = empty_stack(home, postgres_server, ending)
        retail.start_billing(**trusted)
        for dialect in DIALECTS:
            retail.admin("POST", "models", name=dialect, context_tokens=8192, routes=["chat", "messages"])
            retail.admin("POST", "prices", model=dialect, **RETAIL)
            add(retail, home, dialect, front.url, accounts[dialect][1])
            retail.admin("POST", "cost-prices", model=dialect, instance=f"at-{dialect}", **WHOLESALE)
        trade = Trade(retail, wholesale, engine)
        trade.accounts = {dialect: account for dialect, (account, _) in accounts.items()}
        retail.gateway = retail.make_gateway(**trusted)
        retail.gateway.start()
        yield trade


def add(stack: Stack, home: Path, dialect: str, url: str, key: str) -> None:
    path = home / f"{dialect}.key"
    path.touch(0o600)
    path.write_text(key)
    stack.taas(
        "instance", "add", "--model", dialect, "--provider", dialect, "--url", f"{url}/v1", "--key-file",
        str(path), "--engine-model", THERE, "--instance", f"at-{dialect}",
    )  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [False, True])
def test_openais_sdk_is_answered_and_calls_tools(trade: Trade, dialect: str, stream: bool) -> None:
    function = {"name": "look_up", "description": "Looks up.", "parameters": PARAMETERS}
    asked: Any = {"model": dialect, "max_tokens": 60, "tools": [{"type": "function", "function": function}]}
    trade.engine.faults("tool_call", f"look_up:{json.dumps(ARGUMENTS)}", count=1)
    with trade.chat() as client:
        if stream:
            with client.chat.completions.stream(messages=SAID, **asked) as chunks:
                completion: Any = chunks.get_final_completion()
        else:
            completion = client.chat.completions.create(messages=SAID, **asked)
        (choice,) = completion.choices
        assert (completion.model, choice.finish_reason) == (dialect, "tool_calls")
        (call,) = choice.message.tool_calls or ()
        assert (call.function.name, json.loads(call.function.arguments)) == ("look_up", ARGUMENTS)
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "found"}
        answered: Any = [*SAID, choice.message.model_dump(exclude_none=True, exclude={"parsed"}), result]
        for each in answered[1].get("tool_calls", ()):
            each["function"].pop("parsed_arguments", None)
        last = client.chat.completions.create(messages=answered, **asked)
    assert last.choices[0].message.content
    assert last.usage is not None
    assert last.usage.completion_tokens > 0


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_sdk_is_answered_and_calls_tools(trade: Trade, dialect: str, stream: bool) -> None:
    tool = {"name": "look_up", "description": "Looks up.", "input_schema": PARAMETERS}
    asked: Any = {"model": dialect, "max_tokens": 60, "tools": [tool]}
    trade.engine.faults("tool_call", f"look_up:{json.dumps(ARGUMENTS)}", count=1)
    with trade.messages() as client:
        if stream:
            with client.messages.stream(messages=SAID, **asked) as events:
                message: Any = events.get_final_message()
        else:
            message = client.messages.create(messages=SAID, **asked)
        assert (message.model, message.stop_reason) == (dialect, "tool_use")
        call = message.content[-1]
        assert (call.name, call.input) == ("look_up", ARGUMENTS)
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "none", "is_error": True}
        spoken: Any = {"role": "assistant", "content": [{
            "type": "tool_use", "id": call.id, "name": call.name, "input": call.input}]}  # fmt: skip
        last = client.messages.create(
            messages=[*SAID, spoken, {"role": "user", "content": [result]}], **asked
        )
    assert last.content
    assert last.usage.output_tokens > 0


def ask_all(trade: Trade) -> None:
    """In both dialects of both: whole answers, streams, and streams that their caller leaves. Until all of it
    is in both ledgers.
    """
    for dialect in DIALECTS:
        asked: Any = {"model": dialect, "messages": SAID, "max_tokens": 30}
        with trade.chat() as client, trade.messages() as other:
            client.chat.completions.create(**asked)
            other.messages.create(**asked, cache_control={"type": "ephemeral"})
            with other.messages.stream(**asked) as events:
                events.get_final_message()
            with client.chat.completions.create(**asked, stream=True) as chunks:
                for _ in range(3):
                    next(chunks)

    def settled() -> bool:
        there = sum(each["total"]["requests"] for each in trade.bought().values())
        return bool(trade.sold()["total"]["requests"] == there >= 8)

    wait_until(settled, "all requests in both ledgers")


def test_what_the_one_bills_the_other_pays(trade: Trade) -> None:
    """Also where a caller leaves."""
    ask_all(trade)
    sold, bought = trade.sold(), trade.bought()
    for apart in ("untold", "uncosted", "quarantined"):
        assert sold["total"][apart] == {"requests": 0}
    for line in sold["lines"]:
        there = bought[line["model"]]["total"]
        for kind in ("prompt", "cached", "output"):
            assert line["tokens"][kind] == there["tokens"][kind], line
        # An engine's own cache writes cost what other input does; the retailer pays its cost price for them.
        dearer = Decimal(WHOLESALE["cache_write"]) - Decimal(WHOLESALE["input"])
        written = line["tokens"]["written"] * dearer / 10**6
        assert Decimal(line["cost"]) == Decimal(there["amount"]) + written
        assert Decimal(line["margin"]) == Decimal(line["amount"]) - Decimal(line["cost"]) > 0
    assert {line["model"] for line in sold["lines"]} == set(DIALECTS)
    for stack in (trade.retail, trade.wholesale):
        assert stack.audit()["residual_tokens"] == 0


def test_the_wholesalers_count_agrees_with_the_retailers_ledger(trade: Trade, tmp_path: Path) -> None:
    """Its usage reports in the form in which providers export theirs."""
    ask_all(trade)
    there = {dialect: report["lines"] for dialect, report in trade.bought().items()}
    openais = "start_time,model,input_tokens,input_cached_tokens,output_tokens\n"
    for line in there["openai"]:
        tokens = line["tokens"]
        openais += f"{line['day']},{THERE},{tokens['prompt']},{tokens['cached']},{tokens['output']}\n"
    written = {line["day"]: line["tokens"]["written"] for line in trade.sold()["lines"]
               if line["model"] == "anthropic"}  # fmt: skip
    anthropics = [
        {
            "starting_at": f"{line['day']}T00:00:00Z",
            "results": [{
                "model": THERE,
                "uncached_input_tokens": line["tokens"]["prompt"] - line["tokens"]["cached"]
                - written[line["day"]],
                "cache_read_input_tokens": line["tokens"]["cached"],
                "cache_creation": {"ephemeral_5m_input_tokens": written[line["day"]]},
                "output_tokens": line["tokens"]["output"],
            }],
        }
        for line in there["anthropic"]
    ]  # fmt: skip
    for dialect, text in (("openai", openais), ("anthropic", json.dumps({"data": anthropics}))):
        export = tmp_path / dialect
        export.write_text(text)
        shown = trade.retail.taas("reconcile", str(export), "--provider", dialect)
        assert str(sum(line["tokens"]["output"] for line in there[dialect])) in shown
