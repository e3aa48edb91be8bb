"""Writes an error in the dialect of its caller: as body and headers of a response, or as the last event of a
stream. Knows no HTTP server: headers are pairs of bytes.
"""

from typing import Any

import orjson

from gateway.errors import GatewayError, MethodNotAllowed, QuotaExceeded
from gateway.request import AnswerForm, Dialect, RouteSpec


def error_body(err: GatewayError, dialect: Dialect, request_id: str) -> bytes:
    """The JSON body. Anthropic's form has no place for `code` except `details.error_code`, which its SDK
    reads.
    """
    return orjson.dumps(_error_object(err, dialect, request_id))


def error_headers(err: GatewayError) -> list[tuple[bytes, bytes]]:
    """The headers that the error itself decides; the sender adds request id and length."""
    headers = [(b"content-type", b"application/json")]
    if err.retry_after_ms is not None:
        wait_ms = max(err.retry_after_ms, 0)
        headers.append((b"retry-after", b"%d" % -(-wait_ms // 1000)))
        headers.append((b"retry-after-ms", b"%d" % wait_ms))
    if err.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if err.should_retry else b"false"))
    if isinstance(err, QuotaExceeded):
        headers += err.limit_headers
    if isinstance(err, MethodNotAllowed):
        headers.append((b"allow", err.allow.encode()))
    if err.close:
        headers.append((b"connection", b"close"))
    return headers


def error_event(err: GatewayError, route: RouteSpec, request_id: str, sequence_number: int = 0) -> bytes:
    """The error as the last event of a stream that has begun. No `[DONE]` and no finish follow it.

    OpenAI's SDK raises only for an object with `error` in it; its Responses stream has an event of its own
    without one, so that event carries both.
    """
    body = _error_object(err, route.dialect, request_id)
    if route.dialect is Dialect.ANTHROPIC:
        return b"event: error\ndata: " + orjson.dumps(body) + b"\n\n"
    if route.answer is AnswerForm.RESPONSE:
        event = {
            "type": "error",
            "code": err.code,
            "message": err.message,
            "param": err.param,
            "sequence_number": sequence_number,
            **body,
        }
        return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"
    return b"data: " + orjson.dumps(body) + b"\n\n"


def _error_object(err: GatewayError, dialect: Dialect, request_id: str) -> dict[str, Any]:
    receipt = {} if err.receipt is None else {"receipt": err.receipt}
    if dialect is Dialect.ANTHROPIC:
        details = {"error_code": err.code, **receipt}
        error = {"type": err.anthropic_type, "message": err.message, "details": details}
        return {"type": "error", "error": error, "request_id": request_id}
    return {
        "error": {"message": err.message, "type": err.type, "param": err.param, "code": err.code, **receipt}
    }
