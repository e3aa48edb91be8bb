"""The official OpenAI SDK against real vLLM: every form of every route works, and what it reports is what
the tenant is billed. `test_gateway_behind_gateway` tries some of it through the translator.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.fixtures.stack import MODEL, Stack

pytestmark = pytest.mark.vllm

SEA: list[Any] = [{"role": "user", "content": "Say something short about the sea."}]
SCHEMA = {
    "type": "object",
    "properties": {"place": {"enum": ["sea", "land"]}},
    "required": ["place"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> str:
    return MODEL


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.gateway.url}/v1", api_key=stack.key, max_retries=0, timeout=60) as made:
        yield made


def assert_receipt(stack: Stack, request_id: str, usage: Any, *, prompts: int = 1) -> None:
    """What the SDK was told is what is billed; of several samples the prompt is billed once, and the rest
    absorbed.
    """
    receipt = stack.receipt(request_id)
    told = usage.model_dump()
    prompt = told.get("prompt_tokens", told.get("input_tokens"))
    output = told.get("completion_tokens", told.get("output_tokens"))
    details = told.get("prompt_tokens_details") or told.get("input_tokens_details") or {}
    assert receipt["ending"] == "complete", receipt
    written = details.get("cache_write_tokens")
    assert receipt["billed"] == {
        "prompt": prompt, "cached": details.get("cached_tokens") or 0, "output": output,
    } | ({"written": written} if written else {}), (told, receipt)  # fmt: skip
    assert receipt["produced"]["prompt"] == prompt * prompts
    assert receipt["absorbed"]["prompt"] == prompt * (prompts - 1)
    assert receipt["delivered"] == {"output": output}
    assert receipt["pricing"] == "priced"


def test_a_chat_is_answered_and_billed_as_told(client: OpenAI, stack: Stack, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=SEA, max_tokens=8)
    assert answer.model == model
    assert answer.choices[0].message.content
    assert answer._request_id is not None
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    assert_receipt(stack, answer._request_id, answer.usage)


def test_a_streamed_chat_tells_its_usage_when_asked(client: OpenAI, stack: Stack, model: str) -> None:
    with client.chat.completions.create(
        model=model, messages=SEA, max_tokens=8, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(usages) == 1
    assert chunks[-1].usage is usages[0]
    assert chunks[-1].choices == []
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert_receipt(stack, stream.response.headers["x-request-id"], usages[0])


def test_a_streamed_chat_without_the_option_shows_no_usage_and_is_billed(
    client: OpenAI, stack: Stack, model: str
) -> None:
    with client.chat.completions.create(model=model, messages=SEA, max_tokens=8, stream=True) as stream:
        chunks = list(stream)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] in {"length", "stop"}
    receipt = stack.receipt(stream.response.headers["x-request-id"])
    assert 0 < receipt["billed"]["output"] <= 8
    assert receipt["billed"]["output"] == receipt["delivered"]["output"]


def test_tools_are_served(client: OpenAI, stack: Stack, model: str) -> None:
    function = {"name": "go", "description": "Go to a place.", "parameters": SCHEMA, "strict": True}
    tool: Any = {"type": "function", "function": function}
    answer = client.chat.completions.create(
        model=model, messages=SEA, tools=[tool], max_tokens=60, temperature=0,
        tool_choice={"type": "function", "function": {"name": "go"}},
    )  # fmt: skip
    calls = answer.choices[0].message.tool_calls
    assert calls
    call: Any = calls[0]
    assert call.function.name == "go"
    assert json.loads(call.function.arguments) in ({"place": "sea"}, {"place": "land"}), (
        call.function.arguments
    )
    assert answer._request_id is not None
    assert_receipt(stack, answer._request_id, answer.usage)


def test_a_response_format_is_kept(client: OpenAI, stack: Stack) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=SEA, max_tokens=60, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "where", "schema": SCHEMA,
        "strict": True}},
    )  # fmt: skip
    content = answer.choices[0].message.content
    assert content is not None
    assert json.loads(content)["place"] in {"sea", "land"}
    assert answer._request_id is not None
    assert_receipt(stack, answer._request_id, answer.usage)


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_of_several_samples_is_billed_once(client: OpenAI, stack: Stack, stream: bool) -> None:
    if not stream:
        answer = client.chat.completions.create(model=MODEL, messages=SEA, max_tokens=6, n=2)
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer._request_id is not None
        assert_receipt(stack, answer._request_id, answer.usage, prompts=2)
        return
    options: Any = {"include_usage": True}
    with client.chat.completions.create(
        model=MODEL, messages=SEA, max_tokens=6, n=2, stream=True, stream_options=options
    ) as chunks:
        (usage,) = [chunk.usage for chunk in chunks if chunk.usage]
    assert_receipt(stack, chunks.response.headers["x-request-id"], usage, prompts=2)


def test_logprobs_are_given(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=SEA, max_tokens=3, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in logprobs.content)


def test_a_seed_makes_an_answer_repeatable(client: OpenAI) -> None:
    first, second = (
        client.chat.completions.create(model=MODEL, messages=SEA, max_tokens=12, seed=7, temperature=1.0)
        for _ in range(2)
    )
    assert first.choices[0].message.content == second.choices[0].message.content


def test_a_completion_stops_where_it_is_told_to(client: OpenAI, stack: Stack) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="1, 2, 3, 4, 5, 6, 7,", max_tokens=20, stop=["9"], temperature=0
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "9" not in answer.choices[0].text
    assert answer._request_id is not None
    assert_receipt(stack, answer._request_id, answer.usage)


def test_a_completion_of_several_prompts_is_billed_for_all(client: OpenAI, stack: Stack) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["The sea is", "The land is wide and"], max_tokens=4
    )
    assert len(answer.choices) == 2
    assert answer._request_id is not None
    assert_receipt(stack, answer._request_id, answer.usage)


def test_a_streamed_completion_is_billed_as_told(client: OpenAI, stack: Stack) -> None:
    with client.completions.create(
        model=MODEL, prompt="The sea is", max_tokens=6, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].usage is not None
    assert_receipt(stack, stream.response.headers["x-request-id"], chunks[-1].usage)


def test_a_response_is_billed_as_told(client: OpenAI, stack: Stack) -> None:
    answer = client.responses.create(model=MODEL, input="Say something about the sea.", max_output_tokens=8)
    assert answer.output_text
    assert answer.usage is not None
    assert answer._request_id is not None
    assert_receipt(stack, answer._request_id, answer.usage)


def test_a_streamed_response_is_billed_as_told(client: OpenAI, stack: Stack) -> None:
    with client.responses.create(
        model=MODEL, input="Say something about the sea.", max_output_tokens=8, stream=True
    ) as stream:
        events = list(stream)
    assert events[0].type == "response.created"
    last: Any = events[-1]
    assert last.type in {"response.completed", "response.incomplete"}
    assert_receipt(stack, stream.response.headers["x-request-id"], last.response.usage)


def test_what_needs_a_store_is_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="hi", previous_response_id="resp_x")
    assert refused.value.param == "previous_response_id"


def test_embeddings_are_503_while_no_engine_that_pools_is_there(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as refused:
        client.embeddings.create(model=MODEL, input="the sea")
    assert (refused.value.status_code, refused.value.code) == (503, "no_instance")
    assert refused.value.request_id is not None


def test_models_are_listed_and_shown(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("nothing-of-that-name")
    assert unknown.value.code == "model_not_found"


def test_errors_are_raised_as_the_classes_of_the_sdk(client: OpenAI, stack: Stack, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=model, messages=SEA, max_tokens=100_000)
    assert too_long.value.param == "max_tokens"
    with (
        OpenAI(base_url=f"{stack.gateway.url}/v1", api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        stranger.chat.completions.create(model=model, messages=SEA)
    assert refused.value.code == "invalid_api_key"


def test_a_prompt_that_only_the_engine_can_count_is_refused_for_its_length(
    client: OpenAI, stack: Stack, model: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "sea " * 9_000}], max_tokens=8
        )
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.request_id is not None
    receipt = stack.receipt(refused.value.request_id)
    assert (receipt["ending"], receipt["billed"]["prompt"]) == ("refused_by_engine", 0)


def test_tokens_are_told(stack: Stack) -> None:
    with stack.gateway.client(stack.key) as client:
        answer: httpx.Response = client.post("/tokenize", json={"model": MODEL, "prompt": "The sea is wide"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["count"] == len(answer.json()["tokens"]) == 4


def test_nothing_of_all_this_is_unaccounted_for(stack: Stack) -> None:
    stack.assert_conserved()
