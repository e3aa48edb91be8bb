"""Every kind of error, in both dialects, with the official SDKs as judges. Knows no engine."""

import inspect
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import openai
import orjson
import pytest

import gateway.errors
from billing.wire.ending import Ending
from gateway.error_form import error_body, error_event, error_headers
from gateway.errors import (
    RETRY_AFTER_MS_MAX,
    AlreadyDone,
    AuthenticationFailed,
    BatchUnavailable,
    BodyTooLarge,
    BudgetUsedUp,
    ClientDisconnected,
    ContextLengthExceeded,
    DeadlineExceeded,
    DependencyUnavailable,
    EngineFailed,
    EngineRefused,
    GatewayError,
    IdempotencyConflict,
    IdempotencyKeyReused,
    InstancesBusy,
    InternalError,
    InvalidJson,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    ModelRouteUnsupported,
    NoContractHere,
    NoInstance,
    OutcomeUnknown,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    ReceivingFull,
    RemoteMediaDisabled,
    RequestQuarantined,
    RequestStopped,
    RequestTimeout,
    RouteNotFound,
    UnsupportedContentEncoding,
    UnsupportedParameter,
    UpstreamProtocolError,
    UsageUnavailable,
)
from gateway.request import Dialect, Route
from gateway.routes import ROUTES

EVERY: list[tuple[GatewayError, int, str]] = [
    (InternalError(), 500, "internal_error"),
    (InvalidJson("x"), 400, "invalid_json"),
    (InvalidRequest("x", "n", "invalid_type"), 400, "invalid_type"),
    (UnsupportedParameter("n"), 400, "unsupported_parameter"),
    (RemoteMediaDisabled("messages[0]"), 400, "remote_media_disabled"),
    (ContextLengthExceeded(2048, 5000, "max_tokens"), 400, "context_length_exceeded"),
    (NoContractHere(), 400, "no_contract"),
    (EngineRefused("x"), 400, "engine_refused"),
    (IdempotencyKeyReused(), 422, "idempotency_key_reused"),
    (IdempotencyConflict(), 409, "idempotency_key_in_use"),
    (AlreadyDone({"request_id": "req_1"}), 409, "idempotency_request_done"),
    (OutcomeUnknown("req_1"), 409, "idempotency_outcome_unknown"),
    (BodyTooLarge(5), 413, "body_too_large"),
    (UnsupportedContentEncoding(), 415, "unsupported_content_encoding"),
    (RequestTimeout(), 408, "request_timeout"),
    (AuthenticationFailed(), 401, "invalid_api_key"),
    (ClientDisconnected(), 499, "client_disconnect"),
    (PermissionDenied(), 403, "permission_denied"),
    (ModelNotFound("m"), 404, "model_not_found"),
    (ModelRouteUnsupported("m", Route.EMBEDDINGS), 404, "model_route_unsupported"),
    (RouteNotFound(), 404, "route_not_found"),
    (MethodNotAllowed("POST"), 405, "method_not_allowed"),
    (QuotaExceeded("requests", "x", 5), 429, "rate_limit_exceeded"),
    (BudgetUsedUp("The budget", 1_800_000_000_000), 429, "insufficient_quota"),
    (Overloaded(5), 503, "overloaded"),
    (ReceivingFull(), 503, "receiving_full"),
    (NoInstance(), 503, "no_instance"),
    (InstancesBusy(), 503, "overloaded"),
    (RequestQuarantined(), 503, "request_quarantined"),
    (DependencyUnavailable(), 503, "dependency_unavailable"),
    (UsageUnavailable(), 503, "usage_unavailable"),
    (BatchUnavailable(), 503, "batch_unavailable"),
    (UpstreamProtocolError(), 502, "upstream_protocol_error"),
    (EngineFailed(), 502, "engine_failed"),
    (RequestStopped(Ending.OPERATOR_STOP), 503, "operator_stop"),
    (DeadlineExceeded(), 504, "deadline_exceeded"),
]
ANTHROPIC_TYPES = {
    "invalid_request_error", "authentication_error", "permission_error", "not_found_error",
    "request_too_large", "rate_limit_error", "api_error", "overloaded_error", "timeout_error",
}  # fmt: skip
each = pytest.mark.parametrize(
    ("error", "status", "code"), EVERY, ids=[type(entry[0]).__name__ for entry in EVERY]
)


def headers(error: GatewayError) -> dict[bytes, bytes]:
    return dict(error_headers(error))


def test_every_kind_is_in_this_file_and_in_the_drawing() -> None:
    kinds = {
        kind
        for _, kind in inspect.getmembers(gateway.errors, inspect.isclass)
        if issubclass(kind, GatewayError)
    }
    tested = {kind for error, _, _ in EVERY for kind in type(error).__mro__ if kind in kinds}
    assert tested == kinds
    for kind in kinds:
        assert f" {kind.__name__}" in (gateway.errors.__doc__ or "")


@each
def test_every_error_is_written_in_openais_form(error: GatewayError, status: int, code: str) -> None:
    assert error.status == status
    body = orjson.loads(error_body(error, Dialect.OPENAI, "req_1"))
    assert set(body) == {"error"}
    receipt = set() if error.receipt is None else {"receipt"}
    assert set(body["error"]) == {"message", "type", "param", "code"} | receipt
    assert (body["error"]["code"], body["error"]["param"]) == (code, error.param)
    assert body["error"]["message"] == str(error)


@each
def test_every_error_is_written_in_anthropics_form(error: GatewayError, status: int, code: str) -> None:
    body = orjson.loads(error_body(error, Dialect.ANTHROPIC, "req_1"))
    assert set(body) == {"type", "error", "request_id"}
    assert (body["type"], body["request_id"]) == ("error", "req_1")
    assert body["error"]["type"] in ANTHROPIC_TYPES
    receipt = {} if error.receipt is None else {"receipt": error.receipt}
    assert body["error"]["details"] == {"error_code": code, **receipt}


def test_a_refused_key_is_told_the_same_whatever_the_reason() -> None:
    assert error_body(AuthenticationFailed(), Dialect.OPENAI, "req_1") == error_body(
        AuthenticationFailed(), Dialect.OPENAI, "req_2"
    )


def test_fault_14_unknown_and_not_yours_are_one_body() -> None:
    assert error_body(ModelNotFound("m"), Dialect.OPENAI, "req_1") == error_body(
        ModelNotFound("m"), Dialect.OPENAI, "req_2"
    )


def test_a_models_name_is_quoted_short_and_as_valid_utf8() -> None:
    body = orjson.loads(error_body(ModelNotFound("\ud800" + "x" * 10_000), Dialect.OPENAI, "req_1"))
    assert len(body["error"]["message"]) < 400


def test_retry_after_is_rounded_up_to_whole_seconds_and_kept_in_milliseconds() -> None:
    assert headers(QuotaExceeded("requests", "x", 1)) == {
        b"content-type": b"application/json",
        b"retry-after": b"1",
        b"retry-after-ms": b"1",
    }
    assert headers(Overloaded(2000))[b"retry-after"] == b"2"
    assert headers(Overloaded(2001))[b"retry-after"] == b"3"
    assert b"retry-after" not in headers(Overloaded())


@pytest.mark.parametrize(
    ("retry_after_ms", "should_retry"),
    [(0, None), (RETRY_AFTER_MS_MAX, None), (RETRY_AFTER_MS_MAX + 1, b"false"), (None, b"false")],
)
def test_a_quota_that_two_minutes_do_not_clear_is_not_retried(
    retry_after_ms: int | None, should_retry: bytes | None
) -> None:
    assert headers(QuotaExceeded("units", "x", retry_after_ms)).get(b"x-should-retry") == should_retry


def test_only_a_stopped_gateway_is_worth_another_try() -> None:
    assert headers(RequestStopped(Ending.OPERATOR_STOP))[b"x-should-retry"] == b"false"
    assert b"x-should-retry" not in headers(RequestStopped(Ending.GATEWAY_STOPPED))


def test_a_body_that_was_not_read_closes_the_connection() -> None:
    assert headers(BodyTooLarge(5))[b"connection"] == b"close"
    assert headers(RequestTimeout())[b"connection"] == b"close"
    assert b"connection" not in headers(InvalidJson("x"))


def test_a_refused_method_names_the_allowed_ones() -> None:
    assert headers(MethodNotAllowed("GET, HEAD"))[b"allow"] == b"GET, HEAD"


# The official SDKs, as the judges of both forms.


def answering(respond: Callable[[], httpx2.Response]) -> httpx2.Client:
    return httpx2.Client(transport=httpx2.MockTransport(lambda _request: respond()))


def stream_of(*events: bytes) -> httpx2.Response:
    return httpx2.Response(200, content=b"".join(events), headers={"content-type": "text/event-stream"})


M: Any = [{"role": "user", "content": "hi"}]
CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    b'"delta":{"content":"x"}}]}\n\n'
)
CREATED = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"x",'
    b'"sequence_number":4}\n\n'
)
PING = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"x"}}\n\n'
)


def test_openais_sdk_raises_the_error_of_a_chat_stream_after_what_came_before() -> None:
    event = error_event(EngineFailed(), ROUTES[Route.CHAT], "req_1")
    assert event.startswith(b'data: {"error":')
    with answering(lambda: stream_of(CHUNK, event)) as transport:
        client = openai.OpenAI(base_url="http://x", api_key="k", http_client=transport)
        stream = iter(client.chat.completions.create(model="m", messages=M, stream=True))
        assert next(stream).choices[0].delta.content == "x"
        with pytest.raises(openai.APIError) as caught:
            next(stream)
    assert (caught.value.code, caught.value.message) == ("engine_failed", EngineFailed().message)


def test_openais_sdk_raises_the_error_of_a_responses_stream_which_is_an_error_event_too() -> None:
    event = error_event(EngineFailed(), ROUTES[Route.RESPONSES], "req_1", sequence_number=5)
    name, _, line = event.partition(b"\n")
    body = orjson.loads(line.removeprefix(b"data: "))
    assert name == b"event: error"
    assert {
        "type": "error",
        "code": "engine_failed",
        "message": EngineFailed().message,
        "param": None,
        "sequence_number": 5,
    }.items() <= body.items()
    with answering(lambda: stream_of(CREATED, event)) as transport:
        client = openai.OpenAI(base_url="http://x", api_key="k", http_client=transport)
        stream = iter(client.responses.create(model="m", input="hi", stream=True))
        assert next(stream).type == "response.output_text.delta"
        with pytest.raises(openai.APIError) as caught:
            next(stream)
    assert caught.value.code == "engine_failed"


def test_anthropics_sdk_raises_the_error_of_a_messages_stream() -> None:
    event = error_event(Overloaded(), ROUTES[Route.MESSAGES], "req_1")
    with answering(lambda: stream_of(PING, event)) as transport:
        client = anthropic.Anthropic(base_url="http://x", api_key="k", http_client=transport)
        stream = iter(client.messages.create(model="m", messages=M, max_tokens=5, stream=True))
        assert next(stream).type == "content_block_delta"
        with pytest.raises(anthropic.APIStatusError) as caught:
            next(stream)
    assert (caught.value.type, caught.value.error_code) == ("overloaded_error", "overloaded")


def test_an_error_event_is_one_event_without_an_end_of_stream() -> None:
    for route in (Route.CHAT, Route.RESPONSES, Route.MESSAGES):
        event = error_event(InvalidRequest("two\nlines\n\n"), ROUTES[route], "req_1")
        assert event.endswith(b"\n\n")
        assert event.count(b"\n\n") == 1
        assert b"[DONE]" not in event


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidJson("x"), openai.BadRequestError), (AuthenticationFailed(), openai.AuthenticationError),
        (PermissionDenied(), openai.PermissionDeniedError),
        (ModelNotFound("m"), openai.NotFoundError), (QuotaExceeded("requests", "x", None),
        openai.RateLimitError), (Overloaded(), openai.InternalServerError),
    ],
)  # fmt: skip
def test_openais_sdk_knows_every_error(error: GatewayError, kind: type[openai.APIStatusError]) -> None:
    def respond() -> httpx2.Response:
        return httpx2.Response(
            error.status, content=error_body(error, Dialect.OPENAI, "req_1"), headers=error_headers(error)
        )

    with answering(respond) as transport, pytest.raises(kind) as caught:
        openai.OpenAI(base_url="http://x", api_key="k", max_retries=0, http_client=transport).models.list()
    assert (caught.value.code, caught.value.type) == (error.code, error.type)


@pytest.mark.parametrize(("retry_after_ms", "tries"), [(1, 3), (None, 1), (RETRY_AFTER_MS_MAX + 1, 1)])
def test_openais_sdk_retries_a_quota_only_where_it_helps(retry_after_ms: int | None, tries: int) -> None:
    error = QuotaExceeded("requests", "x", retry_after_ms)
    seen = []

    def respond() -> httpx2.Response:
        seen.append(error)
        return httpx2.Response(
            error.status, content=error_body(error, Dialect.OPENAI, "req_1"), headers=error_headers(error)
        )

    with answering(respond) as transport, pytest.raises(openai.RateLimitError):
        openai.OpenAI(base_url="http://x", api_key="k", max_retries=2, http_client=transport).models.list()
    assert len(seen) == tries


def test_anthropics_sdk_knows_the_error_and_its_code() -> None:
    error = UnsupportedParameter("stop")
    respond = httpx2.Response(
        error.status, content=error_body(error, Dialect.ANTHROPIC, "req_1"), headers=error_headers(error)
    )
    with answering(lambda: respond) as transport:
        client = anthropic.Anthropic(base_url="http://x", api_key="k", max_retries=0, http_client=transport)
        with pytest.raises(anthropic.BadRequestError) as caught:
            client.messages.create(model="m", messages=M, max_tokens=5)
    assert (caught.value.type, caught.value.error_code) == ("invalid_request_error", "unsupported_parameter")
