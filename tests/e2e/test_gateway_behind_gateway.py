"""One installation sells what another one serves: our own gateway, over TLS, is the provider of a second one,
in both dialects. What the one bills, the other pays, to the pico-dollar, and both SDKs find through the
translator what they find without it.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic import beta_tool
from anthropic.lib.tools import ToolError

from tests.e2e import test_anthropic_sdk as anthropics
from tests.e2e import test_openai_sdk as openais
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import wait_until
from tests.fixtures.secure_stores import Certificates
from tests.fixtures.stack import Stack, empty_stack
from tests.fixtures.tls_front import TlsFront

pytestmark = pytest.mark.together

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
        retail.key = self.key

    def chat(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.retail.gateway.url}/v1", api_key=self.key, max_retries=0, timeout=60
        )

    def messages(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(
            base_url=self.retail.gateway.url, api_key=self.key, max_retries=0, timeout=60
        )

    def sold(self) -> Any:
        """The retailer's usage report."""
        return usage_of(self.retail, self.tenant)

    def bought(self) -> dict[str, Any]:
        """The wholesaler's, by dialect."""
        return {dialect: usage_of(self.wholesale, account) for dialect, account in self.accounts.items()}


def usage_of(stack: Stack, tenant: str) -> Any:
    return stack.admin("GET", f"usage?tenant={tenant}&by=day,model")


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
    tools = [{"type": "function", "function": function}]
    asked: Any = {"model": dialect, "max_tokens": 60, "tools": tools, "prompt_cache_key": "talk"}
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


@pytest.mark.parametrize(
    "check",
    [
        openais.test_a_chat_is_answered_and_billed_as_told,
        openais.test_a_streamed_chat_tells_its_usage_when_asked,
        openais.test_a_streamed_chat_without_the_option_shows_no_usage_and_is_billed,
        openais.test_tools_are_served,
        openais.test_errors_are_raised_as_the_classes_of_the_sdk,
        openais.test_a_prompt_that_only_the_engine_can_count_is_refused_for_its_length,
    ],
)
def test_openais_sdk_finds_the_same_through_the_translator(
    trade: Trade, check: Callable[[openai.OpenAI, Stack, str], None]
) -> None:
    trade.engine.faults("tool_call", 'go:{"place":"sea"}')
    with trade.chat() as client:
        check(client, trade.retail, "anthropic")
    trade.engine.reset()


@pytest.mark.parametrize(
    "check",
    [
        anthropics.test_a_message_is_answered_and_billed_as_told,
        anthropics.test_a_streamed_message_is_put_together_by_the_sdk_and_billed_as_told,
        anthropics.test_what_was_read_before_is_billed_as_cached,
        anthropics.test_errors_are_raised_as_the_classes_of_the_sdk,
    ],
)
def test_anthropics_sdk_finds_the_same_through_the_translator(
    trade: Trade, check: Callable[[anthropic.Anthropic, Stack, str], None]
) -> None:
    with trade.messages() as client:
        check(client, trade.retail, "openai")


def test_what_has_no_word_in_the_other_dialect_is_refused_by_name_to_the_sdks(trade: Trade) -> None:
    cannot: list[tuple[str, Any]] = [
        ("n", 2), ("seed", 7), ("logprobs", True), ("logit_bias", {"5": 1}), ("temperature", 1.5),
        ("frequency_penalty", 1), ("presence_penalty", 1), ("stop", " "),
    ]  # fmt: skip
    with trade.chat() as client:
        asked = partial(client.chat.completions.create, model="anthropic", messages=SAID)
        for param, value in cannot:
            with pytest.raises(openai.BadRequestError) as refused:
                asked(**{param: value})
            assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")
        with pytest.raises(openai.BadRequestError) as refused:
            asked(response_format={"type": "json_object"})
        assert refused.value.param == "response_format.type"
    with trade.messages() as client:
        said: Any = {"model": "openai", "messages": SAID}
        with pytest.raises(anthropic.BadRequestError, match="does not count tokens"):
            client.messages.count_tokens(**said)
        with pytest.raises(anthropic.BadRequestError, match="'top_k'"):
            client.messages.create(**said, max_tokens=5, extra_body={"top_k": 5})


def test_thought_and_the_string_that_ended_an_answer_are_read_by_both_sdks(trade: Trade) -> None:
    asked: Any = {"messages": SAID, "max_tokens": 12}
    with trade.chat() as client, trade.messages() as other:
        word = client.chat.completions.create(model="anthropic", **asked).choices[0].message.content
        assert word is not None
        word = word.split()[-2]
        trade.engine.faults("reasoning", 3, count=3)
        stopped: Any = client.chat.completions.create(model="anthropic", stop=word, **asked).choices[0]
        assert (stopped.finish_reason, word in stopped.message.content) == ("stop", False)
        assert stopped.message.reasoning_content
        message = other.messages.create(model="openai", stop_sequences=[word], **asked)
        with other.messages.stream(model="openai", stop_sequences=[word], **asked) as events:
            streamed = events.get_final_message()
        for read in (message, streamed):
            assert (read.stop_reason, read.stop_sequence) == ("stop_sequence", word)
            assert [block.type for block in read.content] == ["thinking", "text"]
            assert read.content[0].thinking == stopped.message.reasoning_content
            back: Any = {"role": "assistant", "content": read.content}
            again = [*SAID, back, *SAID]
            assert other.messages.create(model="openai", max_tokens=2, messages=again).content


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_tool_runner_goes_on_after_a_tool_that_failed(trade: Trade, stream: bool) -> None:
    called = []

    @beta_tool
    def look_up(text: str) -> str:
        """Looks up."""
        called.append(text)
        raise ToolError("not found")

    trade.engine.faults("tool_call", f"look_up:{json.dumps(ARGUMENTS)}", count=2)
    with trade.messages() as client:
        runner: Any = client.beta.messages.tool_runner(
            model="openai", max_tokens=60, messages=SAID, tools=[look_up], stream=stream
        )
        *_, last = (each.get_final_message() if stream else each for each in runner)
    assert called == ["a word"] * 2
    assert last.content[0].type == "text"
    assert "The tool call failed." in json.dumps(trade.engine.requests()[-1]["body"])


@pytest.fixture(scope="module")
def books(trade: Trade) -> tuple[Any, dict[str, Any]]:
    """What was sold and what was bought, when all of it is in both ledgers. In both dialects of both: whole
    answers, streams, and streams that their caller leaves.
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
        there = sum(each["total"]["tokens"]["output"] for each in trade.bought().values())
        here = trade.sold()["total"]["tokens"]["output"]
        return bool(here == there == trade.engine.counters()["generation"])

    wait_until(settled, "all requests in both ledgers")
    return trade.sold(), trade.bought()


def test_what_the_one_bills_the_other_pays(trade: Trade, books: tuple[Any, dict[str, Any]]) -> None:
    """Also where a caller leaves."""
    sold, bought = books
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


def test_the_wholesalers_count_agrees_with_the_retailers_ledger(
    trade: Trade, books: tuple[Any, dict[str, Any]], tmp_path: Path
) -> None:
    """Its usage reports in the form in which providers export theirs."""
    sold, bought = books
    there = {dialect: report["lines"] for dialect, report in bought.items()}
    openais = "start_time,model,input_tokens,input_cached_tokens,output_tokens\n"
    for line in there["openai"]:
        tokens = line["tokens"]
        openais += f"{line['day']},{THERE},{tokens['prompt']},{tokens['cached']},{tokens['output']}\n"
    written = {line["day"]: line["tokens"]["written"] for line in sold["lines"]
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
        shown = trade.retail.taas("reconcile", "provider", str(export), "--provider", dialect)
        assert str(sum(line["tokens"]["output"] for line in there[dialect])) in shown
