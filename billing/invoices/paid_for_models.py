"""What tenants pay for models beside the prices of their tokens, and the makers' shares of it: reserved
capacity less what was short of it, volume discounts, and what credit notes give back. It decides nothing.

- Capacity is divided among the models that its contract was used for in a month (UTC), by their work. What
  nothing was used of all month is for no model.
- A discount is divided among the usage that it is on, as the invoice has it.
- A credit note gives back the same part of all that its invoice charges. Late usage that a commitment covers
  is charged by the invoice that has the commitment, whether it was covered before the note or after it: as if
  it had not been late. Rounding to cents, and what is left of a commitment, is for no model.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from typing import Any, Final, TypeAlias

import orjson
from sqlalchemy import Connection, func, literal_column, select

from billing.catalogue.money import Money
from billing.invoices import store
from billing.invoices.capacity_owed import capacity_by_time
from billing.invoices.periods import name_of, next_name, period
from billing.invoices.store import Stored
from billing.ledger.accounts import Account, EntryKind
from billing.ledger.maker_terms import MakerTerms, TermsInTime, share
from billing.moments import HOUR_MS
from billing.schema.capacity import contract as contract_table
from billing.schema.invoices import invoice
from billing.schema.ledger import ledger_posting, ledger_transaction, usage_hour

_UTC: Final = "UTC"
# The period, model and contract of usage on an invoice, with pico-dollars.
Amounts: TypeAlias = Mapping[tuple[str, str, str], Fraction]


class PaidFor(StrEnum):
    """What a maker gets something of: tokens, at a share of their price or a price of its own; reserved
    capacity; what invoices take off and credit notes give back.
    """

    TOKENS = "tokens"
    EACH_TOKEN = "each token"  # noqa: S105 (no secret)
    CAPACITY = "capacity"
    DOCUMENTS = "documents"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """What a maker gets for what a tenant used of a model, by one version of the terms. `paid`: what the
    tenant pays; `exact`: what the maker gets. Both in pico-dollars.
    """

    maker: str
    model: str
    tenant: str
    contract: str
    of: PaidFor
    prompt: int = 0
    output: int = 0
    paid: Fraction
    exact: Fraction

    @classmethod
    def share(cls, terms: MakerTerms, tenant: str, contract: str, of: PaidFor, paid: Fraction) -> "Owed":
        """By these terms."""
        return cls(
            maker=terms.maker, model=terms.model, tenant=tenant, contract=contract, of=of, paid=paid,
            exact=share(terms, paid),
        )  # fmt: skip


def beside_tokens(connection: Connection, terms: TermsInTime, from_ms: int, until_ms: int) -> Iterator[Owed]:
    """Of capacity in [from, until), of the discounts on invoices of periods that began then, and of credit
    notes that were issued then.
    """
    yield from _capacity(connection, terms, from_ms, until_ms)
    documents = _Documents(connection, terms)
    for number in _with_discounts(connection, from_ms, until_ms):
        made = store.find(connection, number)
        yield from documents.by_terms(made, _discounts(orjson.loads(made.document)))
    for number in _notes(connection, from_ms, until_ms):
        yield from documents.given_back(store.find(connection, number))


def _capacity(
    connection: Connection, terms: TermsInTime, from_ms: int, until_ms: int, tenant_id: str | None = None
) -> Iterator[Owed]:
    """Spans are cut so that each is of one month and of the same terms."""
    starts_ms = max(from_ms, terms.edges_ms[0])
    if starts_ms >= until_ms:
        return
    cuts = (*terms.edges_ms, *_months(starts_ms, until_ms))
    spans = sorted({starts_ms, until_ms, *(at_ms for at_ms in cuts if starts_ms < at_ms < until_ms)})
    amounts = capacity_by_time(connection, spans, tenant_id)
    tenants = _tenants(connection, {contract for contract, _ in amounts})
    work = _work(connection, tenants, starts_ms, until_ms)
    for (contract, span), (charge, credits) in sorted(amounts.items()):
        done = work[contract, name_of(spans[span], 1, _UTC)]
        for model, mu in sorted(done.items()):
            held = terms.at(model, spans[span])
            if held is not None:
                paid = (charge - credits) * Fraction(mu, done.total())
                yield Owed.share(held, tenants[contract], contract, PaidFor.CAPACITY, paid)


def _months(from_ms: int, until_ms: int) -> Iterator[int]:
    name = name_of(from_ms, 1, _UTC)
    while (begins_ms := period(name, 1, _UTC)[0]) < until_ms:
        yield begins_ms
        name = next_name(name)


def _work(
    connection: Connection, tenants: Mapping[str, str], from_ms: int, until_ms: int
) -> defaultdict[tuple[str, str], Counter[str]]:
    """Of requests by contract and month, for each model, in mu: of all months that [from, until) touches.
    `tenants`: by contract.
    """
    of = usage_hour.c
    first_ms, _ = period(name_of(from_ms, 1, _UTC), 1, _UTC)
    _, last_ms = period(name_of(until_ms - 1, 1, _UTC), 1, _UTC)
    seconds = of.hour * literal_column("3600")
    month = func.to_char(func.timezone(_UTC, func.to_timestamp(seconds)), literal_column("'YYYY-MM'"))
    query = (
        select(of.contract, month.label("month"), of.model, func.sum(of.units_mu))
        .where(
            of.tenant.in_(sorted(set(tenants.values()))),
            of.contract.in_(sorted(tenants)),
            of.hour >= first_ms // HOUR_MS,
            of.hour < last_ms // HOUR_MS,
            of.units_mu > 0,
        )
        .group_by(of.contract, literal_column("2"), of.model)
    )
    found: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for contract, name, model, mu in connection.execute(query):
        found[contract, name][model] += int(mu)
    return found


def _tenants(connection: Connection, contracts: set[str]) -> dict[str, str]:
    of = contract_table.c
    query = select(of.contract_id, of.tenant_id).where(of.contract_id.in_(sorted(contracts)))
    return {row[0]: row[1] for row in connection.execute(query)}


def _with_discounts(connection: Connection, from_ms: int, until_ms: int) -> Sequence[str]:
    query = (
        select(invoice.c.number)
        .join(ledger_transaction, ledger_transaction.c.subject == invoice.c.number)
        .join(ledger_posting, ledger_posting.c.transaction_id == ledger_transaction.c.transaction_id)
        .where(
            ledger_transaction.c.kind == EntryKind.INVOICE.value,
            ledger_posting.c.account == Account.DISCOUNT.value,
            invoice.c.from_ms >= from_ms,
            invoice.c.from_ms < until_ms,
        )
        .distinct()
        .order_by(invoice.c.number)
    )
    return connection.execute(query).scalars().all()


def _notes(connection: Connection, from_ms: int, until_ms: int) -> Sequence[str]:
    query = select(invoice.c.number).where(
        invoice.c.kind == "credit_note", invoice.c.issued_ms >= from_ms, invoice.c.issued_ms < until_ms
    )
    return connection.execute(query.order_by(invoice.c.number)).scalars().all()


def _usage(document: Mapping[str, Any]) -> Amounts:
    """What the lines of tokens cost, exactly."""
    found: defaultdict[tuple[str, str, str], Fraction] = defaultdict(Fraction)
    for line in document["lines"]:
        if line["type"] == "usage":
            place = line["period"], line["model"], line["contract"] or ""
            found[place] += Money.parse(line["exact"]).picousd
    return found


def _discounts(document: Mapping[str, Any]) -> Amounts:
    """What is taken off them, as it is posted: below 0."""
    usage = _usage(document)
    earlier = {each["period"] for each in document.get("earlier", ())}
    found: defaultdict[tuple[str, str, str], Fraction] = defaultdict(Fraction)
    for line in document["lines"]:
        if line["type"] == "discount":
            late = line.get("period")
            on = {
                place: amount
                for place, amount in usage.items()
                if (place[0] == late if late else place[0] not in earlier)
            }
            whole = sum(on.values())
            for place, amount in on.items():
                found[place] += Money.parse(line["amount"]).picousd * amount / whole
    return found


def _covered(document: Mapping[str, Any]) -> Amounts:
    """What the commitments of earlier periods pay of their late usage less its discounts: below 0. They cover
    rounded lines; the same part of each is covered exactly.
    """
    places = [*_usage(document).items(), *_discounts(document).items()]
    found: defaultdict[tuple[str, str, str], Fraction] = defaultdict(Fraction)
    for line in document["lines"]:
        if line["type"] == "covered":
            late = (
                Money.parse(each["amount"]).picousd
                for each in document["lines"]
                if each["type"] in ("usage", "discount") and each.get("period") == line["period"]
            )
            part = Fraction(Money.parse(line["amount"]).picousd, sum(late))
            for place, amount in places:
                if place[0] == line["period"]:
                    found[place] += amount * part
    return found


class _Documents:
    """Divides what invoices say by the terms that held when it was used."""

    def __init__(self, connection: Connection, terms: TermsInTime) -> None:
        self._connection = connection
        self._terms = terms
        self._periods: dict[str, dict[str, tuple[int, int]]] = {}

    def given_back(self, note: Stored) -> Iterator[Owed]:
        """The part of what its invoice charges that a note gives back: below 0."""
        made = store.find(self._connection, str(note.corrects))
        document = orjson.loads(made.document)
        amounts = [_usage(document), _discounts(document), _covered(document)]
        if any(line["type"] == "commitment" for line in document["lines"]):
            amounts += self._drawn(made)
        charged = [
            *(each for some in amounts for each in self.by_terms(made, some)),
            *_capacity(self._connection, self._terms, made.from_ms, made.until_ms, made.tenant_id),
        ]
        part = Fraction(note.net.picousd, made.net.picousd)
        for each in charged:
            yield replace(each, of=PaidFor.DOCUMENTS, paid=each.paid * part, exact=each.exact * part)

    def _drawn(self, made: Stored) -> Iterator[Amounts]:
        """The late usage that the commitment of this invoice covers, also if it came after the note."""
        for each in store.since(self._connection, made.tenant_id, made.period):
            covered = _covered(orjson.loads(each.document))
            yield {place: -amount for place, amount in covered.items() if place[0] == made.period}

    def by_terms(self, made: Stored, amounts: Amounts) -> Iterator[Owed]:
        """Where terms changed within a period, its amount is divided by the usage under each."""
        for (name, model, contract), amount in sorted(amounts.items()):
            if not amount:
                continue
            from_ms, until_ms = self._period(made.tenant_id, name)
            for begins_ms, ends_ms, held in self._terms.between(model, from_ms, until_ms):
                paid = amount
                if (begins_ms, ends_ms) != (from_ms, until_ms):
                    of_it = made.tenant_id, model, contract
                    whole = self._used(*of_it, from_ms, until_ms)
                    paid *= Fraction(self._used(*of_it, begins_ms, ends_ms), whole)
                yield Owed.share(held, made.tenant_id, contract, PaidFor.DOCUMENTS, paid)

    def _period(self, tenant_id: str, name: str) -> tuple[int, int]:
        """Of the name of a period; what has no invoice is from before the first one."""
        if tenant_id not in self._periods:
            query = select(invoice.c.period, invoice.c.from_ms, invoice.c.until_ms).where(
                invoice.c.kind == "invoice", invoice.c.tenant_id == tenant_id
            )
            self._periods[tenant_id] = {row[0]: (row[1], row[2]) for row in self._connection.execute(query)}
        periods = self._periods[tenant_id]
        return periods[name] if name in periods else (0, min(periods.values())[0])

    def _used(self, tenant_id: str, model: str, contract: str, from_ms: int, until_ms: int) -> int:
        """What usage costs, of the hours that [from, until) touches; terms begin at whole hours."""
        of = usage_hour.c
        query = select(func.coalesce(func.sum(of.amount_picousd), 0)).where(
            of.tenant == tenant_id,
            of.model == model,
            of.contract == contract,
            of.hour >= from_ms // HOUR_MS,
            of.hour < -(-until_ms // HOUR_MS),
        )
        return int(self._connection.execute(query).scalar_one())
