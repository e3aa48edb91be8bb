"""Whole turns of coding agents and of tool runners: a tool is called, its result is sent back, and a text
ends the turn.

`agents/*.json` are requests that Claude Code 2.1.197 and Codex 0.171.0 sent, with their prose cut short:
`first` is the body of the request that offers the tools, `next` what the agent appends once it has run the
tool that it was asked to.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway
from tests.fixtures.provider import ProviderMaker
from tests.fixtures.secure_stores import Certificates
from tests.gateway.asking import Outcome, ask, the_event

# Agent: its route, the name of its conversation in a body, the tool to order, and what is ignored of what it
# sends.
AGENTS = {
    "claude_code": ("messages", "messages", "Read", None),
    "codex": ("responses", "input", "exec_command", "tools[4], client_metadata"),
}
ARGUMENTS = {"place": "Basel"}


def recorded(agent: str) -> dict[str, Any]:
    """What an agent sent."""
    requests: dict[str, Any] = json.loads((Path(__file__).parent / "agents" / f"{agent}.json").read_text())
    return requests


def calls_in(outcome: Outcome) -> tuple[list[str], dict[str, Any]]:
    """The name of each tool that a streamed answer calls, and the arguments put together."""
    if outcome.route == "messages":
        blocks = [
            event["content_block"] for event in outcome.events if event["type"] == "content_block_start"
        ]
        deltas = [event["delta"] for event in outcome.events if event["type"] == "content_block_delta"]
        arguments = "".join(delta.get("partial_json", "") for delta in deltas)
        return [block["name"] for block in blocks if block["type"] == "tool_use"], json.loads(
            arguments or "{}"
        )
    items = outcome.events[-1]["response"]["output"]
    calls = [item for item in items if item["type"] == "function_call"]
    return [call["name"] for call in calls], json.loads(calls[0]["arguments"]) if calls else {}


@pytest.mark.parametrize("agent", AGENTS)
def test_a_turn_of_an_agent_with_a_tool_call_is_served_and_all_of_it_is_in_the_events(
    catalogue: Catalogue, start_gateway: StartGateway, make_engine: EngineMaker, agent: str
) -> None:
    route, conversation, tool, ignored = AGENTS[agent]
    engine = make_engine("--context", "60000", model=MODEL)
    catalogue.model(context_tokens=60_000)
    catalogue.instance(engine.url, engine.key)
    key, gateway = catalogue.key(catalogue.tenant("ten_a")), start_gateway()
    requests = recorded(agent)
    engine.faults("tool_call", f"{tool}:{json.dumps(ARGUMENTS)}")
    body = {name: value for name, value in requests["first"].items() if name not in ("model", "stream")}
    called = ask(gateway, key, route, stream=True, **body)
    said = ask(
        gateway, key, route, stream=True, **body | {conversation: body[conversation] + requests["next"]}
    )
    assert (called.status, said.status) == (200, 200), (called.text, said.text)
    assert calls_in(called) == ([tool], ARGUMENTS)
    assert calls_in(said) == ([], {})
    for outcome in (called, said):
        assert outcome.done
        assert outcome.headers.get("x-taas-ignored") == ignored
        event = the_event(catalogue, outcome)
        assert (event.ending.value, ", ".join(event.ignored) or None) == ("complete", ignored)
    produced = [event.produced for event in catalogue.events()]
    counters = engine.counters()
    assert sum(tokens.prompt for tokens in produced) == counters["prompt"]
    assert sum(tokens.output for tokens in produced) == counters["generation"]


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_tool_runner_runs_a_tool_and_ends_with_text(
    catalogue: Catalogue,
    start_gateway: StartGateway,
    engine: SimEngine,
    conserved: Callable[[], None],
    stream: bool,
) -> None:
    catalogue.instance(engine.url, engine.key)
    key, gateway = catalogue.key(catalogue.tenant("ten_a")), start_gateway()
    engine.faults("tool_call", f"weather:{json.dumps(ARGUMENTS)}")
    asked: list[str] = []

    @anthropic.beta_tool
    def weather(place: str) -> str:
        """Tell the weather."""
        asked.append(place)
        return "21 degrees"

    with Anthropic(base_url=gateway.url, api_key=key, max_retries=0) as client:
        runner: Any = client.beta.messages.tool_runner(
            model=MODEL, max_tokens=200, messages=[{"role": "user", "content": "Weather?"}], tools=[weather],
            stream=stream,
        )  # fmt: skip
        answers = [turn.get_final_message() if stream else turn for turn in runner]
    assert asked == ["Basel"]
    called, said = answers
    assert called.stop_reason == "tool_use"
    assert [block.type for block in said.content] == ["text"]
    conserved()


def test_openais_chat_goes_on_from_the_message_that_it_was_given(
    catalogue: Catalogue, start_gateway: StartGateway, engine: SimEngine, conserved: Callable[[], None]
) -> None:
    """As OpenAI's own loop does, and LiteLLM: the message object goes back as it came, with the tool's
    result behind it.
    """
    catalogue.instance(engine.url, engine.key)
    key, gateway = catalogue.key(catalogue.tenant("ten_a")), start_gateway()
    engine.faults("tool_call", f"weather:{json.dumps(ARGUMENTS)}", count=2)
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    conversation: list[Any] = [{"role": "user", "content": "Weather?"}]
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        first = client.chat.completions.create(model=MODEL, messages=conversation, tools=tools, max_tokens=99)
        with client.chat.completions.stream(
            model=MODEL, messages=conversation, tools=tools, max_tokens=99
        ) as stream:
            streamed = stream.get_final_completion().choices[0].message
        message: Any = first.choices[0].message
        texts = []
        for said in (message, streamed):
            call = said.tool_calls[0]
            assert json.loads(call.function.arguments) == ARGUMENTS
            result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
            answer = client.chat.completions.create(
                model=MODEL, messages=[*conversation, said, result], tools=tools, max_tokens=99
            )
            texts.append(answer.choices[0].message.content)
    assert all(texts)
    conserved()


@pytest.mark.parametrize("stream", [False, True])
def test_openais_responses_go_on_from_the_items_that_they_were_given(
    catalogue: Catalogue,
    start_gateway: StartGateway,
    engine: SimEngine,
    conserved: Callable[[], None],
    stream: bool,
) -> None:
    catalogue.instance(engine.url, engine.key)
    key, gateway = catalogue.key(catalogue.tenant("ten_a")), start_gateway()
    engine.faults("tool_call", f"weather:{json.dumps(ARGUMENTS)}")
    tools: Any = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}]
    items: list[Any] = [{"role": "user", "content": "Weather?"}]
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:

        def answer() -> Any:
            given: Any = {"model": MODEL, "input": items, "tools": tools, "max_output_tokens": 99}
            if not stream:
                return client.responses.create(**given)
            with client.responses.stream(**given) as events:
                return events.get_final_response()

        first = answer()
        (call,) = first.output
        assert (call.type, json.loads(call.arguments)) == ("function_call", ARGUMENTS)
        items += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}]
        assert answer().output_text
    conserved()


@pytest.mark.parametrize("dialect", ["anthropic", "openai"])
def test_a_turn_of_claude_code_is_served_by_providers_of_both_dialects(
    catalogue: Catalogue,
    start_gateway: StartGateway,
    make_provider: ProviderMaker,
    certificates: Certificates,
    dialect: str,
) -> None:
    """At OpenAI's it is translated. Marks of caches go to Anthropic's alone, the user's name to neither."""
    route, conversation, tool, _ = AGENTS["claude_code"]
    provider = make_provider(dialect, "--context", "60000")
    catalogue.model(context_tokens=60_000)
    entry = {"engine": dialect, "engine_model": "big-1", "abort": False, "metrics": False}
    catalogue.instance(provider.url, provider.key, name="p1", **entry)
    gateway = start_gateway(TAAS_UPSTREAM_CA_FILE=certificates.path("ca.pem"))
    key, requests = catalogue.key(catalogue.tenant("ten_a")), recorded("claude_code")
    provider.faults("tool_call", f"{tool}:{json.dumps(ARGUMENTS)}")
    body = {name: value for name, value in requests["first"].items() if name not in ("model", "stream")}
    called = ask(gateway, key, route, stream=True, **body)
    said = ask(
        gateway, key, route, stream=True, **body | {conversation: body[conversation] + requests["next"]}
    )
    assert (called.status, said.status) == (200, 200), (called.text, said.text)
    assert calls_in(called) == ([tool], ARGUMENTS)
    assert calls_in(said) == ([], {})
    truths = list(provider.truth().values())
    for outcome, truth in zip((called, said), truths, strict=True):
        event = the_event(catalogue, outcome)
        assert (event.ending.value, event.usage_source) == ("complete", "engine")
        assert (event.billed.prompt, event.billed.output) == (truth["prompt"], truth["output"])
    sent = [json.dumps(request["body"]) for request in provider.requests()]
    assert ["cache_control" in text for text in sent] == [dialect == "anthropic"] * 2
    assert body["metadata"]["user_id"] not in "".join(sent)
