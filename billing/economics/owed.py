"""What is owed beside the prices of tokens, read from SQL: by tenants for capacity, to them for shortfalls,
by the terms of their invoices; and to the makers of models.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Final

from sqlalchemy import Connection, case, func, select

from billing.economics.expected import CapacityRate
from billing.invoices import makers
from billing.invoices.lines import Reserved, capacity_amount, short_amount
from billing.invoices.terms import CapacityPrice, capacity_charges, first_minutes
from billing.ledger.accounts import Account, EntryKind
from billing.moments import HOUR_MS
from billing.schema.books import maker_terms
from billing.schema.capacity import contract_hour, contract_minute
from billing.schema.invoices import invoice
from billing.schema.ledger import ledger_posting, ledger_transaction
from billing.wire.invoice_lines import LINE_TYPES

# What documents add beside tokens, capacity and shortfalls: revenue is a credit, so it is negative.
_WORDS: Final = {type_.account: type_.owed for type_ in LINE_TYPES.values() if type_.owed}
# When what a document has beside tokens counts: where its period begins, or when it gives something back.
_counts_ms: Final = case((invoice.c.kind == "credit_note", invoice.c.issued_ms), else_=invoice.c.from_ms)


@dataclass(frozen=True, slots=True)
class CapacityOwed:
    """For a contract's capacity in one month: what its tenant owes, and what it gets back, in pico-dollars.
    Each is rounded once, half to even.
    """

    charge: int
    credits: int


def capacity_owed(
    connection: Connection, edges_ms: Sequence[int], tenant_id: str | None = None
) -> dict[tuple[str, int], CapacityOwed]:
    """By contract and month, of a tenant or of all; `edges_ms`: where months begin, and where the last
    ends.
    """
    charges: defaultdict[tuple[str, int], Fraction] = defaultdict(Fraction)
    credits: defaultdict[tuple[str, int], Fraction] = defaultdict(Fraction)
    pieces = capacity_charges(connection, edges_ms[0], edges_ms[-1], tenant_id)
    for piece, _ in pieces:
        for month, (from_ms, until_ms) in enumerate(pairwise(edges_ms)):
            length_ms = min(piece.until_ms, until_ms) - max(piece.from_ms, from_ms)
            if length_ms > 0:
                charges[piece.contract, month] += capacity_amount(
                    replace(piece, from_ms=0, until_ms=length_ms)
                )
    firsts = first_minutes(pieces)
    for contract, minute_ms, mu in _short_minutes(connection, edges_ms, pieces):
        for piece, price in pieces:
            first_ms = firsts[piece.contract, piece.from_ms]
            if piece.contract == contract and first_ms <= minute_ms < piece.until_ms:
                month = bisect_right(edges_ms, minute_ms) - 1
                credits[contract, month] += short_amount(mu, price.picousd, price.sla_percent)
    return {
        name: CapacityOwed(round(charge), round(credits.get(name, Fraction(0))))
        for name, charge in charges.items()
    }


def capacity_rates(connection: Connection, from_ms: int, until_ms: int) -> dict[str, CapacityRate]:
    """By contract, over [from, until)."""
    held: defaultdict[str, int] = defaultdict(int)
    charged: defaultdict[str, Fraction] = defaultdict(Fraction)
    credited: defaultdict[str, Fraction] = defaultdict(Fraction)
    for piece, price in capacity_charges(connection, from_ms, until_ms):
        length_ms = piece.until_ms - piece.from_ms
        held[piece.contract] += piece.mu_s * length_ms
        charge = capacity_amount(piece)
        charged[piece.contract] += charge
        credited[piece.contract] += charge * price.sla_percent / 100
    return {
        name: CapacityRate(charged[name] / whole, credited[name] / whole)
        for name, whole in held.items()
        if whole
    }


@dataclass(frozen=True, slots=True)
class ByTerms:
    """What an invoice charges by its tenant's terms, or a credit note gives back, in pico-dollars: volume
    discounts and what is given back are negative.
    """

    tenant_id: str
    counts_ms: int
    account: Account
    picousd: int


def by_terms(
    connection: Connection, from_ms: int, until_ms: int, tenant_id: str | None = None
) -> list[ByTerms]:
    """On invoices of periods that began in [from, until) and credit notes that were issued then, of a tenant
    or of all.
    """
    of = invoice.c.tenant_id, _counts_ms.label("counts_ms"), ledger_posting.c.account
    query = (
        select(*of, func.sum(ledger_posting.c.amount_picousd))
        .join_from(invoice, ledger_transaction, ledger_transaction.c.subject == invoice.c.number)
        .join(ledger_posting, ledger_posting.c.transaction_id == ledger_transaction.c.transaction_id)
        .where(
            ledger_transaction.c.kind == EntryKind.INVOICE.value,
            ledger_posting.c.account.in_(list(_WORDS)),
            _counts_ms >= from_ms,
            _counts_ms < until_ms,
        )
        .group_by(*of)
    )
    if tenant_id is not None:
        query = query.where(invoice.c.tenant_id == tenant_id)
    return [
        ByTerms(tenant, counts_ms, Account(account), -int(debit))
        for tenant, counts_ms, account, debit in connection.execute(query)
    ]


def beside_tokens(
    connection: Connection, edges_ms: Sequence[int], tenant_id: str | None
) -> list[tuple[int, str, int]]:
    """What is owed of a tenant or of all beside tokens: in which span between the edges, for what, and
    pico-dollars. What terms charge is where the period of the invoice begins, what a credit note gives back
    when it was issued.
    """
    found = []
    for (contract, at), each in sorted(capacity_owed(connection, edges_ms, tenant_id).items()):
        found.append((at, f"reserved capacity, {contract}", each.charge))
        found.append((at, f"capacity that was short, {contract}", -each.credits))
    charged: defaultdict[tuple[int, str], int] = defaultdict(int)
    for term in by_terms(connection, edges_ms[0], edges_ms[-1], tenant_id):
        charged[bisect_right(edges_ms, term.counts_ms) - 1, _WORDS[term.account]] += term.picousd
    found += [(at, what, picousd) for (at, what), picousd in sorted(charged.items())]
    return [each for each in found if each[2]]


def maker_shares(connection: Connection, edges_ms: Sequence[int]) -> dict[tuple[str, str, str, int], int]:
    """What is owed to models' makers by tenant, model, contract and month, in pico-dollars."""
    sums: defaultdict[tuple[str, str, str, int], Fraction] = defaultdict(Fraction)
    if connection.execute(select(maker_terms.c.version).limit(1)).first() is None:
        # To look for them in each hour of each month takes as long as all the rest.
        return {}
    for month, (from_ms, until_ms) in enumerate(pairwise(edges_ms)):
        for each in makers.owed(connection, from_ms, -(-until_ms // HOUR_MS) * HOUR_MS):
            sums[each.tenant, each.model, each.contract, month] += each.exact
    return {group: round(exact) for group, exact in sums.items()}


def _short_minutes(
    connection: Connection, edges_ms: Sequence[int], pieces: Iterable[tuple[Reserved, CapacityPrice]]
) -> list[tuple[str, int, int]]:
    """Contract, minute and mu, of contracts that get something back. Hours without a shortfall are not
    looked at.
    """
    given_back = sorted({piece.contract for piece, price in pieces if price.sla_percent})
    hour, minute = contract_hour.c, contract_minute.c
    query = (
        select(minute.contract_id, minute.minute_ms, minute.shortfall_mu)
        .join_from(
            contract_hour,
            contract_minute,
            (minute.contract_id == hour.contract_id)
            & (minute.minute_ms >= hour.hour * HOUR_MS)
            & (minute.minute_ms < (hour.hour + 1) * HOUR_MS),
        )
        .where(
            hour.contract_id.in_(given_back),
            hour.shortfall_mu > 0,
            hour.hour >= edges_ms[0] // HOUR_MS,
            minute.minute_ms < edges_ms[-1],
            minute.shortfall_mu > 0,
        )
    )
    return [(row.contract_id, row.minute_ms, row.shortfall_mu) for row in connection.execute(query)]
