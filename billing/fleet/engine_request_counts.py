"""Reads what an engine has produced for each request, by the id that the gateway gave it. It owns reading
that page and its limits.

The page is a snapshot: the engine's counters and the requests agree. It knows no table and no Redis. The form
is from `serving/vllm_middleware/taas_request_counts.py`.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

import httpx
import orjson

from billing.fleet.engine_instances import AuditedInstance
from billing.fleet.engine_reading import (
    Counters,
    NoCounters,
    Reading,
    RequestCounts,
    Unreachable,
    read_engine,
)
from billing.wire.instance_entry import REQUEST_COUNTS_PATH as PATH
from billing.wire.instance_entry import EngineLoad
from billing.wire.tokens import CounterPair

_VERSION: Final = 1
_BYTES_MAX: Final = 16 * 1024 * 1024
_WHOLE_WITHIN_S: Final = 5.0
_COUNT_MAX: Final = 2**63 - 1


def read_instance(client: httpx.Client, instance: AuditedInstance, *, after: int = 0) -> Reading:
    """Its counters now, with its requests where it counts them: those that ended after sequence `after`,
    and those that run. One without counters is not asked.
    """
    if not instance.has_counters:
        return NoCounters()
    if instance.counts:
        reading = read_request_counts(client, instance.url, instance.key, after=after)
        # Without this page it is another start of the engine, without our middleware.
        if not isinstance(reading, NoCounters):
            return reading
    return read_engine(client, instance.url, instance.key)


def read_request_counts(client: httpx.Client, url: str, key: str | None, *, after: int = 0) -> Reading:
    """One `GET /taas/request_counts`, of bounded size and length; `after` = the sequence of the page
    before.
    """
    if key is not None and not key.isascii():
        return Unreachable("its key cannot be sent: it has letters beyond ASCII")
    until = time.monotonic() + _WHOLE_WITHIN_S
    headers = {"authorization": f"Bearer {key}"} if key else {}
    page = bytearray()
    address = f"{url.rstrip('/').removesuffix('/v1')}{PATH}?after={after}"
    try:
        with client.stream("GET", address, headers=headers) as response:
            if response.status_code in {404, 405, 501}:
                return NoCounters()
            if response.status_code != 200:
                return Unreachable(f"{PATH}: HTTP {response.status_code}", answers=True)
            for part in response.iter_bytes():
                page += part
                if len(page) > _BYTES_MAX or time.monotonic() > until:
                    return Unreachable(f"{PATH}: no whole page within {_WHOLE_WITHIN_S} s", answers=True)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        return Unreachable(f"{PATH}: {type(exc).__name__}: {exc}")
    return parse_request_counts(bytes(page))


def parse_request_counts(page: bytes) -> Reading:
    """Read a page; one that is not of this form is as none."""
    try:
        fields = orjson.loads(page)
        if fields["v"] != _VERSION:
            return NoCounters()
        running = _pairs(fields["running"])
        requests = RequestCounts(_count(fields["sequence"]), running, _pairs(fields["finished"]))
        counted = CounterPair(_count(fields["counted"]["prompt"]), _count(fields["counted"]["generation"]))
        return Counters(counted, EngineLoad(running=len(running)), str(fields["boot"])[:64], requests)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        return Unreachable(f"{PATH}: not a page of counts: {exc!r}"[:200], answers=True)


def _pairs(fields: Mapping[str, Any]) -> dict[str, CounterPair]:
    return {
        str(request_id): CounterPair(_count(prompt), _count(output))
        for request_id, (prompt, _, output) in fields.items()
    }


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _COUNT_MAX:
        raise ValueError(f"not a count: {value!r}")
    return value
