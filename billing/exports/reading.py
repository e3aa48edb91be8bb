"""Reads recorded requests from a tenant's chain, in the order in which they were recorded."""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection

from billing.catalogue.money import Money
from billing.exports.recorded import RecordedRequest
from billing.ledger.accounts import Account
from billing.ledger.chain import entries_between
from billing.ledger.entries import Pricing
from billing.wire.tokens import by_kind


def requests_between(connection: Connection, chain: str, first: int, last: int) -> Iterator[RecordedRequest]:
    """Of the chain's positions `first` to `last`. Invoices, credits and the like are left out."""
    for row in entries_between(connection, chain, first, last):
        if row["request_id"] is not None:
            yield _request(row)


def _request(row: Mapping[Any, Any]) -> RecordedRequest:
    amounts = [int(amount) for account, _, amount in row["lines"] or () if account == Account.RECEIVABLE]
    priced = row["pricing"] in {Pricing.PRICED, Pricing.NOTHING_BILLED}
    return RecordedRequest(
        position=row["position"],
        recorded_ms=row["chained_ms"],
        request_id=row["request_id"],
        transaction_id=row["transaction_id"],
        corrects=row["corrects"],
        tenant=row["tenant"],
        project=row["project"],
        key_id=row["key_id"],
        model=row["model"],
        class_=row["class"],
        contract=row["contract"],
        line=row["line"],
        ending=row["ending"],
        pricing=row["pricing"],
        ended_ms=row["ended_ms"],
        tokens=by_kind(*(row[f"billed_{name}"] for name in ("prompt", "cached", "written", "output"))),
        amount=Money(sum(amounts)) if priced else None,
    )
