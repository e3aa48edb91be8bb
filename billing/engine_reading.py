"""Ask an engine for its counters over HTTP. Owns the exposition text and its limits; knows no table and no Redis."""

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final, TypeAlias

import httpx

from billing.engine_instances import CounterPair

# vLLM's page is about 100 kB; one of this size is not a metrics page.
_BYTES_MAX: Final = 4 * 1024 * 1024
_PROMPT: Final = "vllm:prompt_tokens_total"
_GENERATION: Final = "vllm:generation_tokens_total"
_RUNNING: Final = "vllm:num_requests_running"
_WAITING: Final = "vllm:num_requests_waiting"
_STARTED: Final = "process_start_time_seconds"


@dataclass(frozen=True, slots=True)
class Counters:
    """What an engine's counters say now. `busy`: it runs or queues requests. `started` changes with its process, where it tells."""

    tokens: CounterPair
    busy: bool
    started: str | None


@dataclass(frozen=True, slots=True)
class NoCounters:
    """It answers and has none: another provider's API, or an engine that does not count."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No answer that could be read."""

    reason: str


Reading: TypeAlias = Counters | NoCounters | Unreachable


def read_engine(client: httpx.Client, url: str, key: str | None) -> Reading:
    """One `GET /metrics`, of bounded size; the client brings the time-out."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    page = bytearray()
    try:
        with client.stream("GET", f"{url.rstrip('/').removesuffix('/v1')}/metrics", headers=headers) as response:
            if response.status_code in {404, 405, 501}:
                return NoCounters()
            if response.status_code != 200:
                return Unreachable(f"HTTP {response.status_code}")
            for part in response.iter_bytes():
                page += part
                if len(page) > _BYTES_MAX:
                    return Unreachable(f"a page of more than {_BYTES_MAX} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        return Unreachable(f"{type(exc).__name__}: {exc}")
    return parse_counters(page.decode(errors="replace"))


def parse_counters(page: str) -> Reading:
    """Read the counters off a Prometheus page, summed over their label sets (one for each data-parallel engine)."""
    sums: dict[str, Decimal] = {}
    started: str | None = None
    for line in page.splitlines():
        name = line[: min(i for i in (line.find("{"), line.find(" "), len(line)) if i >= 0)]
        if name not in {_PROMPT, _GENERATION, _RUNNING, _WAITING, _STARTED}:
            continue
        value = line[line.rfind("}") + 1 :].split() if "{" in line else line.split()[1:]
        if not value:
            return Unreachable(f"{name} without a value")
        if name == _STARTED:
            started = value[0]
            continue
        try:
            sums[name] = sums.get(name, Decimal(0)) + Decimal(value[0])
        except InvalidOperation:
            return Unreachable(f"{name} is {value[0][:40]!r}")
    if _PROMPT not in sums or _GENERATION not in sums:
        return NoCounters()
    prompt, generation = sums[_PROMPT], sums[_GENERATION]
    for name, total in ((_PROMPT, prompt), (_GENERATION, generation)):
        if not total.is_finite() or total < 0 or total != int(total):
            return Unreachable(f"{name} is {total}")
    busy = any(sums.get(name, 0) != 0 for name in (_RUNNING, _WAITING))
    return Counters(CounterPair(int(prompt), int(generation)), busy, started)
