"""What of a provider's error reaches a caller."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.wire.engine_kinds import KINDS
from gateway.errors import ContextLengthExceeded, EngineFailed, EngineRefused, Overloaded
from gateway.request import Route
from gateway.routes import ROUTES
from gateway.upstream.adapters import ADAPTERS
from gateway.upstream.provider_errors import failure, refusal

CHAT, MESSAGES = ROUTES[Route.CHAT], ROUTES[Route.MESSAGES]


def said(message: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"type": "invalid_request_error", "message": message, **fields}}).encode()


def test_every_kind_has_an_adapter() -> None:
    assert ADAPTERS.keys() == KINDS.keys()


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        (
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 130007 "
            "tokens. Please reduce the length of the messages.",
            (128000, 130007),
        ),
        (
            "This model's maximum context length is 8192 tokens, however you requested 9000 tokens (8000 in "
            "your prompt; 1000 for the completion).",
            (8192, 9000),
        ),
        ("prompt is too long: 205000 tokens > 200000 maximum", (200000, 205000)),
    ],
)
def test_a_prompt_that_is_too_long_is_told_with_both_numbers(message: str, numbers: tuple[int, int]) -> None:
    error = refusal(400, said(message), CHAT, "big-1")
    assert isinstance(error, ContextLengthExceeded)
    assert (error.context_tokens, error.requested) == numbers


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported value: 'temperature' does not support 0.2 with this model.",
        "max_tokens: 100000 > 8192, which is the maximum allowed number of output tokens",
    ],
)
def test_a_harmless_sentence_is_passed_on(message: str) -> None:
    error = refusal(400, said(message, param="temperature"), CHAT, "big-1")
    assert isinstance(error, EngineRefused)
    assert (error.message, error.param) == (message, "temperature")


@pytest.mark.parametrize(
    "message",
    [
        "big-1 does not support this", "see https://platform.openai.com/docs", "ask Anthropic", "at host:443",
        "in /srv/api.py", "for gpt-4.1", "request req_123", "a\nb", "x" * 400, "",
    ],
)  # fmt: skip
def test_a_sentence_that_names_the_provider_is_not(message: str) -> None:
    error = refusal(400, said(message, param="messages[0].content"), CHAT, "big-1")
    assert isinstance(error, EngineRefused)
    assert error.message == "Invalid 'messages[0].content'."


@pytest.mark.parametrize(
    "message",
    ["Your credit balance is too low", "Your organization must be verified", "billing hard limit", "API key"],
)
def test_what_is_said_of_the_operators_account_is_no_fault_of_the_caller(message: str) -> None:
    assert type(refusal(400, said(message), MESSAGES, "big-1")) is EngineFailed


@pytest.mark.parametrize("status", [401, 402, 403, 404, 409, 500, 503, 529])
def test_what_is_between_the_provider_and_us_is_our_failure(status: int) -> None:
    assert type(refusal(status, said("Incorrect API key"), CHAT, "big-1")) is EngineFailed


def test_a_limit_of_the_provider_is_no_quota_of_the_caller() -> None:
    assert type(refusal(429, said("Rate limit reached"), CHAT, "big-1")) is Overloaded
    assert type(failure(said("busy", type="overloaded_error"), MESSAGES, "big-1")) is Overloaded
    assert type(failure(said("no", type="api_error"), MESSAGES, "big-1")) is EngineFailed
    # In OpenAI's dialect a code says it; servers like vLLM write the status there.
    assert type(failure(said("slow", code="rate_limit_exceeded"), MESSAGES, "big-1")) is Overloaded
    assert isinstance(failure(said("bad", type="BadRequestError", code=400), MESSAGES, "x"), EngineRefused)
    assert type(failure(said("no", type="InternalServerError", code=500), MESSAGES, "x")) is EngineFailed
    assert isinstance(failure(said("bad value"), MESSAGES, "big-1"), EngineRefused)


@given(status=st.integers(201, 599), body=st.binary() | st.text().map(lambda text: said(text, param=text)))
def test_no_answer_breaks_it(status: int, body: bytes) -> None:
    for route in (CHAT, MESSAGES):
        assert refusal(status, body, route, "big-1").message
        assert failure(body, route, "big-1").message
