"""The callers, under locust: one user whose task makes every call at its time, and a greenlet for each
stream.

Locust's own users wait for their answers before they ask again; these do not. Every stream is reported to
locust's statistics, too.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import gevent
import gevent.pool
import orjson
from geventhttpclient import HTTPClient

from loadtest.outcome import Ending, Outcome
from loadtest.stream_reading import StreamReading
from loadtest.workload import Call, Mix, arrival_times, calls

if TYPE_CHECKING:
    from locust import User

_CONNECT_S = 10.0
_SILENCE_S_MAX = 300.0


@dataclass(slots=True, kw_only=True)
class Plan:
    """What is to be done, and what came of it."""

    base_url: str
    api_key: str
    mix: Mix
    rate_per_s: float
    duration_s: float
    streams_max: int
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    not_sent: int = 0


def make_user(plan: Plan, finished: Callable[[], None]) -> "type[User]":
    """The user class of one plan; `finished` is called when the last stream has ended."""

    # Here, not above: importing locust replaces the standard library's blocking calls, and opens a socket to
    # try IPv6.
    from locust import User, task

    class Caller(User):
        """All callers together."""

        @task
        def call(self) -> None:
            streams = gevent.pool.Pool()
            began = time.monotonic()
            arrivals = arrival_times(plan.rate_per_s, plan.duration_s, plan.seed)
            for at, call in zip(arrivals, calls(plan.mix, plan.seed), strict=False):
                gevent.sleep(max(0.0, began + at - time.monotonic()))
                if len(streams) >= plan.streams_max:
                    plan.not_sent += 1
                else:
                    streams.spawn(self._stream, call, began + at)
            streams.join()
            finished()
            gevent.sleep(_SILENCE_S_MAX)  # until locust stops this user

        def _stream(self, call: Call, due: float) -> None:
            outcome = stream(plan.base_url, plan.api_key, call, due)
            plan.outcomes.append(outcome)
            bad = outcome.ending not in (Ending.COMPLETE, Ending.LEFT)
            self.environment.events.request.fire(
                request_type=call.route, name=call.kind, response_time=1000 * outcome.took_s,
                response_length=outcome.text_events,
                exception=RuntimeError(f"{outcome.ending}: {outcome.code}") if bad else None, context={},
            )  # fmt: skip

    return Caller


def stream(base_url: str, api_key: str, call: Call, due: float) -> Outcome:
    """Make one call on a connection of its own and read it to its end, or until the caller leaves."""
    url = urlsplit(base_url)
    client = HTTPClient(
        url.hostname or "",
        url.port,
        ssl=url.scheme == "https",
        connection_timeout=_CONNECT_S,
        network_timeout=_SILENCE_S_MAX,
    )
    reading = StreamReading()
    times: list[float] = []
    request_id: str | None = None
    code: str | None = None
    try:
        headers = {"content-type": "application/json", "authorization": f"Bearer {api_key}"}
        answer = client.request(
            "POST", url.path.removesuffix("/v1") + call.path, orjson.dumps(call.body), headers
        )
        request_id = str(answer.get("x-request-id") or "") or None
        if answer.get_code() != 200:
            ending, code = Ending.REFUSED, f"{answer.get_code()} {_error_code(answer.read())}"
        else:
            ending, code = _read(answer.readline, call, reading, times, due)
    except (OSError, RuntimeError, ValueError) as exc:
        ending, code = Ending.BROKEN, type(exc).__name__
    finally:
        client.close()
    first, last = (times[0], times[-1]) if times else (None, None)
    return Outcome(
        call=call,
        ending=ending,
        request_id=request_id,
        code=code,
        first_text_s=first,
        last_text_s=last,
        took_s=time.monotonic() - due,
        text_events=reading.text_events,
        usage=reading.usage,
    )


def _read(
    readline: Callable[[bytes], bytes], call: Call, reading: StreamReading, times: list[float], due: float
) -> tuple[Ending, str | None]:
    """Read until the end. Raises what the transport raises."""
    while True:
        if call.leave_after_events is not None and reading.text_events >= call.leave_after_events:
            return Ending.LEFT, None
        line = readline(b"\n")
        if not line:
            break
        if reading.feed(bytes(line)):
            now = time.monotonic() - due
            if not times:
                times.append(now)
            times[1:] = [now]
    if reading.error is not None:
        return Ending.ERROR, reading.error
    return (Ending.COMPLETE, None) if reading.ended else (Ending.BROKEN, "no end")


def _error_code(body: bytes) -> str:
    """The code of an error in either dialect."""
    try:
        error = orjson.loads(body)["error"]
        return str(error.get("code") or error.get("type"))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return "without a code"
