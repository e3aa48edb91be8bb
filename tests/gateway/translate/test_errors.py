"""Errors of a provider in the caller's dialect."""

import json
from typing import Any

import pytest
from anthropic.types.shared import ErrorResponse
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.shared import ErrorObject

from gateway.request import Dialect
from gateway.translate import error_in


@pytest.mark.parametrize(
    ("anthropic", "openai"),
    [
        ("invalid_request_error", "invalid_request_error"), ("authentication_error", "invalid_request_error"),
        ("not_found_error", "invalid_request_error"), ("permission_error", "permission_error"),
        ("rate_limit_error", "rate_limit_error"), ("overloaded_error", "server_error"),
        ("api_error", "server_error"), ("timeout_error", "server_error"), ("new_error", "server_error"),
    ],
)  # fmt: skip
def test_an_error_of_anthropic(anthropic: str, openai: str) -> None:
    body = {"type": "error", "error": {"type": anthropic, "message": "no"}, "request_id": "r"}
    told = json.loads(error_in(Dialect.OPENAI, json.dumps(body).encode()))
    assert told == {"error": {"message": "no", "type": openai, "param": None, "code": anthropic}}
    ErrorObject.model_validate(told["error"], strict=True)


@pytest.mark.parametrize(
    ("kind", "code", "anthropic"),
    [
        ("invalid_request_error", None, "invalid_request_error"),
        ("invalid_request_error", "invalid_api_key", "authentication_error"),
        ("invalid_request_error", "model_not_found", "not_found_error"),
        ("insufficient_quota", "insufficient_quota", "rate_limit_error"),
        ("tokens", "rate_limit_exceeded", "rate_limit_error"), ("server_error", None, "api_error"),
        ("BadRequestError", 400, "invalid_request_error"), ("NotFoundError", 404, "not_found_error"),
        (None, 503, "overloaded_error"), (5, [1], "api_error"),
    ],
)  # fmt: skip
def test_an_error_of_openai(kind: Any, code: Any, anthropic: str) -> None:
    body = {"error": {"message": "no", "type": kind, "param": "x", "code": code}}
    told = json.loads(error_in(Dialect.ANTHROPIC, json.dumps(body).encode()))
    assert told["error"]["type"] == anthropic
    if anthropic != "request_too_large":
        ErrorResponse.model_validate(told, strict=True)


@example(b'{"error": {"message": null, "type": 0}}')
@given(
    st.binary(max_size=20)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from(["error", "message", "type", "code"]), inner, max_size=4)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_anything_is_an_error(body: bytes) -> None:
    told = json.loads(error_in(Dialect.ANTHROPIC, body))
    assert set(told["error"]) == {"type", "message"}
    told = json.loads(error_in(Dialect.OPENAI, body))
    assert set(told["error"]) == {"type", "message", "param", "code"}
    ErrorObject.model_validate(told["error"], strict=True)
