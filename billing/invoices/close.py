"""Closes a tenant's period: the draft of its invoice, the invoice, and the invoice computed again.

While a period is closed nothing is recorded (the lock of prices is held), so what its invoice counts is
exactly the transactions up to the last one. Nothing of a closed period changes: what comes late is on the
next invoice, and what was wrong is given back by a credit note.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from billing.catalogue import projects
from billing.catalogue.money import ZERO, Money
from billing.catalogue.price_book import hold_prices
from billing.catalogue.projection import read_cells
from billing.catalogue.tenants import Tenant
from billing.invoices import credits, prepaid, store
from billing.invoices.document import Facts, invoice_document, sha256, signed
from billing.invoices.earlier import earlier_periods, read_earlier, stored_earlier
from billing.invoices.lines import Bill, Earlier, Reserved, Short, Terms, Used, make_bill
from billing.invoices.next_period import next_period, span_of
from billing.invoices.open_findings import open_findings
from billing.invoices.periods import period
from billing.invoices.reading import (
    capacity,
    not_billed,
    owed_for_usage,
    used_by_transactions,
    used_in_period,
    used_late,
)
from billing.invoices.store import Stored
from billing.invoices.terms import read_tiers, stored_tiers
from billing.ledger.accounts import Account, EntryKind, Posting, record_entry
from billing.ledger.dropped import has_dropped_late, is_dropped
from billing.moments import utc
from billing.refusals import Conflict, Invalid
from billing.wire import redis_keys
from billing.wire.invoice_lines import LINE_TYPES
from billing.wire.redis_clock import now_ms as redis_now_ms

# The allocator takes cuts of capacity from so long ago.
_SHORT_COUNTED_MS: Final = 300_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What an invoice would say if it were closed now. `upto`: the last transaction that it counts."""

    facts: Facts
    terms: Terms
    earlier: tuple[Earlier, ...]
    reserved: tuple[Reserved, ...]
    short: tuple[Short, ...]
    bill: Bill
    credits: tuple[tuple[str, Money], ...]
    upto: int

    @property
    def due(self) -> Money:
        return self.bill.total - sum((amount for _, amount in self.credits), ZERO)

    def document(self, number: str) -> bytes:
        """As it is issued under this number."""
        return invoice_document(
            number,
            self.facts,
            self.terms,
            self.bill,
            earlier=self.earlier,
            credits=self.credits,
            upto=self.upto,
        )


def make_draft(connection: Connection, tenant: Tenant, name: str, *, issuer: str, now_ms: int) -> Draft:
    """The invoice of a period as of now. Raises Invalid for another form of `name`; Conflict unless it is the
    period that is closed next.
    """
    try:
        period(name, 1, tenant.time_zone)
    except ValueError as exc:
        raise Invalid(str(exc), param="period") from exc
    last = store.last_of(connection, tenant.tenant_id)
    expected = next_period(connection, tenant)
    if (last is not None and name != expected) or (expected is not None and name > expected):
        done = "" if last is None else f" {last.period} is closed, by {last.number}."
        raise Conflict(
            f"Periods are closed in their order: the next one is {expected}.{done}", param="period",
            code="period_not_next",
        )  # fmt: skip
    span = span_of(connection, tenant, name, None if last is None else last.until_ms)
    from_ms, until_ms, terms = span.from_ms, span.until_ms, span.terms
    if until_ms <= from_ms:
        raise Conflict(f"All of {name} is on {last and last.number} already.", param="period")
    upto = store.last_transaction(connection)
    after = 0 if last is None else last.ledger_upto
    late = used_late(connection, tenant.tenant_id, after, upto)
    used = [*late, *used_in_period(connection, tenant.tenant_id, name, from_ms, until_ms)]
    earlier = earlier_periods(connection, tenant.tenant_id, {each.period for each in late})
    reserved, short = capacity(connection, tenant.tenant_id, from_ms, until_ms)
    facts = Facts(
        issuer=issuer,
        issued_ms=now_ms,
        tenant=tenant.tenant_id,
        tenant_name=tenant.name,
        period=name,
        from_ms=from_ms,
        until_ms=until_ms,
        zone=tenant.time_zone,
        project_names=projects.names(connection, {each.project for each in used}),
        **not_billed(connection, tenant.tenant_id, from_ms, until_ms),
        reconciliation=open_findings(connection, tenant.tenant_id, from_ms, until_ms),
    )
    bill = make_bill(used, reserved, short, terms, earlier)
    taken = credits.choose(
        credits.of_tenant(connection, tenant.tenant_id),
        bill.total,
        from_ms,
        until_ms,
        lambda moment_ms: owed_for_usage(
            connection, tenant.tenant_id, from_ms, moment_ms, terms.tax_basis_points
        ),
    )
    return Draft(
        facts=facts,
        terms=terms,
        earlier=tuple(earlier),
        reserved=tuple(reserved),
        short=tuple(short),
        bill=bill,
        credits=tuple(taken),
        upto=upto,
    )


def close(
    connection: Connection,
    client: redis.Redis,
    tenant: Tenant,
    name: str,
    *,
    issuer: str,
    key: Ed25519PrivateKey,
    now_ms: int,
) -> Stored:
    """Issue the invoice of a period, in the caller's transaction. Raises Conflict while the period lasts, or
    while usage of it waits to be recorded; without an issuer; and as `make_draft`.
    """
    require_issuer(issuer)
    hold_prices(connection)
    draft = make_draft(connection, tenant, name, issuer=issuer, now_ms=now_ms)
    refuse_early(client, draft.facts.until_ms, reserved=bool(draft.reserved))
    number = store.next_number(connection, "invoice")
    document = draft.document(number)
    key_id, signature = signed(document, key)
    bill = draft.bill
    made = Stored(
        number=number,
        kind="invoice",
        tenant_id=tenant.tenant_id,
        period=name,
        from_ms=draft.facts.from_ms,
        until_ms=draft.facts.until_ms,
        ledger_upto=draft.upto,
        facts=_kept(draft),
        document=document,
        sha256=sha256(document),
        key_id=key_id,
        signature=signature,
        corrects=None,
        net=bill.net,
        total=bill.total,
        due=draft.due,
        issued_ms=now_ms,
    )
    store.write(connection, made)
    credits.use(connection, number, draft.credits)
    record_entry(connection, EntryKind.INVOICE, number, list(postings_of(tenant.tenant_id, draft)))
    credits.expire(connection, tenant.tenant_id, draft.facts.until_ms)
    store.close_until(connection, tenant.tenant_id, draft.facts.until_ms, draft.upto)
    prepaid.renew(connection, tenant.tenant_id, now_ms)
    return made


def compute_again(connection: Connection, number: str) -> bytes:
    """An invoice's document, from the transactions that it counted and from the facts of then. What is stored
    is the same, byte by byte, or somebody has changed one of them.
    """
    return draft_again(connection, store.find(connection, number)).document(number)


def is_countable(connection: Connection, stored: Stored) -> bool:
    """Whether all usage of an invoice can still be read: retention has dropped none of it."""
    before = store.before(connection, stored)
    after = 0 if before is None else before.ledger_upto
    return not (
        is_dropped(connection, stored.from_ms, stored.until_ms)
        or has_dropped_late(connection, stored.tenant_id, after, stored.ledger_upto)
    )


def draft_again(connection: Connection, stored: Stored) -> Draft:
    """What an invoice was made of, read again. Raises Invalid unless it is countable."""
    if not is_countable(connection, stored):
        raise Invalid(
            f"{stored.number} cannot be computed again: retention has dropped usage events that it counts.",
            code="usage_dropped",
        )
    before = store.before(connection, stored)
    used = [
        *used_late(
            connection, stored.tenant_id, 0 if before is None else before.ledger_upto, stored.ledger_upto
        ),
        *used_by_transactions(
            connection, stored.tenant_id, stored.period, stored.from_ms, stored.until_ms, stored.ledger_upto
        ),
    ]
    return _draft_of(stored, used)


def require_issuer(issuer: str) -> str:
    """Who issues a document that nobody can change afterwards. Raises Conflict for nobody."""
    if not issuer.strip():
        raise Conflict(
            "Nobody is named who issues it: TAAS_ISSUER of billing is whose name invoices bear.",
            code="no_issuer",
        )
    return issuer


def refuse_early(client: redis.Redis, until_ms: int, *, reserved: bool) -> None:
    """Raises Conflict while a period lasts, while a cell's stream has usage of it, or, of one with `reserved`
    capacity, while what was short of that is counted.
    """
    now_ms = redis_now_ms(client)
    if now_ms < until_ms:
        raise Conflict(f"The period lasts until {utc(until_ms)}.", param="period", code="period_not_over")
    if reserved and now_ms < until_ms + _SHORT_COUNTED_MS:
        raise Conflict(
            f"What contracts were short of is counted until {utc(until_ms + _SHORT_COUNTED_MS)}.",
            code="shortfall_not_counted",
        )
    cells = read_cells(client)
    with client.pipeline(transaction=False) as read:
        for cell in cells:
            read.xrange(redis_keys.usage_stream(cell), "-", str(until_ms - 1), count=1)
        waiting = [cell for cell, entries in zip(cells, read.execute(), strict=True) if entries]
    if waiting:
        raise Conflict(
            f"Usage of the period waits to be recorded, in cell {waiting[0]!r}: try again in a moment.",
            code="usage_not_recorded",
        )


def postings_of(tenant_id: str, draft: Draft) -> Iterable[Posting]:
    """What the invoice adds to what the ledger has of its usage: rounding, and every other line. Raises
    KeyError for a line of a type that is not known.
    """
    bill = draft.bill
    usage = [line for line in bill.lines if line.type == "usage"]
    rounded = bill.of_type("usage") - Money(int(sum(line.exact for line in usage)))
    added = [(Account.ROUNDING, tenant_id, rounded)]
    for line in bill.lines:
        if (account := LINE_TYPES[line.type].account) is not None:
            added.append((Account(account), line.what.get("contract", tenant_id), line.amount))
    added.append((Account.TAX, tenant_id, bill.tax))
    added += [(Account.CREDITS, tenant_id, -amount) for _, amount in draft.credits]
    for account, holder, amount in added:
        yield Posting(Account.RECEIVABLE, tenant_id, amount)
        yield Posting(account, holder, -amount)


def _kept(draft: Draft) -> dict[str, Any]:
    """As JSON: all of a draft but its usage, which the ledger has."""
    return {
        "facts": asdict(draft.facts),
        "terms": {
            "day": draft.terms.day,
            "tax_name": draft.terms.tax_name,
            "tax_basis_points": draft.terms.tax_basis_points,
            "commitment": str(draft.terms.commitment),
            "tiers": stored_tiers(draft.terms.tiers),
            "prorated": draft.terms.prorated,
        },
        "earlier": [stored_earlier(each) for each in draft.earlier],
        "reserved": [asdict(each) for each in draft.reserved],
        "short": [asdict(each) for each in draft.short],
        "credits": [[credit, str(amount)] for credit, amount in draft.credits],
    }


def _draft_of(stored: Stored, used: Sequence[Used]) -> Draft:
    kept = stored.facts
    terms = terms_of(kept)
    earlier = tuple(read_earlier(each) for each in kept.get("earlier", ()))
    reserved = tuple(Reserved(**each) for each in kept["reserved"])
    short = tuple(Short(**each) for each in kept["short"])
    return Draft(
        facts=Facts(**kept["facts"]),
        terms=terms,
        earlier=earlier,
        reserved=reserved,
        short=short,
        bill=make_bill(used, reserved, short, terms, earlier),
        credits=tuple((credit, Money.parse(amount)) for credit, amount in kept["credits"]),
        upto=stored.ledger_upto,
    )


def terms_of(kept: dict[str, Any]) -> Terms:
    """The terms among an invoice's facts."""
    terms = kept["terms"]
    return Terms(
        day=terms["day"],
        tax_name=terms["tax_name"],
        tax_basis_points=terms["tax_basis_points"],
        commitment=Money.parse(terms["commitment"]),
        tiers=read_tiers(terms["tiers"]),
        prorated=None if terms.get("prorated") is None else tuple(terms["prorated"]),
    )
