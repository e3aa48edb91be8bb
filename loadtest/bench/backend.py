"""A bare OpenAI-style server that costs next to nothing: `python -m loadtest.bench.backend PORT…`.

It answers from prepared bytes, keeps no state, and knows no tenant. Every port serves every model.
"""

import asyncio
import sys
from typing import cast

import httptools
import orjson
import uvloop

from loadtest.bench.shapes import MODELS, PLAIN_TOKENS, PROMPT_TOKENS, Shape, shape_of

_COMMON = b'"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m"'
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_LIST = {
    "object": "list",
    "data": [
        {"id": name, "object": "model", "created": 1, "owned_by": "bench", "max_model_len": 4096}
        for name in MODELS
    ],
}


def _framed(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def _usage(output: int) -> bytes:
    return b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % (
        PROMPT_TOKENS,
        PROMPT_TOKENS + output,
        output,
    )


def _token(number: int, *, with_usage: bool) -> bytes:
    usage = b"," + _usage(number + 1) if with_usage else b""
    delta = b'"choices":[{"index":0,"delta":{"content":" tok%d"},"logprobs":null,"finish_reason":null}]' % (
        number % 64
    )
    return _framed(b"data: {%b,%b%b}\n\n" % (_COMMON, delta, usage))


def _whole(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


_ROLE = _framed(
    b'data: {%b,"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
    b'"finish_reason":null}]}\n\n' % _COMMON
)
_STOP = _framed(
    b'data: {%b,"choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    % _COMMON
)
_TOKENS = {
    with_usage: [_token(number, with_usage=with_usage) for number in range(256)]
    for with_usage in (False, True)
}
_PLAIN = _whole(
    b"200 OK",
    orjson.dumps({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "tok " * PLAIN_TOKENS},
        "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS + PLAIN_TOKENS,
        "completion_tokens": PLAIN_TOKENS},
    }),
)  # fmt: skip
_MODELS = _whole(b"200 OK", orjson.dumps(_LIST))
_HEALTH = _whole(b"200 OK", b"{}")
_NOT_FOUND = _whole(b"404 Not Found", b'{"detail":"Not Found"}')


class BackendConnection(asyncio.Protocol):
    """One request at a time; streams are written by a task of their own, or at once."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        url, body = self._url, b"".join(self._body)
        self._url, self._body = b"", []
        if url.startswith(b"/v1/chat/completions"):
            self._complete(body)
        else:
            answers = {b"/v1/models": _MODELS, b"/health": _HEALTH}
            self._transport.write(answers.get(url, _NOT_FOUND))

    def _complete(self, body: bytes) -> None:
        if b'"stream":true' not in body and b'"stream": true' not in body:
            self._transport.write(_PLAIN)
            return
        shape = shape_of(body)
        self._transport.write(_STREAM_HEAD + _ROLE)
        if shape.gap_s:
            # The task is kept by its own timers; nothing waits for it.
            self._pacing = asyncio.get_running_loop().create_task(self._pace(shape))
            return
        chunks = _TOKENS[shape.usage_on_chunks]
        for number in range(shape.tokens):
            self._transport.write(chunks[number % len(chunks)])
        self._end(shape)

    async def _pace(self, shape: Shape) -> None:
        chunks = _TOKENS[shape.usage_on_chunks]
        for number in range(shape.tokens):
            await asyncio.sleep(shape.gap_s)
            if self._transport.is_closing():
                return
            self._transport.write(chunks[number % len(chunks)])
        self._end(shape)

    def _end(self, shape: Shape) -> None:
        usage = _framed(b'data: {%b,"choices":[],%b}\n\n' % (_COMMON, _usage(shape.tokens)))
        self._transport.write(_STOP + usage + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def serve(ports: list[int]) -> None:
    """Listen until killed."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(BackendConnection, "127.0.0.1", port, backlog=4096) for port in ports]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    uvloop.run(serve([int(port) for port in sys.argv[1:]]))
