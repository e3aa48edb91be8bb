"""Delivers recorded requests to sinks: POSTs in the order of each chain, from where the sink is. A sink moves
on when its receiver has answered 2xx, so each request is sent at least once, always under the same ids.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import httpx
import orjson
from sqlalchemy import Engine

from billing.exports import sinks
from billing.exports.reading import requests_between
from billing.exports.recorded import Form, RecordedRequest
from billing.exports.shapes import bodies
from billing.exports.sinks import Place, Sink, Why
from billing.metrics import BillingMetrics
from billing.moments import DAY_MS
from billing.outgoing import SUCCESS, Outgoing
from billing.schema.clock import database_now_ms
from billing.wire.webhooks import retry_after_ms, signed_headers

_log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 10.0
# A sink sends for so long before it is another round's turn; those of others are sent beside it.
_TURN_S: Final = 3.0
_SINKS_AT_ONCE: Final = 8
# So many links of a chain make at most 100 events, in one call.
_LINKS: Final = {Form.CLOUDEVENTS: 100, Form.OPENMETER: 100, Form.STRIPE: 25, Form.LAGO: 25}
# Stripe refuses what is older than 35 days; a call may take a while.
_WINDOW_MS: Final = {Form.STRIPE: 35 * DAY_MS - 300_000}
# It knows an identifier again for 24 hours: what it may have taken before, it would count a second time.
_KNOWS_MS: Final = {Form.STRIPE: DAY_MS - 300_000}
_BATCH: Final = "application/cloudevents-batch+json"
_CONTENT: Final = {Form.CLOUDEVENTS: _BATCH, Form.OPENMETER: _BATCH}
_STRIPE_VERSION: Final = "2024-09-30.acacia"
_STRIPE_STREAM: Final = "meter-events.stripe.com"
_STRIPE_API: Final = "api.stripe.com"
# What Lago says of an event that it has; it then takes none of the call.
_LAGO_HAS_IT: Final = {"transaction_id": ["value_already_exist"]}
# Of these, other tenants' requests may still be taken.
_OF_THE_BATCH: Final = frozenset({"status 400", "status 409", "status 413", "status 422"})


class Deliverer:
    """Sends what is due. `verify`: whose certificates it trusts, as httpx takes it."""

    def __init__(
        self,
        engine: Engine,
        metrics: BillingMetrics,
        *,
        verify: Any,
        timeout_s: float = _TIMEOUT_S,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._now_ms = now_ms
        self._outgoing = Outgoing(verify=verify, timeout_s=timeout_s)
        # Of Stripe, by sink: what opens its stream for a while.
        self._tokens: dict[str, str] = {}

    def round(self) -> bool:
        """Give each sink that has something to send its turn. Returns whether more waits that can be sent.
        Raises SQLAlchemyError.
        """
        with self._engine.connect() as connection:
            now_ms = database_now_ms(connection) if self._now_ms is None else self._now_ms()
            due = sinks.due(connection, now_ms)
        if due:
            with ThreadPoolExecutor(min(len(due), _SINKS_AT_ONCE), "sinks") as pool:
                more = list(pool.map(lambda each: self._turn(each[0], each[1], now_ms), due))
        else:
            more = []
        with self._engine.connect() as connection:
            lags = sinks.lags(connection)
        self._metrics.oldest_undelivered.clear()
        for sink_id, lag in lags.items():
            age_ms = 0 if lag.oldest_ms is None else max(0, now_ms - lag.oldest_ms)
            self._metrics.oldest_undelivered.labels(sink_id).set(age_ms / 1000)
        return any(more)

    def close(self) -> None:
        """Close its connections."""
        self._outgoing.close()

    def _turn(self, sink: Sink, places: Sequence[Place], now_ms: int) -> bool:
        ends_s = time.monotonic() + _TURN_S
        for place in places:
            at = place
            while at.position < at.head:
                knows_ms = _KNOWS_MS.get(sink.form)
                if knows_ms is not None and at.unsure is not None and now_ms >= at.unsure[0] + knows_ms:
                    at = self._give_up(sink, at, at.unsure[1], now_ms)
                    continue
                upto = min(at.head, at.position + _LINKS[sink.form])
                failure = self._send(sink, at, upto, now_ms)
                if failure is not None:
                    if failure.why not in _OF_THE_BATCH:
                        return False
                    break
                at = Place(at.chain, upto, at.head, 0)
                if time.monotonic() >= ends_s:
                    return True
        return False

    def _give_up(self, sink: Sink, place: Place, upto: int, now_ms: int) -> Place:
        """Nobody knows whether the receiver has these, and it would no longer know them again."""
        with self._engine.begin() as connection:
            requests = list(requests_between(connection, place.chain, place.position + 1, upto))
            sinks.advance(connection, sink, place, upto, [(each, "unsure") for each in requests], now_ms)
        _log.warning("sink %s may have %d requests, and may not: see `taas sink skipped`",
                     sink.sink_id, len(requests))  # fmt: skip
        return Place(place.chain, upto, place.head, 0)

    def _send(self, sink: Sink, place: Place, upto: int, now_ms: int) -> "_Failure | None":
        """Returns why it was not taken, None if it was."""
        with self._engine.begin() as connection:
            requests = list(requests_between(connection, place.chain, place.position + 1, upto))
            if sink.form in _KNOWS_MS:
                # Whoever dies before the answer is noted leaves this behind.
                sinks.sending(connection, sink, place, upto, now_ms)
        window_ms = _WINDOW_MS.get(sink.form)
        too_old = [each for each in requests if window_ms is not None and each.ended_ms < now_ms - window_ms]
        rest = [each for each in requests if each not in too_old]
        failure = None
        for body in bodies(rest, sink.form, sink.customer, sink.meter):
            failure = self._post(sink, body, now_ms)
            if failure is not None and failure.taken_before:
                _log.info("the receiver of sink %s had %d events of a call before it",
                          sink.sink_id, len(failure.taken_before))  # fmt: skip
                news = [each for at, each in enumerate(body["events"]) if at not in failure.taken_before]
                failure = self._post(sink, {"events": news}, now_ms) if news else None
            if failure is not None:
                break
        with self._engine.begin() as connection:
            if failure is None:
                sinks.advance(connection, sink, place, upto, _skips(too_old, place), now_ms)
                return None
            _log.warning("sink %s did not take requests: %s", sink.sink_id, failure.why)
            next_ms = now_ms + retry_after_ms(place.attempts)
            sinks.failed(connection, sink, place, failure.why, next_ms, now_ms, unsure=failure.unsure)
        return failure

    def _post(self, sink: Sink, body: Any, now_ms: int) -> "_Failure | None":
        content = orjson.dumps(body)
        # The same again only with the same content: a receiver drops what has an id that it knows, and a
        # batch that is sent again may have more in it.
        message_id = f"{sink.sink_id}-{hashlib.sha256(content).hexdigest()[:32]}"
        headers = {
            "content-type": _CONTENT.get(sink.form, "application/json"),
            **signed_headers(sink.secret, message_id, now_ms // 1000, content),
        }
        try:
            if sink.form is Form.STRIPE:
                headers |= {"stripe-version": _STRIPE_VERSION, "authorization": f"Bearer {self._token(sink)}"}
            elif sink.bearer is not None:
                headers["authorization"] = f"Bearer {sink.bearer}"
        except (_Refused, httpx.HTTPError, httpx.InvalidURL) as exc:
            return _Failure(str(exc) if isinstance(exc, _Refused) else type(exc).__name__, unsure=False)
        try:
            answer = self._outgoing.post(sink.url, content, headers, body_of={422})
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            return _Failure(type(exc).__name__, unsure=not isinstance(exc, _NOT_SENT))
        if answer.is_success:
            return None
        # Stripe's session may have ended: the next attempt begins one.
        self._tokens.pop(sink.sink_id, None)
        has = _has(answer.body) if sink.form is Form.LAGO and answer.status == 422 else frozenset()
        return _Failure(f"status {answer.status}", unsure=answer.status >= 500, taken_before=has)

    def _token(self, sink: Sink) -> str:
        """Of a session of Stripe's stream of meter events. Raises _Refused, httpx.HTTPError."""
        if (known := self._tokens.get(sink.sink_id)) is not None:
            return known
        parts = urlsplit(sink.url)
        host = _STRIPE_API if parts.netloc == _STRIPE_STREAM else parts.netloc
        url = urlunsplit((parts.scheme, host, "/v2/billing/meter_event_session", "", ""))
        headers = {"stripe-version": _STRIPE_VERSION, "authorization": f"Bearer {sink.bearer or ''}"}
        headers["content-type"] = "application/json"
        answer = self._outgoing.post(url, b"{}", headers, body_of=SUCCESS)
        if not answer.is_success:
            raise _Refused(f"session: status {answer.status}")
        try:
            token = json.loads(answer.body)["authentication_token"]
        except (ValueError, KeyError, TypeError) as exc:
            raise _Refused("session: no token") from exc
        self._tokens[sink.sink_id] = str(token)
        return str(token)


class _Refused(Exception):
    """No session was given."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why something was not taken; `unsure`: or it was, and that was not said. `taken_before`: which events
    of the call the receiver has from another, where that is all that it has against it.
    """

    why: str
    unsure: bool
    taken_before: frozenset[int] = frozenset()


_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.InvalidURL,
                    httpx.UnsupportedProtocol)  # fmt: skip


def _has(body: bytes) -> frozenset[int]:
    """By a refusal of Lago, which events of the call it has; none if it refuses any for another reason."""
    try:
        errors = {int(at): wrong for at, wrong in json.loads(body)["error_details"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return frozenset()
    return frozenset(errors) if all(wrong == _LAGO_HAS_IT for wrong in errors.values()) else frozenset()


def _skips(too_old: Sequence[RecordedRequest], place: Place) -> list[tuple[RecordedRequest, Why]]:
    """One that has become too old since it was sent may have been taken."""
    sent = 0 if place.unsure is None else place.unsure[1]
    return [(each, "unsure" if each.position <= sent else "too_old") for each in too_old]
