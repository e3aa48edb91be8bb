"""Tiers with both official SDKs against real vLLM: what is asked for is served, and the answer, the
headers and the receipt say what was used.
"""

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.fixtures.stack import MODEL, Stack

pytestmark = pytest.mark.vllm

SEA: list[Any] = [{"role": "user", "content": "Say something short about the sea."}]
CLASSES = {"default": "on_demand", "flex": "flex"}


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.gateway.url}/v1", api_key=stack.key, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def anthropic_client(stack: Stack) -> Iterator[Anthropic]:
    with Anthropic(base_url=stack.gateway.url, api_key=stack.key, max_retries=0, timeout=60) as made:
        yield made


@pytest.mark.parametrize(("asked", "used"), [("auto", "default"), ("default", "default"), ("flex", "flex")])
def test_a_chat_says_the_tier_that_it_was_served_in(
    client: OpenAI, stack: Stack, asked: Literal["auto", "default", "flex"], used: str
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=SEA, max_tokens=2, service_tier=asked
    )
    assert raw.parse().service_tier == used
    assert raw.headers["x-taas-class"] == CLASSES[used]
    assert stack.receipt(raw.headers["x-request-id"])["class"] == CLASSES[used]


def test_each_chunk_of_a_streamed_chat_says_the_tier(client: OpenAI, stack: Stack) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=SEA, max_tokens=4, stream=True, service_tier="flex"
    ) as stream:
        chunks = list(stream)
    assert [chunk.service_tier for chunk in chunks] == ["flex"] * len(chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert stack.receipt(stream.response.headers["x-request-id"])["class"] == "flex"


def test_a_response_says_the_tier_whole_and_streamed(client: OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input="The sea is", max_output_tokens=2, service_tier="flex")
    assert whole.service_tier == "flex"
    with client.responses.create(
        model=MODEL, input="The sea is", max_output_tokens=2, stream=True, service_tier="default"
    ) as stream:
        shown = [event.response.service_tier for event in stream if hasattr(event, "response")]
    assert len(shown) >= 2
    assert set(shown) == {"default"}


def test_a_message_says_the_tier_in_its_usage(anthropic_client: Anthropic, stack: Stack) -> None:
    answer = anthropic_client.messages.create(
        model=MODEL, max_tokens=2, messages=SEA, service_tier="standard_only"
    )
    assert answer.usage.service_tier == "standard"
    assert answer._request_id is not None
    assert stack.receipt(answer._request_id)["class"] == "on_demand"
    # Anthropic's SDK has no name for it; ours is taken beside its own.
    with anthropic_client.messages.stream(
        model=MODEL, max_tokens=2, messages=SEA, extra_body={"service_tier": "flex"}
    ) as stream:
        assert stream.get_final_message().usage.model_dump()["service_tier"] == "flex"


@pytest.mark.parametrize("tier", ["scale", "fastest"])
def test_a_tier_that_is_not_there_is_refused_by_name(client: OpenAI, tier: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=SEA, max_tokens=2, service_tier=tier)
    assert refused.value.param == "service_tier"


def test_priority_without_a_contract_is_refused_and_says_so(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=SEA, max_tokens=2, service_tier="priority")
    assert refused.value.code == "no_contract"
