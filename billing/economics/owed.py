"""What is owed beside the prices of tokens, read from SQL: by tenants for capacity, to them for shortfalls,
by the terms of their invoices; and to the makers of models.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Final

from sqlalchemy import Connection, case, func, select

from billing.economics.expected import CapacityRate
from billing.invoices import makers
from billing.invoices.capacity_owed import capacity_by_time
from billing.invoices.lines import capacity_amount
from billing.invoices.paid_for_models import PaidFor
from billing.invoices.terms import capacity_charges
from billing.ledger.accounts import Account, EntryKind
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
    return {
        place: CapacityOwed(round(charge), round(credits))
        for place, (charge, credits) in capacity_by_time(connection, edges_ms, tenant_id).items()
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


def maker_shares(
    connection: Connection, edges_ms: Sequence[int]
) -> dict[tuple[str, str, str, PaidFor, int], int]:
    """What is owed to models' makers by tenant, model, contract, what it is for, and month, in pico-dollars.
    Each is rounded once.
    """
    sums: defaultdict[tuple[str, str, str, PaidFor, int], Fraction] = defaultdict(Fraction)
    for month, (from_ms, until_ms) in enumerate(pairwise(edges_ms)):
        for each in makers.owed(connection, from_ms, until_ms):
            sums[each.tenant, each.model, each.contract, each.of, month] += each.exact
    return {group: round(exact) for group, exact in sums.items()}
