"""The shapes of recorded requests: CloudEvents 1.0, as OpenMeter takes them too; meter events of Stripe;
events of Lago. Each is a value for JSON; it knows no file and no receiver.

An id is the same whenever it is sent, so that who receives it twice can count it once.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from billing.exports.recorded import Form, RecordedRequest, rfc3339
from billing.wire.tokens import TOKEN_KINDS

SOURCE: Final = "/taas/usage"
USAGE: Final = "taas.usage"
# The amount of a request that was recorded before it could be priced. It has no tokens: a meter that adds up
# the tokens of `taas.usage` has them already.
PRICED: Final = "taas.usage.priced"
IN_DOUBT: Final = "taas.usage.quarantined"
# The name of the meter (Stripe) and the code of the billable metric (Lago), unless a sink has another.
METER: Final = "taas_tokens"
# As many as Stripe and Lago take in one call.
_EVENTS_AT_ONCE: Final = 100
# As long as Stripe takes.
_IDENTIFIER_CHARS_MAX: Final = 100


def cloud_event(request: RecordedRequest) -> dict[str, Any]:
    """In the JSON format of CloudEvents 1.0. Amounts in USD are exact decimal strings, null if there is no
    price.
    """
    data: dict[str, Any] = {
        "request_id": request.request_id,
        "project": request.project,
        "key_id": request.key_id,
        "model": request.model,
        "class": request.class_,
        "contract": request.contract,
        "batch_line": request.line,
        "ending": request.ending,
        "pricing": request.pricing,
        "amount": None if request.amount is None else str(request.amount),
        "currency": "USD",
        "recorded": rfc3339(request.recorded_ms),
    }
    if not request.corrects:
        data["tokens"] = dict(zip(TOKEN_KINDS, request.tokens, strict=True))
    return {
        "specversion": "1.0",
        "id": request.event_id,
        "source": SOURCE,
        "type": PRICED if request.corrects else IN_DOUBT if request.in_doubt else USAGE,
        "subject": request.tenant,
        "time": rfc3339(request.ended_ms),
        "datacontenttype": "application/json",
        "data": data,
    }


def stripe_events(request: RecordedRequest, customer: str | None, meter: str = METER) -> list[dict[str, Any]]:
    """Meter events of Stripe's API v2, one for each kind of tokens. Values of a payload are strings."""
    return [
        {
            "event_name": meter,
            "identifier": _identifier(request, kind),
            "timestamp": rfc3339(request.ended_ms),
            "payload": {
                "stripe_customer_id": customer or request.tenant,
                "value": str(count),
                "token_kind": kind,
                "model": request.model,
                "class": request.class_,
            },
        }
        for kind, count in request.metered()
    ]


def lago_events(
    request: RecordedRequest, subscription: str | None, code: str = METER
) -> list[dict[str, Any]]:
    """Events of Lago, one for each kind of tokens; the metric adds up `tokens`."""
    at_ms = request.ended_ms
    return [
        {
            "transaction_id": _identifier(request, kind),
            "external_subscription_id": subscription or request.tenant,
            "code": code,
            "timestamp": f"{at_ms // 1000}.{at_ms % 1000:03d}",
            "properties": {
                # A string: by Lago's schema a whole number is of two types at once.
                "tokens": str(count),
                "token_kind": kind,
                "model": request.model,
                "class": request.class_,
                "project": request.project,
                "key_id": request.key_id,
            },
        }
        for kind, count in request.metered()
    ]


def bodies(
    requests: Iterable[RecordedRequest], form: Form, customer: str | None = None, meter: str | None = None
) -> Iterator[Any]:
    """What is to be sent of these requests, each piece one call: a list of CloudEvents, or `{"events": […]}`.
    `customer`: Stripe's name of who pays, or Lago's of its subscription; None: the tenant's id.
    """
    if form in {Form.CLOUDEVENTS, Form.OPENMETER}:
        for piece in _pieces(map(cloud_event, requests)):
            yield piece
        return
    shape = {Form.STRIPE: stripe_events, Form.LAGO: lago_events}[form]
    events = (event for each in requests for event in shape(each, customer, meter or METER))
    for piece in _pieces(events):
        yield {"events": piece}


def _pieces(events: Iterable[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    piece: list[dict[str, Any]] = []
    for event in events:
        piece.append(event)
        if len(piece) == _EVENTS_AT_ONCE:
            yield piece
            piece = []
    if piece:
        yield piece


def _identifier(request: RecordedRequest, kind: str) -> str:
    made = f"{request.event_id}:{kind}"
    return made if len(made) <= _IDENTIFIER_CHARS_MAX else hashlib.sha256(made.encode()).hexdigest()
