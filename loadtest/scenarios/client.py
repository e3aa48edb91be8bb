"""The callers: every arrival is sent when it is due, streamed, and recorded. Owns the HTTP; judges nothing.

Open loop: nobody waits for anybody, so a slow server gets a longer queue and not a lighter load.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from loadtest.scenarios.arrivals import Arrival, prompt
from loadtest.scenarios.record import Ended, Record

# A piece of text as the simulated engine writes it; the opening chunk has a role before its content.
_TOKEN = b'"delta":{"content":'
# The end of a stream holds its usage; a chunk with usage is well below this.
_TAIL_BYTES = 4096
# Prompts with this number and after are of one load; numbers must not repeat, or the prefix cache would know
# the prompt.
_NUMBERS_PER_LOAD = 1_000_000


@dataclass(frozen=True, slots=True)
class Targets:
    """Where requests go: the gateways' base URLs, and each tenant's key."""

    urls: Sequence[str]
    keys: Mapping[str, str]
    model: str


class Load:
    """One run of a schedule. `records` are in the order of the arrivals and may be read while it runs."""

    def __init__(self, targets: Targets, arrivals: Sequence[Arrival], number: int = 0) -> None:
        self.records = [Record(arrival=arrival) for arrival in arrivals]
        self._targets = targets
        self._first_prompt = number * _NUMBERS_PER_LOAD
        self._began = 0.0

    @property
    def now_s(self) -> float:
        """Seconds since the load's start."""
        return asyncio.get_running_loop().time() - self._began

    async def run(self, patience_s: float) -> list[Record]:
        """Send everything, then wait so long for what is open; what then still runs is left, and recorded
        as `open`.
        """
        self._began = asyncio.get_running_loop().time()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=timeout,
            auto_decompress=False,
        ) as session:
            callers = set()
            for number, record in enumerate(self.records):
                if (early := record.arrival.at_s - self.now_s) > 0:
                    await asyncio.sleep(early)
                callers.add(asyncio.create_task(self._call(session, record, self._first_prompt + number)))
            _, late = await asyncio.wait(callers, timeout=patience_s) if callers else ((), ())
            for caller in late:
                caller.cancel()
            for outcome in await asyncio.gather(*callers, return_exceptions=True):
                # What is cancelled was left; anything else is a mistake of ours, not an answer.
                if isinstance(outcome, Exception):
                    raise outcome
        return self.records

    async def _call(self, session: aiohttp.ClientSession, record: Record, number: int) -> None:
        arrival, targets = record.arrival, self._targets
        headers = {
            "content-type": "application/json",
            "authorization": f"Bearer {targets.keys[arrival.tenant]}",
        }
        record.sent_s = self.now_s
        try:
            async with session.post(
                f"{targets.urls[arrival.gateway]}/chat/completions",
                data=orjson.dumps(body(targets.model, arrival, number)),
                headers=headers,
            ) as answer:
                _read_head(record, answer)
                if answer.status != 200:
                    record.ended, record.code = Ended.REFUSED, _error_code(await answer.read())
                else:
                    await self._read_stream(record, answer)
        except (aiohttp.ClientError, OSError) as exc:
            record.ended, record.code = Ended.BROKEN, type(exc).__name__
        record.end_s = self.now_s

    async def _read_stream(self, record: Record, answer: aiohttp.ClientResponse) -> None:
        tail = b""
        async for piece in answer.content.iter_any():
            if tokens := piece.count(_TOKEN):
                record.see(self.now_s, tokens)
            tail = (tail + piece)[-_TAIL_BYTES:]
        read_end(record, tail)


def body(model: str, arrival: Arrival, number: int) -> dict[str, Any]:
    """A chat request whose answer has exactly the length that the shape says."""
    tokens = arrival.shape.output_tokens
    return {
        "model": model, "messages": [{"role": "user", "content": prompt(arrival.shape.input_tokens, number)}],
        "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True}, "service_tier": arrival.tier,
    }  # fmt: skip


def read_end(record: Record, tail: bytes) -> None:
    """How a stream ended, from its last bytes: with usage and `[DONE]`, with an error object, or in the
    middle.
    """
    done = False
    for line in tail.split(b"\n"):
        if line == b"data: [DONE]":
            done = True
        elif line.startswith(b"data: {") and (b'"usage":{' in line or b'"error":{' in line):
            _read_event(record, line[6:])
    if record.ended is not Ended.CUT:
        record.ended = Ended.COMPLETE if done else Ended.CUT


def _read_event(record: Record, raw: bytes) -> None:
    try:
        event = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return  # the first line of the tail may be half a line
    if error := event.get("error"):
        record.ended, record.code = Ended.CUT, str(error.get("code"))
    if usage := event.get("usage"):
        record.prompt, record.output = usage["prompt_tokens"], usage["completion_tokens"]
        record.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        if record.marks:
            record.marks[-1] = record.marks[-1][0], record.output


def _read_head(record: Record, answer: aiohttp.ClientResponse) -> None:
    record.status = answer.status
    record.request_id = answer.headers.get("x-request-id")
    record.work_class = answer.headers.get("x-taas-class")
    retry = answer.headers.get("retry-after-ms")
    record.retry_after_ms = int(retry) if retry is not None and retry.isdigit() else None


def _error_code(raw: bytes) -> str:
    try:
        return str(orjson.loads(raw)["error"]["code"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "without a code"
