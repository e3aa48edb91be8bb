"""What the official SDKs put on the wire is taken, with the parameters that their users use."""

from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from gateway.protocol import parse_request
from gateway.request import ParsedRequest, Route
from gateway.routes import ROUTES

M: Any = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
}

PATHS = {
    "/v1/chat/completions": Route.CHAT,
    "/v1/completions": Route.COMPLETIONS,
    "/v1/responses": Route.RESPONSES,
    "/v1/embeddings": Route.EMBEDDINGS,
    "/v1/messages": Route.MESSAGES,
    "/v1/messages/count_tokens": Route.COUNT_TOKENS,
}


def parsed_call(call: Callable[[openai.OpenAI, anthropic.Anthropic], Any]) -> ParsedRequest:
    """What the SDK sent in `call`, parsed; the answer is made up."""
    seen: list[ParsedRequest] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(parse_request(ROUTES[PATHS[request.url.path]], request.read()))
        return httpx2.Response(400, json={"error": {"message": "seen"}})

    transport = httpx2.Client(transport=httpx2.MockTransport(handle))
    with transport, pytest.raises((openai.BadRequestError, anthropic.BadRequestError)):
        call(
            openai.OpenAI(base_url="http://gateway/v1", api_key="k", max_retries=0, http_client=transport),
            anthropic.Anthropic(base_url="http://gateway", api_key="k", max_retries=0, http_client=transport),
        )
    return seen[0]


def test_openai_chat_with_everything() -> None:
    parsed = parsed_call(
        lambda client, _: client.chat.completions.create(
            model="m", messages=[{"role": "developer", "content": [{"type": "text", "text": "x"}]}, *M], n=2,
            seed=7, stop=["a", "b"], temperature=0.5, top_p=0.9, presence_penalty=0.1, frequency_penalty=0.1,
            logit_bias={"5": 1}, logprobs=True, top_logprobs=3, max_completion_tokens=5, tools=[TOOL],
            tool_choice="auto", parallel_tool_calls=False, user="u", metadata={"a": "b"}, store=False,
            service_tier="flex",
            reasoning_effort="low", response_format={"type": "json_schema", "json_schema": {"name": "x",
            "schema": SCHEMA, "strict": True}},
            stream=True, stream_options={"include_usage": True}, prompt_cache_key="k", safety_identifier="s",
            extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 1,
            "ignore_eos": True, "stop_token_ids": [3]},
        )
    )  # fmt: skip
    assert (parsed.samples, parsed.max_output_tokens, parsed.stream, parsed.wants_usage) == (2, 5, True, True)


def test_openai_completions() -> None:
    parsed = parsed_call(
        lambda client, _: client.completions.create(
            model="m",
            prompt=[[1, 2], [3]],
            n=2,
            best_of=1,
            echo=True,
            logprobs=2,
            max_tokens=5,
            seed=1,
            stop="x",
            suffix=None,
            user="u",
        )
    )
    assert (parsed.prompts, parsed.samples, parsed.input_tokens_estimate) == (2, 4, 3)


def test_openai_responses() -> None:
    parsed = parsed_call(
        lambda client, _: client.responses.create(
            model="m", input=[{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
            instructions="x", max_output_tokens=5,
            text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}},
            reasoning={"effort": "low"},
            tools=[{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}],
            tool_choice={"type": "function", "name": "f"}, include=["message.output_text.logprobs"],
            top_logprobs=2, store=False, metadata={"a": "b"}, truncation="disabled", stream=True,
            background=None, previous_response_id=None, conversation=None, prompt=None, temperature=1,
            top_p=1, service_tier="auto", user="u",
        )
    )  # fmt: skip
    assert (parsed.max_output_tokens, parsed.stream) == (5, True)


def test_openai_embeddings() -> None:
    parsed = parsed_call(
        lambda client, _: client.embeddings.create(model="m", input=["a", "b"], dimensions=8)
    )
    assert (parsed.prompts, parsed.body["encoding_format"]) == (2, "base64")


def test_anthropic_messages_and_counting() -> None:
    tool: Any = {
        "name": "f",
        "description": "d",
        "input_schema": SCHEMA,
        "cache_control": {"type": "ephemeral"},
    }
    system: Any = [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]
    parsed = parsed_call(
        lambda _, client: client.messages.create(
            model="m", max_tokens=2000, messages=M, system=system, tools=[tool], tool_choice={"type": "any",
            "disable_parallel_tool_use": True},
            stop_sequences=["x"], metadata={"user_id": "u"}, service_tier="auto", thinking={"type": "enabled",
            "budget_tokens": 1024},
            output_config={"effort": "low"}, stream=True, extra_body={"temperature": 0.5, "top_p": 0.9,
            "top_k": 4},
        )
    )  # fmt: skip
    assert (parsed.route.name, parsed.max_output_tokens, parsed.stream) == (Route.MESSAGES, 2000, True)
    counted = parsed_call(
        lambda _, client: client.messages.count_tokens(model="m", messages=M, system=system, tools=[tool])
    )
    assert (counted.route.name, counted.samples) == (Route.COUNT_TOKENS, 0)
