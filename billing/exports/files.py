"""Files of a tenant's recorded requests: lines of JSON, each of which can be sent as it is, or a table."""

from collections.abc import Iterable, Iterator
from typing import Final

import orjson

from billing.exports.recorded import Form, RecordedRequest
from billing.exports.shapes import bodies, cloud_event
from billing.exports.table import Column, Kind, Row
from billing.wire.tokens import TOKEN_KINDS

# Of a table, a row for each request.
COLUMNS: Final = (
    *(Column(name, Kind.TEXT, empty=False) for name in ("id", "request_id")),
    *(Column(name, Kind.MOMENT, empty=False) for name in ("ended", "recorded")),
    *(Column(name, Kind.TEXT, empty=False) for name in ("tenant", "project", "key_id", "model", "class")),
    *(Column(name, Kind.TEXT) for name in ("contract", "batch_line")),
    *(Column(name, Kind.TEXT, empty=False) for name in ("ending", "pricing")),
    *(Column(name, Kind.COUNT, empty=False) for name in ("corrects", *TOKEN_KINDS)),
    Column("amount", Kind.DECIMAL),
    Column("currency", Kind.TEXT, empty=False),
)


def lines(requests: Iterable[RecordedRequest], form: Form, customer: str | None = None) -> Iterator[bytes]:
    """A CloudEvent a line; of Stripe and Lago, a line is the body of one call."""
    if form in {Form.CLOUDEVENTS, Form.OPENMETER}:
        for request in requests:
            yield orjson.dumps(cloud_event(request)) + b"\n"
        return
    for body in bodies(requests, form, customer):
        yield orjson.dumps(body) + b"\n"


def rows(requests: Iterable[RecordedRequest]) -> Iterator[Row]:
    """Of `COLUMNS`. A correction (`corrects` 1) has no tokens."""
    for each in requests:
        tokens = (0, 0, 0, 0) if each.corrects else each.tokens
        yield {
            "id": each.event_id, "request_id": each.request_id, "ended": each.ended_ms,
            "recorded": each.recorded_ms, "tenant": each.tenant, "project": each.project,
            "key_id": each.key_id, "model": each.model, "class": each.class_, "contract": each.contract,
            "batch_line": each.line, "ending": each.ending, "pricing": each.pricing,
            "corrects": int(each.corrects), **dict(zip(TOKEN_KINDS, tokens, strict=True)),
            "amount": None if each.amount is None else each.amount.picousd, "currency": "USD",
        }  # fmt: skip
