"""What vLLM 0.32 refuses is refused in its words, so that what translates them is tried on the real thing."""

from typing import Any

import pytest

from loadtest import plain_http
from tests.fixtures.engine import SimEngine

CHAT = {"model": "sim", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
LONG_TEXT = "word " * 3000

REFUSED: list[tuple[str, dict[str, Any], int, str, str, str | None]] = [
    (
        "/v1/chat/completions",
        CHAT | {"model": "zz"},
        404,
        "The model `zz` does not exist. Valid aliases: sim.",
        "NotFoundError",
        "model",
    ),
    ("/v1/chat/completions", CHAT | {"n": 0}, 400, "n must be at least 1, got 0.", "BadRequestError", None),
    (
        "/v1/chat/completions",
        CHAT | {"n": "3x"},
        400,
        "unable to parse string as an integer",
        "Bad Request",
        "body.n",
    ),
    (
        "/v1/chat/completions",
        CHAT | {"max_tokens": 0},
        400,
        "max_tokens must be at least 1, got 0.",
        "BadRequestError",
        "max_tokens",
    ),
    (
        "/v1/chat/completions",
        CHAT | {"max_tokens": 99999},
        400,
        "max_tokens=99999 cannot be greater than max_model_len=2048",
        "BadRequestError",
        "max_tokens",
    ),
    (
        "/v1/chat/completions",
        CHAT | {"min_tokens": 5},
        400,
        "min_tokens must be less than or equal to max_tokens=1, got 5.",
        "BadRequestError",
        None,
    ),
    (
        "/v1/chat/completions",
        CHAT | {"temperature": -1},
        400,
        "temperature must be non-negative, got -1.0.",
        "BadRequestError",
        "temperature",
    ),
    (
        "/v1/chat/completions",
        CHAT | {"stream_options": {"include_usage": True}},
        400,
        "Stream options can only",
        "BadRequestError",
        "stream_options",
    ),
    ("/v1/chat/completions", {"max_tokens": 1}, 400, "Field required", "Bad Request", "body.messages"),
    ("/v1/chat/completions", {"messages": []}, 400, "empty conversation", "BadRequestError", None),
    ("/v1/completions", {"prompt": []}, 400, "You must pass at least one prompt", "BadRequestError", None),
    (
        "/v1/completions",
        {"prompt": [1, 999_999]},
        400,
        "Token id 999999 is out of vocabulary",
        "BadRequestError",
        None,
    ),
    (
        "/v1/completions",
        {"prompt": LONG_TEXT},
        400,
        "maximum context length is 2048 tokens. However, your prompt contains",
        "BadRequestError",
        "input_tokens",
    ),
    (
        "/v1/responses",
        {"input": LONG_TEXT},
        400,
        "maximum context length is 2048 tokens. However, your prompt contains",
        "BadRequestError",
        "input_tokens",
    ),
    ("/v1/responses", {}, 400, "Field required", "Bad Request", "body.input"),
    (
        "/v1/messages",
        {"model": "sim", "messages": CHAT["messages"]},
        400,
        "Field required",
        "Bad Request",
        "body.max_tokens",
    ),
    (
        "/v1/messages",
        CHAT | {"max_tokens": -4},
        400,
        "max_tokens must be positive",
        "Bad Request",
        "body.max_tokens",
    ),
    ("/inference/v1/abort_requests", {}, 400, "Missing 'request_ids' in request body", "Bad Request", None),
]


@pytest.mark.parametrize(("path", "body", "status", "message", "kind", "param"), REFUSED)
def test_refusals_are_in_vllms_form(
    engine: SimEngine,
    path: str,
    body: dict[str, Any],
    status: int,
    message: str,
    kind: str,
    param: str | None,
) -> None:
    answer = engine.post(path, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"], error["code"]) == (status, kind, param, status)
    assert message in error["message"]


def test_messages_refuses_in_anthropics_form(engine: SimEngine) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": LONG_TEXT}]}
    answer = engine.post("/v1/messages", body).json()
    assert (answer["type"], answer["error"]["type"]) == ("error", "BadRequestError")


def test_what_is_asked_beyond_the_context_is_cut_to_what_is_left(engine: SimEngine) -> None:
    body = {"prompt": "word " * 2000, "max_tokens": 1000, "ignore_eos": True}
    usage = engine.post("/v1/completions", body).json()["usage"]
    assert usage["total_tokens"] == 2048


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/models", "/inference/v1/abort_requests", "/v1/zz"]
)
def test_without_the_key_nothing_guarded_is_reached(engine: SimEngine, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": engine.key}):
        answer = plain_http.post(engine.url + path, json=CHAT, headers=headers)
        assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})


@pytest.mark.parametrize("path", ["/health", "/load", "/version", "/metrics"])
def test_what_vllm_leaves_open_is_open(engine: SimEngine, path: str) -> None:
    assert plain_http.get(engine.url + path).status_code == 200


def test_unknown_paths_and_methods(engine: SimEngine) -> None:
    assert engine.post("/v1/embeddings", {"input": "a"}).json() == {"detail": "Not Found"}
    with plain_http.Client(base_url=engine.url, headers={"authorization": f"Bearer {engine.key}"}) as client:
        answer = client.get("/v1/chat/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("raw", [b"", b"{bad", b"[]", b'{"messages": 1}'])
def test_bodies_that_are_no_requests_are_400(engine: SimEngine, raw: bytes) -> None:
    headers = {"authorization": f"Bearer {engine.key}"}
    answer = plain_http.post(f"{engine.url}/v1/chat/completions", content=raw, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "Bad Request")
