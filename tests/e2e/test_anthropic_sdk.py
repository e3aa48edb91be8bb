"""The official Anthropic SDK against real vLLM: messages plain and streamed, counting, errors, and the
bill of each. `test_gateway_behind_gateway` tries some of it through the translator.
"""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from tests.fixtures.stack import MODEL, Stack

pytestmark = pytest.mark.vllm

SEA: list[Any] = [{"role": "user", "content": "Say something short about the sea."}]


@pytest.fixture(scope="module")
def model() -> str:
    return MODEL


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Anthropic]:
    with Anthropic(base_url=stack.gateway.url, api_key=stack.key, max_retries=0, timeout=60) as made:
        yield made


def assert_receipt(stack: Stack, request_id: str, usage: Any) -> None:
    """In this dialect `input_tokens` are those that are neither read from the cache nor written to it."""
    receipt = stack.receipt(request_id)
    cached = usage.cache_read_input_tokens or 0
    prompt = usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0)
    assert receipt["ending"] == "complete", receipt
    assert receipt["billed"] == {"prompt": prompt, "cached": cached, "output": usage.output_tokens}, (
        usage,
        receipt,
    )
    assert receipt["produced"] == receipt["billed"]
    assert receipt["delivered"] == {"output": usage.output_tokens}


def test_a_message_is_answered_and_billed_as_told(client: Anthropic, stack: Stack, model: str) -> None:
    answer = client.messages.create(model=model, max_tokens=8, messages=SEA)
    assert answer.role == "assistant"
    assert answer.content[0].type == "text"
    assert answer.stop_reason in {"max_tokens", "end_turn"}
    assert answer._request_id is not None
    assert_receipt(stack, answer._request_id, answer.usage)


def test_a_streamed_message_is_put_together_by_the_sdk_and_billed_as_told(
    client: Anthropic, stack: Stack, model: str
) -> None:
    with client.messages.stream(model=model, max_tokens=8, messages=SEA) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text
    assert final.content[0].type == "text"
    assert final.content[0].text == text
    assert stream.response.headers["request-id"] == stream.response.headers["x-request-id"]
    assert_receipt(stack, stream.response.headers["request-id"], final.usage)


def test_what_was_read_before_is_billed_as_cached(client: Anthropic, stack: Stack, model: str) -> None:
    messages: Any = [{"role": "user", "content": "The sea is wide and the wind is strong. " * 12}]
    first = client.messages.create(model=model, max_tokens=2, messages=messages)
    second = client.messages.create(model=model, max_tokens=2, messages=messages)
    assert (second.usage.cache_read_input_tokens or 0) > 0
    for answer in (first, second):
        assert answer._request_id is not None
        assert_receipt(stack, answer._request_id, answer.usage)


def test_counting_says_what_a_message_then_uses(client: Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=SEA)
    usage = client.messages.create(model=MODEL, max_tokens=1, messages=SEA).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_models_are_listed_in_this_dialect(client: Anthropic) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).type == "model"


def test_errors_are_raised_as_the_classes_of_the_sdk(client: Anthropic, stack: Stack, model: str) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="nothing-of-that-name", max_tokens=8, messages=SEA)
    body: Any = unknown.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "not_found_error"
    assert unknown.value.request_id is not None
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model=model, max_tokens=100_000, messages=SEA)
    with (
        Anthropic(base_url=stack.gateway.url, api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model=model, max_tokens=8, messages=SEA)


def test_nothing_of_all_this_is_unaccounted_for(stack: Stack) -> None:
    stack.assert_conserved()
