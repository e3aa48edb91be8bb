"""Real refusals of vLLM 0.32, captured, and what its callers hear of them."""

from typing import Any

import orjson
import pytest

from gateway.error_form import error_body
from gateway.errors import ContextLengthExceeded, EngineFailed, EngineRefused, GatewayError, Overloaded
from gateway.request import Dialect, Route
from gateway.routes import ROUTES
from gateway.upstream.vllm_errors import translate_engine_error, translate_stream_error

ENGINE_MODEL = "smollm2-135m"
SECRETS = (
    "smollm2",
    "10.0.0.7",
    "/srv",
    "--enable",
    "Traceback",
    "ValueError",
    "parameter=",
    "body.",
    "errors.pydantic",
    "canary",
    "0x7f",
    "node-17",
)


def translated(
    message: str, param: str | None = None, *, route: Route = Route.CHAT, status: int = 400
) -> GatewayError:
    body = {"error": {"message": message, "type": "BadRequestError", "param": param, "code": status}}
    if route is Route.MESSAGES:
        body = {"type": "error", "error": {"type": "BadRequestError", "message": message}}  # type: ignore[dict-item]
    return translate_engine_error(status, orjson.dumps(body), ROUTES[route], ENGINE_MODEL)


PROMPT_TOO_LONG = (
    "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input "
    "tokens, which exceeds this limit even "
    "without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, "
    "value=2049)"
)
TEXT_TOO_LONG = (
    "This model's maximum context length is 2048 tokens. However, your prompt contains 2700148 characters "
    "(more than 165888 characters, which is the "
    "upper bound for 2048 input tokens). Please reduce the length of the input prompt. "
    "(parameter=input_text, value=2700148)"
)


@pytest.mark.parametrize(
    ("message", "route", "requested", "param"),
    [
        (PROMPT_TOO_LONG, Route.CHAT, 2049, "messages"),
        (PROMPT_TOO_LONG, Route.COMPLETIONS, 2049, "prompt"),
        (PROMPT_TOO_LONG, Route.RESPONSES, 2049, "input"),
        (PROMPT_TOO_LONG, Route.MESSAGES, 2049, "messages"),
        (PROMPT_TOO_LONG, Route.EMBEDDINGS, 2049, "input"),
        (PROMPT_TOO_LONG, Route.RERANK, 2049, "documents"),
        (TEXT_TOO_LONG, Route.CHAT, 2700148, "messages"),
        ("Input length (3000) exceeds model's maximum context length (2048).", Route.RESPONSES, 3000,
        "input"),
        (
            "max_tokens=99999 cannot be greater than max_model_len=2048. Please request fewer output "
            "tokens. (parameter=max_tokens, value=99999)", Route.CHAT, 99999, "max_tokens",
        ),
        ("max_output_tokens=9999 cannot be greater than max_model_len=2048. Please …", Route.RESPONSES, 9999,
        "max_output_tokens"),
        ("max_completion_tokens=99999 cannot be greater than max_model_len=2048. Please …", Route.MESSAGES,
        99999, "max_tokens"),
    ],
)  # fmt: skip
def test_fault_10_an_overflow_of_the_context_names_both_numbers(
    message: str, route: Route, requested: int, param: str
) -> None:
    error = translated(message, "input_tokens", route=route)
    assert isinstance(error, ContextLengthExceeded)
    assert (error.context_tokens, error.requested, error.param, error.code) == (
        2048,
        requested,
        param,
        "context_length_exceeded",
    )
    assert "2048" in error.message
    assert str(requested) in error.message


@pytest.mark.parametrize(
    ("message", "param", "said", "caller_param"),
    [
        (
            "1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.n', 'msg': 'Input should be a "
            "valid integer, unable to parse string as an "
            "integer', 'input': 'canary'}", "body.n",
            "Invalid 'n': Input should be a valid integer, unable to parse string as an integer.", "n",
        ),
        (
            "1 validation error:\n  {'type': 'value_error', 'loc': 'body.max_tokens', 'msg': 'Value error, "
            "max_tokens must be positive', 'input': '-4', "
            "'ctx': {'error': ValueError('max_tokens must be positive')}}",
            "body.max_tokens", "Invalid 'max_tokens': max_tokens must be positive.", "max_tokens",
        ),
        ("temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)", "temperature",
         "Invalid 'temperature': temperature must be non-negative, got -1.0.", "temperature"),
        (
            "Requested sample logprobs of 50, which is greater than max allowed: 20 (parameter=logprobs, "
            "value=50)", "logprobs", "Invalid 'logprobs'.", "logprobs",
        ),
        ("Token id 99999999 is out of vocabulary", None,
        "Token id 99999999 is not in the model's vocabulary.", "messages"),
        ('Grammar error: at 1(8): invalid regex "(canary" (in regex): regex parse error:', None,
         "The schema or regular expression cannot be compiled by this model's engine.", None),
        ('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', None,
        "This model does not support tool calls.", "tools"),
        ('tool_choice=function "f" requires --tool-call-parser to be set', None,
        "This model does not support tool calls.", "tools"),
        ("smollm2-135m is not a multimodal model", None, "This model accepts only text.", "messages"),
        ("min_tokens must be less than or equal to max_tokens=2, got 5.", None,
        "The model's engine refused the request.", None),
    ],
)  # fmt: skip
def test_a_known_refusal_is_told_in_the_callers_words(
    message: str, param: str | None, said: str, caller_param: str | None
) -> None:
    error = translated(message, param)
    assert isinstance(error, EngineRefused)
    assert (error.status, error.message, error.param) == (400, said, caller_param)
    assert_clean(error)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "Model 'smollm2-135m' does not support Matryoshka embeddings; dimensions must be unset (received "
            "dimensions=8).",
            "The embeddings of this model have one size: leave 'dimensions' out.",
        ),
        (
            "Model 'smollm2-135m' only supports dimensions in range [1, 576], got 577.",
            "Invalid 'dimensions': it must be a number in the range [1, 576].",
        ),
        (
            "Model 'smollm2-135m' only supports Matryoshka dimensions [64, 128], got 65.",
            "Invalid 'dimensions': it must be one of [64, 128].",
        ),
    ],
)
def test_a_size_that_embeddings_cannot_have_is_told(message: str, said: str) -> None:
    error = translated(message, route=Route.EMBEDDINGS)
    assert (error.status, error.message) == (400, said)
    assert isinstance(error, EngineRefused)
    assert error.param == "dimensions"
    assert_clean(error)


LEAKY: list[tuple[str, Any]] = [
    ("model smollm2-135m at /srv/models/smollm2 failed on node-17", None),
    ("temperature http://10.0.0.7:8100/v1 refused", "temperature"),
    ("temperature is set in /srv/vllm/config.py", "temperature"),
    ("temperature needs --enable-something", "temperature"),
    ("temperature <object at 0x7f00> is odd", "temperature"),
    (
        'Traceback (most recent call last):\n  File "/srv/vllm/engine.py", line 5, in run\nValueError: '
        "canary",
        None,
    ),
    ("1 validation error:\n  {'msg': 'see /srv/vllm', 'input': 'canary'}", "body.n"),
    ("something new about a canary", "body.errors.pydantic[x]"),
    ("canary", "/srv/secret"),
    ("temperature is not what smollm2-135m takes", "temperature"),
    ("canary " * 10_000, "n"),
]


@pytest.mark.parametrize(("message", "param"), LEAKY)
def test_fault_31_a_sentence_that_is_not_known_gives_nothing_away(message: str, param: str | None) -> None:
    for route in (Route.CHAT, Route.MESSAGES, Route.RESPONSES):
        error = translated(message, param, route=route)
        assert (error.status, error.code) == (400, "engine_refused")
        assert_clean(error)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"<html>10.0.0.7</html>", b"[]", b'"canary"', b'{"detail":"Not Found"}',
        b'{"error":"Unauthorized"}', b'{"error":{"message":5,"param":{}}}', b"\xff",
    ],
)  # fmt: skip
def test_fault_31_an_error_body_may_be_anything(body: bytes) -> None:
    error = translate_engine_error(400, body, ROUTES[Route.CHAT], ENGINE_MODEL)
    assert (error.status, error.code, error.param) == (400, "engine_refused", None)
    assert_clean(error)


def test_fault_31_a_busy_engine_is_our_overload() -> None:
    error = translate_engine_error(429, b"{}", ROUTES[Route.CHAT], ENGINE_MODEL)
    assert isinstance(error, Overloaded)
    assert error.retry_after_ms


@pytest.mark.parametrize("status", [401, 403, 404, 405, 408, 409, 301, 500, 501, 502, 503, 504, 200])
def test_fault_31_what_is_not_the_callers_fault_is_our_failure(status: int) -> None:
    message = "The model `zz` does not exist. Valid aliases: smollm2-135m."
    error = translated(message, "model", status=status)
    assert isinstance(error, EngineFailed)
    assert_clean(error)


@pytest.mark.parametrize("status", [413, 415, 422])
def test_every_refusal_of_a_request_is_a_400_to_its_caller(status: int) -> None:
    assert translated("x", status=status).status == 400


def assert_clean(error: GatewayError) -> None:
    for dialect in Dialect:
        written = error_body(error, dialect, "req_1").decode()
        assert not [secret for secret in SECRETS if secret in written]


NO_THINKING = (
    "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-parser and/"
    "or --reasoning-config to use "
    "thinking_token_budget."
)
NO_OBJECT = (
    "1 validation error for AnthropicContentBlock\ninput\n  Input should be a valid dictionary "
    "[type=dict_type, input_value='canary', input_type=str]\n"
    "    For further information visit https://errors.pydantic.dev/2.14/v/dict_type"
)


@pytest.mark.parametrize(
    ("message", "route", "said", "param"),
    [
        (NO_THINKING, Route.MESSAGES, "This model does not think.", "thinking"),
        (NO_THINKING, Route.CHAT, "This model does not think.", "thinking_token_budget"),
        (NO_OBJECT, Route.MESSAGES, "The model's tool call was not an object.", "tools"),
        ("Expecting value: line 1 column 1 (char 0)", Route.MESSAGES,
        "The model's tool call was not valid JSON.", "tools"),
        ("Expecting ',' delimiter: line 1 column 9 (char 8)", Route.MESSAGES,
        "The model's tool call was not valid JSON.", "tools"),
        ("Extra data: line 1 column 3 (char 2)", Route.MESSAGES, "The model's tool call was not valid JSON.",
        "tools"),
        ("Unterminated string starting at: line 1 column 2 (char 1)", Route.MESSAGES,
        "The model's tool call was not valid JSON.", "tools"),
        ("Expecting value: line 1 column 1 (char 0)", Route.CHAT, "The model's engine refused the request.",
        None),
    ],
)  # fmt: skip
def test_the_cause_is_told_in_both_dialects(message: str, route: Route, said: str, param: str | None) -> None:
    error = translated(message, route=route)
    assert (error.status, error.message, error.param) == (400, said, param)
    openai = orjson.loads(error_body(error, Dialect.OPENAI, "req_1"))["error"]
    assert openai == {"message": said, "type": "invalid_request_error", "param": param, "code": error.code}
    assert orjson.loads(error_body(error, Dialect.ANTHROPIC, "req_1")) == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": said, "details": {"error_code": error.code}},
        "request_id": "req_1",
    }
    assert_clean(error)


IN_A_STREAM = (
    "2 validation errors for ChatCompletionStreamResponse\nmodel\n  Field required [type=missing, "
    "input_value={'error': {'message': 'th...am': None, "
    "'code': 400}}, input_type=dict]\n    For further information visit https://errors.pydantic.dev/2.14/v/"
    "missing\nchoices\n  Field required "
    "[type=missing, input_value={'error': {'message': 'th...am': None, 'code': 400}}, input_type=dict]\n    "
    "For further information visit "
    "https://errors.pydantic.dev/2.14/v/missing"
)


def stream_error(event: object, route: Route) -> GatewayError:
    return translate_stream_error(orjson.dumps(event), ROUTES[route], ENGINE_MODEL)


def test_a_refusal_that_comes_as_an_event_is_told_too() -> None:
    in_chat = {"error": {"message": NO_THINKING, "type": "BadRequestError", "param": None, "code": 400}}
    assert stream_error(in_chat, Route.CHAT).message == "This model does not think."
    in_messages = {"type": "error", "error": {"type": "internal_error", "message": IN_A_STREAM}}
    assert stream_error(in_messages, Route.MESSAGES).message == "This model does not think."
    other = {
        "type": "error",
        "error": {"type": "internal_error", "message": IN_A_STREAM.replace("'th...", "'canary...")},
    }
    refused = stream_error(other, Route.MESSAGES)
    assert isinstance(refused, EngineRefused)
    assert_clean(refused)


@pytest.mark.parametrize(
    "event",
    [
        {"error": {"message": "canary", "type": "InternalServerError", "param": None, "code": 500}},
        {"type": "error", "error": {"type": "internal_error", "message": "canary"}},
        {"type": "error", "error": {"type": "internal_error", "message": IN_A_STREAM.replace("400", "500")}},
        {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "canary"}}},
        {"type": "error"}, [], "canary", {"error": None}, {"response": {"error": 1}},
    ],
)  # fmt: skip
def test_any_other_error_event_is_a_failure_of_ours(event: object) -> None:
    for route in (Route.CHAT, Route.MESSAGES, Route.RESPONSES):
        error = stream_error(event, route)
        assert isinstance(error, EngineFailed)
        assert_clean(error)
