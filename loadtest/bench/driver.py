"""The load of one measurement, closed-loop over raw connections: `python -m loadtest.bench.driver PORT MODEL
stream|plain CONNECTIONS REQUESTS`.

The keys come on stdin, one a line; requests take them in turn. Counts every token that arrives; prints one
JSON object. It runs as a process of its own, so that its CPU time is on nobody's account.
"""

import asyncio
import sys
import time
from dataclasses import dataclass, field
from typing import cast

import httptools
import orjson
import uvloop

from loadtest.bench.shapes import TOKENS
from loadtest.quantiles import quantile_ms

_PROMPT = "Say something short about the sea, the wind and the light on the water. " * 4
_TOKEN_MARK = b'"content":" tok'


@dataclass(slots=True)
class Seen:
    """What one run saw; times in seconds. `problems`: what went wrong, and how often."""

    latencies: list[float] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    problems: dict[str, int] = field(default_factory=dict)

    def problem(self, what: str) -> None:
        self.problems[what] = self.problems.get(what, 0) + 1


class DriverConnection(asyncio.Protocol):
    """One keep-alive connection; `ask` sends the request and returns when the answer is complete."""

    def __init__(self, seen: Seen, *, stream: bool) -> None:
        self._seen = seen
        self._stream = stream
        self._answered: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def ask(self, request: bytes) -> None:
        """One request. Raises ConnectionError when the connection breaks."""
        self._answered = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []
        self._began = time.perf_counter()
        self._last = 0.0
        self._transport.write(request)
        await self._answered

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionResetError("closed in the middle of an answer"))

    def on_body(self, body: bytes) -> None:
        now = time.perf_counter()
        if not self._last:
            self._seen.first_bytes.append(now - self._began)
        elif self._stream:
            self._seen.gaps.append(now - self._last)
        self._last = now
        self._parts.append(body)

    def on_message_complete(self) -> None:
        seen = self._seen
        seen.latencies.append(time.perf_counter() - self._began)
        status = self._parser.get_status_code()
        body = b"".join(self._parts)
        if status != 200:
            seen.problem(f"HTTP {status}: {body[:200].decode(errors='replace')}")
        elif self._stream:
            tokens = body.count(_TOKEN_MARK)
            seen.tokens += tokens
            if tokens != TOKENS or b"data: [DONE]" not in body:
                seen.problem(f"{tokens} tokens of {TOKENS}")
        assert self._answered is not None
        self._answered.set_result(None)


def request_bytes(port: int, model: str, *, stream: bool) -> tuple[bytes, bytes]:
    """The same request every time: what comes before the key, and what comes after it."""
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": _PROMPT}],
        "max_tokens": TOKENS,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    content = orjson.dumps(body)
    before = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        "authorization: Bearer "
    )
    return before.encode(), f"\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content


async def drive(
    port: int, model: str, keys: list[bytes], *, stream: bool, connections: int, requests: int
) -> dict[str, object]:
    """Run the load and sum up."""
    seen = Seen()
    before, after = request_bytes(port, model, stream=stream)
    left = requests
    loop = asyncio.get_running_loop()

    async def caller() -> None:
        nonlocal left
        connection: DriverConnection | None = None
        while left > 0:
            left -= 1
            try:
                if connection is None:
                    _, connection = await loop.create_connection(
                        lambda: DriverConnection(seen, stream=stream), "127.0.0.1", port
                    )
                await connection.ask(before + keys[left % len(keys)] + after)
            except OSError as exc:
                seen.problem(repr(exc))
                connection = None

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(connections)))
    took = time.perf_counter() - began
    return {
        "requests_per_s": round(requests / took, 1), "tokens_per_s": round(seen.tokens / took),
        "seconds": round(took, 2), "p50_ms": quantile_ms(seen.latencies, 0.5),
        "p99_ms": quantile_ms(seen.latencies, 0.99), "ttft_ms_p50": quantile_ms(seen.first_bytes, 0.5),
        "ttft_ms_p99": quantile_ms(seen.first_bytes, 0.99), "gap_ms_p99": quantile_ms(seen.gaps, 0.99),
        "problems": seen.problems,
    }  # fmt: skip


def main() -> None:
    """The command line."""
    port, model, kind, connections, requests = sys.argv[1:6]
    keys = sys.stdin.buffer.read().split()
    result = uvloop.run(
        drive(
            int(port),
            model,
            keys,
            stream=kind == "stream",
            connections=int(connections),
            requests=int(requests),
        )
    )
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
