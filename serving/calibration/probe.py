"""A client of the one engine that is measured, with its own key: streams with their usage, load and counters,
version, aborts by id.

It owns the requests and their answers, and adds up their cost. It does not decide what is asked or how many
at once.
"""

import asyncio
import itertools
import secrets
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

import aiohttp
import httpx
import orjson

from billing.wire.certificates import checked_by
from serving.calibration.mixes import Ask
from serving.engine_metrics import EngineReading, parse_metrics

_CONNECT_S: Final = 5.0
# A prompt may wait behind all others of a step on a slow machine.
_SILENCE_S: Final = 120.0
_STOP_AGAIN_S: Final = 0.5


class ProbeFailed(Exception):
    """The engine did not answer as a measurement needs. The text says to what and why."""


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where the engine is, the key that it requires, and its name for the model."""

    url: str
    key: str | None = field(repr=False)
    engine_model: str
    abort: bool


@dataclass(slots=True)
class Stream:
    """One answered request. `marks`: output tokens so far, by time. `cached` None: the engine does not report
    it.
    """

    sent_at: float
    prompt: int = 0
    cached: int | None = None
    marks: list[tuple[float, int]] = field(default_factory=list)

    @property
    def output(self) -> int:
        """Tokens written so far."""
        return self.marks[-1][1] if self.marks else 0


@dataclass(slots=True)
class Spent:
    """The cost of all requests, as the engine's counters count: a prompt counts once a token of its answer
    has come.
    """

    prompt: int = 0
    cached: int = 0
    output: int = 0


class Probe:
    """A client of one engine. Proxies of the environment are not used."""

    def __init__(self, engine: EngineAddress) -> None:
        self._engine = engine
        headers = {"accept-encoding": "identity"}
        if engine.key:
            headers["authorization"] = f"Bearer {engine.key}"
        self._http = httpx.AsyncClient(
            base_url=engine.url,
            headers=headers,
            timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
            verify=checked_by(engine.url),
        )
        # httpx would take three to five times as long for a piece of a stream, and what this client cannot
        # read, the engine is not found able to do.
        self._streams = aiohttp.ClientSession(
            base_url=engine.url,
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, ssl=checked_by(engine.url)),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S),
        )
        self._run = secrets.token_hex(6)
        self._numbers = itertools.count()
        self._live: set[str] = set()
        self._ended = asyncio.Event()
        self.spent = Spent()

    async def __aenter__(self) -> "Probe":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._streams.close()
        await self._http.aclose()

    @property
    def run(self) -> str:
        """Names this run, in request ids and cache salts."""
        return self._run

    async def reading(self) -> EngineReading:
        """Load and counters now. Raises ProbeFailed."""
        response = await self._get("/metrics")
        try:
            return parse_metrics(response.text)
        except ValueError as exc:
            raise ProbeFailed(f"{exc}; only an engine with vLLM's metrics can be measured.") from exc

    async def version(self) -> str:
        """As the engine says it. Raises ProbeFailed."""
        try:
            return str((await self._get("/version")).json()["version"])
        except (ValueError, KeyError, TypeError) as exc:
            raise ProbeFailed("/version does not name a version.") from exc

    async def stream(self, ask: Ask, seen: Stream, first: asyncio.Event) -> None:
        """Ask, and follow the answer to its end; `first` is set with each request's first token. Raises
        ProbeFailed.
        """
        request_id = f"calibration-{self._run}-{next(self._numbers)}"
        body = {
            "model": self._engine.engine_model, "prompt": ask.prompt, "max_tokens": ask.output,
            "ignore_eos": True, "cache_salt": ask.cache_salt, "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }  # fmt: skip
        self._live.add(request_id)
        try:
            async with self._streams.post(
                "/v1/completions", data=orjson.dumps(body),
                headers={"content-type": "application/json", "x-request-id": request_id},
            ) as response:  # fmt: skip
                if response.status != 200:
                    raise ProbeFailed(_refusal(response.status, await response.read()))
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line.startswith(b"data: {"):
                            _read_event(orjson.loads(line[6:]), seen, first)
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as exc:
            raise ProbeFailed(f"/v1/completions: {exc or type(exc).__name__}") from exc
        finally:
            self._live.discard(request_id)
            if not self._live:
                self._ended.set()
            if seen.output:
                self.spent.prompt += seen.prompt
                self.spent.cached += seen.cached or 0
                self.spent.output += seen.output

    async def stop_all(self) -> None:
        """Wait until every stream has ended: by id if the engine can abort by id, so that each still reports
        its exact usage; else by waiting.
        """
        while self._live:
            # Before they are told: they may all have ended by the time that the engine answers.
            self._ended.clear()
            if self._engine.abort:
                # Again, for one that the engine had not heard of yet.
                ids = [f"cmpl-{request_id}-0" for request_id in self._live]
                try:
                    await self._http.post("/inference/v1/abort_requests", json={"request_ids": ids})
                except httpx.HTTPError as exc:
                    raise ProbeFailed(f"/inference/v1/abort_requests: {exc or type(exc).__name__}") from exc
            try:
                async with asyncio.timeout(_STOP_AGAIN_S):
                    await self._ended.wait()
            except TimeoutError:
                continue

    async def _get(self, path: str) -> httpx.Response:
        try:
            response = await self._http.get(path, timeout=_CONNECT_S)
        except httpx.HTTPError as exc:
            raise ProbeFailed(
                f"{self._engine.url}{path} does not answer: {exc or type(exc).__name__}"
            ) from exc
        if response.status_code != 200:
            raise ProbeFailed(f"{self._engine.url}{path} answers HTTP {response.status_code}.")
        return response


def _read_event(event: dict[str, Any], seen: Stream, first: asyncio.Event) -> None:
    if "error" in event:
        raise ProbeFailed("the engine ended a stream with an error.")
    usage = event.get("usage")
    if not usage:
        return
    seen.prompt = int(usage["prompt_tokens"])
    details = usage.get("prompt_tokens_details")
    if details is not None:
        seen.cached = int(details.get("cached_tokens") or 0)
    output = int(usage["completion_tokens"])
    if output > seen.output:
        if not seen.marks:
            first.set()
        seen.marks.append((time.monotonic(), output))


def _refusal(status: int, content: bytes) -> str:
    if status in (401, 403):
        return "the engine refuses the key; name the right one with --engine-key or TAAS_ENGINE_KEY."
    return f"/v1/completions answers HTTP {status}: {content[:300].decode(errors='replace')}"
