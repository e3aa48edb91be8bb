"""What audits found and nobody has resolved is on the invoice: as it was when that was issued."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
from sqlalchemy import Engine

from billing.audit import finding_rows
from billing.findings import Finding, FindingKind
from billing.invoices.close import compute_again, draft_again
from billing.ledger.entries import ReceivedEvent, record_events
from billing.page import PageRequest
from billing.wire.tokens import CounterPair
from tests.billing.events import event
from tests.billing.invoices.test_close import OCTOBER, Books


@pytest.fixture
def books(database: Engine, raw_redis: redis.Redis) -> Iterator[Books]:
    with database.begin() as connection:
        yield Books(connection, raw_redis)


def test_what_audits_found_is_on_the_invoice_as_it_was_and_nothing_of_other_tenants(books: Books) -> None:
    books.use(OCTOBER)
    theirs = event("req_theirs", ended_ms=OCTOBER, tenant="ten_other", instance="i2")
    record_events(books.connection, [ReceivedEvent.read(theirs.to_json())])
    residual = Finding(
        kind=FindingKind.RESIDUAL, message="of ten_other at i1", instance="i1", tokens=CounterPair(0, 7)
    )
    twice = Finding(kind=FindingKind.USAGE_CONFLICT, message="two", ids=("req_1", "req_theirs"), count=2)
    seen = [
        residual, replace(residual, instance="i2"), replace(residual, kind=FindingKind.UNREACHABLE), twice,
        Finding(kind=FindingKind.NOT_FOR_SALE, message="m9", ids=("m9",)),
    ]  # fmt: skip
    finding_rows.keep(books.connection, seen, facts=False)
    found = finding_rows.list_page(books.connection, PageRequest(9), state=None, kind=None, gone=False).rows
    named = {(row.kind, row.said.get("instance")): row.finding for row in found}
    finding_rows.change(books.connection, named["unreachable", "i1"], resolve="ten_other pulled the plug")
    finding_rows.change(books.connection, named["residual", "i1"], owner="grace")
    made = books.close("2023-10")
    said = json.loads(made.document)["reconciliation"]
    assert said["audited_ms"] is None
    shown = {(each["kind"], each["state"]): (each["finding"], each["requests"]) for each in said["findings"]}
    assert shown == {
        ("residual", "acknowledged"): (named["residual", "i1"], []),
        ("usage_conflict", "open"): (named["usage_conflict", None], ["req_1"]),
    }
    assert not any(word in made.document for word in (b"theirs", b"ten_other", b"grace", b"i1"))
    finding_rows.keep(books.connection, [], facts=False)
    assert compute_again(books.connection, made.number) == made.document
    later = json.loads(books.close("2023-11").document)
    assert later["reconciliation"] == {"audited_ms": None, "findings": []}


def test_an_invoice_from_before_findings_were_listed_is_computed_again_without_them(books: Books) -> None:
    books.use(OCTOBER)
    made = books.close("2023-10")
    facts = {**made.facts, "facts": {**made.facts["facts"]}}
    del facts["facts"]["reconciliation"]
    document = json.loads(made.document)
    del document["reconciliation"]
    before = replace(made, facts=facts)
    assert json.loads(draft_again(books.connection, before).document(made.number)) == document
