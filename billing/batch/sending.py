"""Sends one line to a gateway and says what came of it. It owns the request; it knows no SQL."""

import time
from dataclasses import dataclass
from typing import Any, Final

import httpx
import orjson

from billing.batch.answers import Answered, failures_of, result_line, retry_in_s, usage_of
from billing.batch.line_rows import GivenBack, Result
from billing.batch.objects import Objects, input_object
from billing.batch.validation import read_line
from billing.wire.batch_line import LINES_PATH, LineTicket
from billing.wire.certificates import checked_by
from billing.wire.routes import ROUTE_FACTS, Route

# From sending to the gateway's check of it; beyond it a copy of the ticket is worth nothing.
_TICKET_MS: Final = 120_000
# Longer than a gateway lets a request wait and run.
_ANSWER_S: Final = 700.0
_CONNECT_S: Final = 2.0
# A gateway that is being restarted is back soon.
_AWAY_S: Final = 1.0
_AWAY_MAX_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A claimed line: of which batch and key, and where it is."""

    batch_id: str
    key_hash: str
    route: Route
    input_file: str
    line: int
    start: int
    length: int
    attempt: int
    failures: int


class Sender:
    """Sends lines for one process."""

    def __init__(self, objects: Objects, gateway_urls: str, service_key: str, concurrency: int) -> None:
        self._objects = objects
        self._service_key = service_key
        self._gateways = [url.strip().rstrip("/") for url in gateway_urls.split(",")]
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            trust_env=False,
            verify=checked_by(*self._gateways),
        )

    async def send(self, line: Line) -> Result | GivenBack:
        """One attempt. It raises nothing but for the store of objects."""
        facts = ROUTE_FACTS[line.route]
        text = await self._objects.read_range(input_object(line.input_file), line.start, line.length)
        custom_id, body = read_line(text, facts)
        ticket = LineTicket(
            key_hash=line.key_hash,
            batch=line.batch_id,
            line=line.line,
            attempt=line.attempt,
            until_ms=time.time_ns() // 1_000_000 + _TICKET_MS,
        )
        headers = {"authorization": f"Bearer {ticket.signed(self._service_key)}"}
        headers["content-type"] = "application/json"
        content = orjson.dumps(body | {"service_tier": "flex"})
        # The next attempt goes to the next one.
        gateway = self._gateways[(line.line + line.attempt) % len(self._gateways)]
        try:
            answer = await self._http.post(
                gateway + LINES_PATH + facts.path, content=content, headers=headers
            )
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return self._again(line, _away_s(line), lost=False)
        except httpx.HTTPError:
            return self._again(line, _away_s(line), lost=True)
        answered = Answered(answer.status_code, answer.headers, _json(answer))
        if answered.body is None:
            return self._again(line, _away_s(line), lost=True)
        wait_s = retry_in_s(answered, line.attempt, line.failures)
        if wait_s is not None:
            return self._again(line, wait_s, lost=False, failures=failures_of(answered))
        succeeded = answered.status == 200
        return Result(
            line=line.line,
            attempt=line.attempt,
            request_id=ticket.request_id,
            kind="output" if succeeded else "error",
            text=result_line(facts.dialect, custom_id, ticket.request_id, answered),
            usage=usage_of(answered.body if succeeded else None),
        )

    async def close(self) -> None:
        await self._http.aclose()

    def _again(self, line: Line, wait_s: float, *, lost: bool, failures: int = 0) -> GivenBack:
        # A jitter, so that lines that were refused together do not return together.
        jitter = 1 + (hash((line.batch_id, line.line, line.attempt)) % 256) / 1024
        return GivenBack(
            line=line.line,
            attempt=line.attempt,
            lost=lost,
            wait_ms=int(wait_s * 1000 * jitter),
            failures=line.failures + failures,
        )


def _away_s(line: Line) -> float:
    wait_s: float = _AWAY_S * 2 ** min(10, max(0, line.attempt - 2))
    return min(_AWAY_MAX_S, wait_s)


def _json(answer: httpx.Response) -> Any:
    try:
        return orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return None
