"""Ask an engine for its counters and its load over HTTP. Owns the exposition text and its limits; knows no table and no Redis."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final, TypeAlias

import httpx

from billing.wire.tokens import CounterPair

# vLLM's page is about 100 kB; one of this size is not a metrics page.
_BYTES_MAX: Final = 4 * 1024 * 1024
# The client's time-out is between two parts of an answer: one that drips would otherwise hold up whoever waits for all engines.
_WHOLE_WITHIN_S: Final = 5.0
# What the ledger's columns hold; no engine counts so far.
_COUNT_MAX: Final = 2**63 - 1
_PROMPT: Final = "vllm:prompt_tokens_total"
_GENERATION: Final = "vllm:generation_tokens_total"
_RUNNING: Final = "vllm:num_requests_running"
_WAITING: Final = "vllm:num_requests_waiting"
_KV_USAGE: Final = "vllm:kv_cache_usage_perc"
_STARTED: Final = "process_start_time_seconds"
_WANTED: Final = frozenset({_PROMPT, _GENERATION, _RUNNING, _WAITING, _KV_USAGE, _STARTED})
# What a proxy says of an engine that is not there: the engine itself has not answered.
_NOT_THE_ENGINE: Final = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that run and that wait, and the part of the KV cache in use, of the fullest of several engines behind one server."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """What each request has produced, in the same moment as the counters. `sequence` numbers the last request that ended; `finished` are
    those that ended after the sequence asked for. Tokens are as the counters moved: `n` samples count the prompt n times.
    """

    sequence: int
    running: Mapping[str, CounterPair]
    finished: Mapping[str, CounterPair]


@dataclass(frozen=True, slots=True)
class Counters:
    """What an engine's counters and gauges say now. `started` changes with its process, where it tells; `requests` where it counts them."""

    tokens: CounterPair
    load: Load
    started: str | None
    requests: RequestCounts | None = None

    @property
    def busy(self) -> bool:
        """It runs or queues requests, so its counters may move."""
        return self.load.running != 0 or self.load.waiting != 0


@dataclass(frozen=True, slots=True)
class NoCounters:
    """It answers and has none: another provider's API, or an engine that does not count. `page`: it has metrics all the same."""

    page: bool = False


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No answer that could be read. `answers`: something was said all the same. `refused`: nobody listens there."""

    reason: str
    answers: bool = False
    refused: bool = False


Reading: TypeAlias = Counters | NoCounters | Unreachable


def read_engine(client: httpx.Client, url: str, key: str | None, *, within_s: float = _WHOLE_WITHIN_S) -> Reading:
    """One `GET /metrics`, of bounded size and length; the client brings the time-out of each part."""
    if key is not None and not key.isascii():
        return Unreachable("its key cannot be sent: it has letters beyond ASCII")
    until = time.monotonic() + within_s
    headers = {"authorization": f"Bearer {key}"} if key else {}
    page = bytearray()
    try:
        with client.stream("GET", f"{url.rstrip('/').removesuffix('/v1')}/metrics", headers=headers) as response:
            if response.status_code in {404, 405, 501}:
                return NoCounters()
            if response.status_code != 200:
                return Unreachable(f"HTTP {response.status_code}", answers=response.status_code not in _NOT_THE_ENGINE)
            for part in response.iter_bytes():
                page += part
                if len(page) > _BYTES_MAX:
                    return Unreachable(f"a page of more than {_BYTES_MAX} bytes", answers=True)
                if time.monotonic() > until:
                    return Unreachable(f"no whole page within {within_s} s")
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        return Unreachable(f"{type(exc).__name__}: {exc}", refused=_refused(exc))
    return parse_counters(page.decode(errors="replace"))


def parse_counters(page: str) -> Reading:
    """Read them off a Prometheus page, summed over their label sets (one for each data-parallel engine)."""
    found: dict[str, list[Decimal]] = {}
    started: str | None = None
    for line in page.splitlines():
        if not line.startswith(("vllm:", _STARTED)):
            continue
        name = line[: min(i for i in (line.find("{"), line.find(" "), len(line)) if i >= 0)]
        if name not in _WANTED:
            continue
        value = line[line.rfind("}") + 1 :].split() if "{" in line else line.split()[1:]
        if not value:
            return Unreachable(f"{name} without a value", answers=True)
        if name == _STARTED:
            started = value[0]
            continue
        try:
            number = Decimal(value[0])
        except InvalidOperation:
            number = Decimal("NaN")
        if name != _KV_USAGE and not (number.is_finite() and 0 <= number <= _COUNT_MAX):
            return Unreachable(f"{name} is {value[0][:40]!r}", answers=True)
        found.setdefault(name, []).append(number)
    if _PROMPT not in found or _GENERATION not in found:
        return NoCounters(page=True)
    totals = {name: sum(found.get(name, ()), Decimal(0)) for name in (_PROMPT, _GENERATION, _RUNNING, _WAITING)}
    for name, total in totals.items():
        if total > _COUNT_MAX or total != int(total):
            return Unreachable(f"{name} is {total}", answers=True)
    load = Load(int(totals[_RUNNING]), int(totals[_WAITING]), _fullest(found.get(_KV_USAGE, ())))
    return Counters(CounterPair(int(totals[_PROMPT]), int(totals[_GENERATION])), load, started)


def _fullest(values: Sequence[Decimal]) -> float:
    return max((float(value) for value in values if value.is_finite() and value > 0), default=0.0)


def _refused(exc: BaseException) -> bool:
    """Whether the machine said that nobody listens on that port: below, it is the cause of what the client raises."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
