"""Reads the counters and the load of an engine over HTTP. It owns the limits of the page; it knows no table
and no Redis.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import httpx

from billing.wire import vllm_metrics
from billing.wire.instance_entry import EngineLoad
from billing.wire.tokens import CounterPair

# vLLM's page is about 100 kB; one of this size is not a metrics page.
_BYTES_MAX: Final = 4 * 1024 * 1024
# The client's time-out is for each part of an answer. An answer that trickles in would otherwise hold up the
# reading of all engines.
_WHOLE_WITHIN_S: Final = 5.0
# The statuses of a proxy whose engine is not there: the engine itself has not answered.
_NOT_THE_ENGINE: Final = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """What each request has produced, at the same moment as the counters. `sequence`: the number of the last
    request that ended. `finished`: requests that ended after the sequence asked for. Tokens are counted as in
    the counters: `n` samples count the prompt n times.
    """

    sequence: int
    running: Mapping[str, CounterPair]
    finished: Mapping[str, CounterPair]


@dataclass(frozen=True, slots=True)
class Counters:
    """An engine's counters and gauges now. `started` changes with its process, if it reports that;
    `requests`: if it counts them.
    """

    tokens: CounterPair
    load: EngineLoad
    started: str | None
    requests: RequestCounts | None = None

    @property
    def busy(self) -> bool:
        """It runs or queues requests, so its counters may move."""
        return self.load.running != 0 or self.load.waiting != 0


@dataclass(frozen=True, slots=True)
class NoCounters:
    """It answers without counters: another provider's API, or an engine that does not count. `page`: it has a
    metrics page nevertheless.
    """

    page: bool = False


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No readable answer. `answers`: there was some answer. `refused`: nobody listens there."""

    reason: str
    answers: bool = False
    refused: bool = False


Reading: TypeAlias = Counters | NoCounters | Unreachable


def read_engine(
    client: httpx.Client, url: str, key: str | None, *, within_s: float = _WHOLE_WITHIN_S
) -> Reading:
    """One `GET /metrics`, of bounded size and length; the client brings the time-out of each part."""
    if key is not None and not key.isascii():
        return Unreachable("its key cannot be sent: it has letters beyond ASCII")
    until = time.monotonic() + within_s
    headers = {"authorization": f"Bearer {key}"} if key else {}
    page = bytearray()
    try:
        with client.stream(
            "GET", f"{url.rstrip('/').removesuffix('/v1')}/metrics", headers=headers
        ) as response:
            if response.status_code in {404, 405, 501}:
                return NoCounters()
            if response.status_code != 200:
                return Unreachable(
                    f"HTTP {response.status_code}", answers=response.status_code not in _NOT_THE_ENGINE
                )
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
    try:
        said = vllm_metrics.read_page(page)
    except ValueError as exc:
        return Unreachable(str(exc), answers=True)
    if said.counters is None:
        return NoCounters(page=True)
    return Counters(said.counters, said.load, said.started)


def _refused(exc: BaseException) -> bool:
    """Whether the machine said that nobody listens on that port: below, it is the cause of what the client
    raises.
    """
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
