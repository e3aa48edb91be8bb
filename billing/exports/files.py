"""Files of a tenant's recorded requests: lines of JSON, each of which can be sent as it is, or CSV."""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Final

import orjson

from billing.exports.recorded import Form, RecordedRequest, rfc3339
from billing.exports.shapes import bodies, cloud_event
from billing.wire.tokens import TOKEN_KINDS

_CSV_HEAD: Final = (
    "id", "request_id", "ended", "recorded", "tenant", "project", "key_id", "model", "class", "contract",
    "batch_line", "ending", "pricing", "corrects", *TOKEN_KINDS, "amount", "currency",
)  # fmt: skip


def lines(requests: Iterable[RecordedRequest], form: Form, customer: str | None = None) -> Iterator[bytes]:
    """A CloudEvent a line; of Stripe and Lago, a line is the body of one call."""
    if form in {Form.CLOUDEVENTS, Form.OPENMETER}:
        for request in requests:
            yield orjson.dumps(cloud_event(request)) + b"\n"
        return
    for body in bodies(requests, form, customer):
        yield orjson.dumps(body) + b"\n"


def csv_rows(requests: Iterable[RecordedRequest]) -> Iterator[bytes]:
    """A head, and a row for each request. A correction (`corrects` 1) has no tokens."""
    yield row_of(_CSV_HEAD)
    for each in requests:
        tokens = (0, 0, 0, 0) if each.corrects else each.tokens
        yield row_of((
            each.event_id, each.request_id, rfc3339(each.ended_ms), rfc3339(each.recorded_ms), each.tenant,
            each.project, each.key_id, each.model, each.class_, each.contract or "", each.line or "",
            each.ending, each.pricing, int(each.corrects), *tokens,
            "" if each.amount is None else each.amount, "USD",
        ))  # fmt: skip


def row_of(fields: Iterable[object]) -> bytes:
    """A row of CSV as RFC 4180 has it."""
    made = io.StringIO()
    csv.writer(made).writerow(fields)
    return made.getvalue().encode()
