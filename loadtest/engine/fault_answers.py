"""Answers that no healthy engine gives: error statuses that leak, and bytes that are not what they should
be.
"""

import gzip

from loadtest.engine.connection import Exchange

# Named so that a test can search a tenant's answer for it.
LEAK = "gpu-node-17.cluster.internal:8100"
LEAK_PATH = "/srv/vllm/engine/core_client.py"
_LONG_LINE_BYTES = 10 * 1024 * 1024
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; "
    b"charset=utf-8\r\ntransfer-encoding: chunked\r\n"
)
_CHUNK = (
    b'data: {"id":"chatcmpl-x","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" tok"}'
)


def refuse_with(exchange: Exchange, status: int, retry_after: str | None = None) -> None:
    """An error in vLLM's form that names a host and a path."""
    if retry_after is not None:
        exchange.more_head += b"retry-after: %b\r\n" % retry_after.encode()
    kinds = {
        400: "BadRequestError",
        404: "NotFoundError",
        422: "UnprocessableEntityError",
        429: "RateLimitError",
        503: "ServiceUnavailableError",
    }
    message = (
        f"EngineCore encountered an issue on {LEAK}: see {LEAK_PATH} line 411 (Authorization: Bearer "
        "of worker 3)"
    )
    kind = kinds.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    exchange.json(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})


def refuse_late(exchange: Exchange, route: str) -> None:
    """What vLLM says after it has made a tool call whose arguments are no object."""
    message = (
        "1 validation error for AnthropicContentBlock\ninput\n  Input should be a valid dictionary "
        "[type=dict_type, input_value='sabd', input_type=str]"
    )
    error = {"type": "BadRequestError", "message": message}
    if route == "messages":
        exchange.json(400, {"type": "error", "error": error})
    else:
        exchange.json(400, {"error": error | {"param": None, "code": 400}})


def send_garbage(exchange: Exchange, kind: str) -> None:
    """A 200 that is not an answer."""
    if kind == "html":
        exchange.respond(200, f"<html><body><h1>It works!</h1>{LEAK}</body></html>".encode(), b"text/html")
    elif kind == "gzip":
        exchange.raw(_STREAM_HEAD + b"content-encoding: gzip\r\n\r\n")
        exchange.chunk(gzip.compress(_CHUNK + b"}]}\n\ndata: [DONE]\n\n"))
        exchange.end_stream()
    elif kind == "bad_chunk":
        exchange.raw(_STREAM_HEAD + b"\r\nzz\r\nthis is no chunk size\r\n")
        exchange.cut(reset=False)
    else:
        exchange.start_stream()
        bodies = {
            "not_sse": b"the quick brown fox\n\x00\x01 jumps\n\n",
            "long_line": _CHUNK + b"x" * _LONG_LINE_BYTES,
            "truncated_json": _CHUNK + b"\n\ndata: [DONE]\n\n",
            "binary": bytes(range(256)) * 16,
        }
        exchange.chunk(bodies[kind])
        exchange.end_stream()
