"""Charges of one billing period as rows of FOCUS' Cost and Usage. It reads nothing: it is given the invoice's
lines, what was used by day, and what of the reserved capacity was used.

- A line of usage is rows by day with their exact cost; what rounding to the cent added to a line is a row of
  its own (Adjustment). So the rows of an invoice add up to what it says, line by line.
- Reserved capacity is bought (Purchase: billed, nothing effective), and used or not used, by day (Usage:
  nothing billed): what is effective of these adds up to what was billed, to the pico-dollar.
- Amounts here are pico-dollars, quantities whole numbers of 10^-12 (`table.ONE`).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

import orjson

from billing.catalogue.money import Money, price_string
from billing.catalogue.price_book import Price
from billing.exports.billing_periods import UsedInDay, Work, days_of
from billing.exports.focus_columns import Dataset, Version, columns_of
from billing.exports.table import ONE, Row, Value, decimal_text
from billing.invoices.lines import Reserved, capacity_amount
from billing.moments import DAY_MS, HOUR_MS
from billing.wire.invoice_lines import LINE_TYPES
from billing.wire.tokens import TOKEN_KINDS

UNIT_HOURS: Final = "Unit-Hours"
CAPACITY: Final = "Reserved capacity"
COMMITMENT: Final = "Minimum commitment"
_TOKENS: Final = "Tokens"
_MU_MS_PER_UNIT_HOUR: Final = 1_000 * HOUR_MS
# Of lines that count towards a minimum commitment.
_COUNTED: Final = frozenset(name for name, type_ in LINE_TYPES.items() if type_.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What is the same in all rows of a period. `names`: of projects. `commitment`: the ids of the contract
    and of its commitment for this period, if there is one; late usage of the periods `earlier` does not
    count towards it.
    """

    tenant_id: str
    tenant_name: str
    issuer: str
    from_ms: int
    until_ms: int
    names: Mapping[str, str]
    commitment: tuple[str, str] | None = None
    earlier: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """One line as a document has it: its number, type, what it says, its exact and its rounded amount."""

    number: str
    type: str
    what: Mapping[str, Any]
    exact: int
    amount: int


@dataclass(slots=True)
class Charges:
    """Makes rows of a period that is on the invoice `invoice_id`, or on none yet."""

    account: Account
    invoice_id: str | None = None
    # What its rows cost in the lists and by contract, of those that are billed: taxes follow it.
    list_cost: int = 0
    contracted_cost: int = 0
    # Of each line, what is not rounded yet.
    exact: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def usage(self, used: UsedInDay, price: Price, listed: Price, lines: Mapping[Any, str]) -> Iterator[Row]:
        """A row for each kind of tokens. `lines`: the numbers of the invoice's lines."""
        for index, (kind, tokens) in enumerate(zip(TOKEN_KINDS, used.tokens, strict=True)):
            if not tokens:
                continue
            each, list_each = price.by_kind[index], listed.by_kind[index]
            key = (used.period, used.project, used.model, used.class_, used.contract, used.price_id, kind)
            if self.invoice_id is not None and key not in lines:
                raise self._differs(f"usage of {used.model} in {used.period} is in no line")
            line = lines.get(key)
            name = self.account.names.get(used.project, used.project)
            said = f"{tokens} {kind.replace('_', ' ')} tokens of {used.model}, {used.class_}"
            yield self._row(
                "usage",
                line,
                tokens * each,
                counts=used.period not in self.account.earlier,
                ChargeCategory="Usage", ChargeFrequency="Usage-Based",
                ChargeDescription=f"{said}, at {price_string(each)} USD per million",
                ChargePeriodStart=used.from_ms, ChargePeriodEnd=used.until_ms,
                ListUnitPrice=list_each, ListCost=tokens * list_each,
                ContractedUnitPrice=each, ContractedCost=tokens * each,
                PricingCategory="Standard", PricingQuantity=tokens * ONE, PricingUnit=_TOKENS,
                ConsumedQuantity=tokens * ONE, ConsumedUnit=_TOKENS,
                ResourceId=used.model, ResourceType="Model",
                SkuId=f"{used.model}/{kind}", SkuPriceId=f"{used.price_id}/{kind}",
                SkuMeter=f"{kind.replace('_', ' ').capitalize()} tokens",
                SkuPriceDetails=json_text({
                    "x_ModelName": used.model, "x_TokenKind": kind, "x_ServiceTier": price.scope.class_,
                    "x_ContractId": price.scope.contract_id,
                }),
                SubAccountId=used.project, SubAccountName=name,
                Tags=_tags(class_=used.class_, contract=used.contract),
            )  # fmt: skip

    def capacity(
        self,
        piece: Reserved,
        line: str | None,
        used_mu: Mapping[int, int],
        work: Mapping[tuple[str, int], list[Work]],
        pool: str,
    ) -> Iterator[Row]:
        """The purchase of a piece of reserved capacity, and what of it was used, by project and model, and
        what was not, by day.
        """
        exact = round(capacity_amount(piece))
        total = piece.mu_s * (piece.until_ms - piece.from_ms)
        of_it: dict[str, Any] = {
            "CapacityReservationId": piece.contract, "CommitmentDiscountCategory": "Usage",
            "CommitmentDiscountId": piece.contract, "CommitmentDiscountName": piece.contract,
            "CommitmentDiscountType": CAPACITY, "CommitmentDiscountUnit": UNIT_HOURS,
            "PricingUnit": UNIT_HOURS, "ListUnitPrice": piece.picousd, "ContractedUnitPrice": piece.picousd,
            "SkuId": f"capacity/{pool}", "SkuPriceId": f"capacity/{piece.contract}/{piece.picousd}",
            "SkuMeter": CAPACITY,
            "SkuPriceDetails": json_text({"x_ContractId": piece.contract, "x_PoolName": pool}),
        }  # fmt: skip
        bought = round(Fraction(total * ONE, _MU_MS_PER_UNIT_HOUR))
        price = f"{Money(piece.picousd)} USD per unit-hour"
        yield self._row(
            "capacity",
            line,
            exact,
            effective=0,
            **of_it,
            ChargeCategory="Purchase", ChargeFrequency="Recurring", PricingCategory="Standard",
            ChargeDescription=f"{decimal_text(bought)} unit-hours of {piece.contract} in {pool}, at {price}",
            ChargePeriodStart=piece.from_ms, ChargePeriodEnd=piece.until_ms,
            ListCost=exact, ContractedCost=exact,
            PricingQuantity=bought, CommitmentDiscountQuantity=bought,
            ResourceId=piece.contract, ResourceType="Contract",
        )  # fmt: skip
        done = _Parts(exact, bought, total)
        for from_ms, until_ms in days_of(piece):
            day = from_ms // DAY_MS
            whole = piece.mu_s * (until_ms - from_ms)
            # `used_mu` is in milliunits, `whole` in thousandths of them.
            used = left = min(used_mu.get(day, 0) * 1_000, whole)
            workers = work.get((piece.contract, day), [])
            units = sum(each.mu for each in workers)
            for each in workers:
                part = left * each.mu // units
                units, left = units - each.mu, left - part
                yield from self._day(piece, line, of_it, (from_ms, until_ms), done.take(part), each)
            # Of requests that ended on another day.
            yield from self._day(piece, line, of_it, (from_ms, until_ms), done.take(left), _SOMEBODY)
            yield from self._day(piece, line, of_it, (from_ms, until_ms), done.take(whole - used), None)

    def commitment(self, line: str | None, left: int) -> Iterator[Row]:
        """What is left of a minimum commitment: bought, and not used."""
        contract, commitment = self.account.commitment or ("", "")
        of_it: dict[str, Any] = {
            "ChargePeriodStart": self.account.from_ms, "ChargePeriodEnd": self.account.until_ms,
            "CommitmentDiscountCategory": "Spend", "CommitmentDiscountId": commitment,
            "CommitmentDiscountName": COMMITMENT, "CommitmentDiscountType": COMMITMENT,
            "CommitmentDiscountUnit": "USD", "CommitmentDiscountQuantity": left, "PricingQuantity": left,
            "PricingUnit": "USD", "ListUnitPrice": ONE, "ContractedUnitPrice": ONE, "ListCost": left,
            "ContractedCost": left, "ResourceId": commitment, "ResourceType": "Commitment",
            "SkuId": "commitment", "SkuPriceId": "commitment", "SkuMeter": COMMITMENT,
        }  # fmt: skip
        yield self._row(
            "commitment", line, left, effective=0, **of_it, ChargeCategory="Purchase",
            ChargeFrequency="Recurring", PricingCategory="Standard",
            ChargeDescription="What is left of the minimum commitment",
        )  # fmt: skip
        yield self._row(
            "commitment", line, 0, effective=left, **of_it, ChargeCategory="Usage",
            ChargeFrequency="Usage-Based", PricingCategory="Committed", CommitmentDiscountStatus="Unused",
            ChargeDescription="Minimum commitment that was not used",
            ContractApplied=_applied(contract, commitment, cost=left),
        )  # fmt: skip

    def other(self, line: InvoiceLine, category: str, said: str, **given: Any) -> Row:
        """A line that is one row: it is charged or given back as it is."""
        return self._row(
            line.type, line.number, line.exact, ChargeCategory=category, ChargeFrequency="One-Time",
            ChargeDescription=said, ListCost=line.exact, ContractedCost=line.exact,
            counts=line.what.get("period") not in self.account.earlier, **given,
        )  # fmt: skip

    def rounding(self, line: InvoiceLine) -> Iterator[Row]:
        """What rounding adds to a line. Raises ValueError if its rows are not what it says."""
        if self.exact[line.number] != line.exact:
            raise self._differs(f"line {line.number} is not as the ledger has it")
        if line.amount != line.exact:
            left = line.amount - line.exact
            rest = InvoiceLine(line.number, line.type, line.what, left, left)
            yield self.other(rest, "Adjustment", f"Rounding of line {line.number} to 0.01 USD")

    def _differs(self, what: str) -> ValueError:
        return ValueError(f"{what}, on {self.invoice_id}: `taas invoice check {self.invoice_id}`")

    def tax(self, tax: int, net: int, name: str | None, basis_points: int, **given: Any) -> Row:
        """Of what the invoice charges. Its list and contracted cost are what the tax on those would be."""
        listed, contracted = (
            tax + round(Fraction((cost - net) * basis_points, 10_000))
            for cost in (self.list_cost, self.contracted_cost)
        )
        return self._row(
            "tax", "tax", tax, ChargeCategory="Tax", ChargeFrequency="One-Time",
            ChargeDescription=f"{name or 'Tax'}, {basis_points / 100:g} %", ListCost=listed,
            ContractedCost=contracted, **given,
        )  # fmt: skip

    def _day(
        self,
        piece: Reserved,
        line: str | None,
        of_it: Mapping[str, Any],
        day: tuple[int, int],
        part: tuple[int, int],
        worker: Work | None,
    ) -> Iterator[Row]:
        """What was used by somebody in a day, or (None) by nobody. `part`: its cost and its quantity."""
        effective, quantity = part
        if not quantity and not effective:
            return
        status = "Unused" if worker is None else "Used"
        given: dict[str, Any] = {"ResourceId": piece.contract, "ResourceType": "Contract"}
        if worker is not None:
            given |= {"ConsumedQuantity": quantity, "ConsumedUnit": UNIT_HOURS}
        if worker is not None and worker.model:
            name = self.account.names.get(worker.project, worker.project)
            given |= {"ResourceId": worker.model, "ResourceType": "Model"}
            given |= {"SubAccountId": worker.project, "SubAccountName": name}
        cost = round(Fraction(quantity * piece.picousd, ONE))
        said = f"{decimal_text(quantity)} unit-hours of {piece.contract}, {status.lower()}"
        yield self._row(
            "capacity", line, 0, effective=effective, **{**of_it, **given}, ChargeCategory="Usage",
            ChargeFrequency="Usage-Based", PricingCategory="Committed", CapacityReservationStatus=status,
            CommitmentDiscountStatus=status, ChargeDescription=said, ChargePeriodStart=day[0],
            ChargePeriodEnd=day[1], PricingQuantity=quantity, CommitmentDiscountQuantity=quantity,
            ListCost=cost, ContractedCost=cost, Tags=_tags(contract=piece.contract),
            ContractApplied=_applied(piece.contract, piece.contract, quantity=quantity),
        )  # fmt: skip

    def _row(
        self,
        type_: str,
        line: str | None,
        billed: int,
        *,
        effective: int | None = None,
        counts: bool = True,
        **given: Any,
    ) -> Row:
        """`counts`: towards the minimum commitment, if the type of line does."""
        account = self.account
        if line is not None:
            self.exact[line] += billed
        if type_ not in {"tax", "credit"} and given.get("CommitmentDiscountStatus") is None:
            self.list_cost += int(given["ListCost"] or 0)
            self.contracted_cost += int(given["ContractedCost"] or 0)
        if account.commitment is not None and type_ in _COUNTED and counts and billed:
            given["ContractApplied"] = _applied(*account.commitment, cost=billed)
        return _EMPTY | {
            "BilledCost": billed,
            "EffectiveCost": billed if effective is None else effective,
            "BillingAccountId": account.tenant_id,
            "BillingAccountName": account.tenant_name,
            "BillingPeriodStart": account.from_ms,
            "BillingPeriodEnd": account.until_ms,
            "ChargePeriodStart": account.from_ms,
            "ChargePeriodEnd": account.until_ms,
            "InvoiceId": None if line is None else self.invoice_id,
            "InvoiceDetailId": line,
            "x_InvoiceLineId": line,
            "x_InvoiceLineType": type_,
            **dict.fromkeys(PROVIDERS, account.issuer),
            **given,
        }


@dataclass(slots=True)
class _Parts:
    """Divides a cost and a quantity by work, so that all parts add up to them."""

    cost: int
    quantity: int
    total: int
    done: int = 0
    given: tuple[int, int] = (0, 0)

    def take(self, work: int) -> tuple[int, int]:
        """The next part."""
        self.done += work
        upto = tuple(round(Fraction(whole * self.done, self.total)) for whole in (self.cost, self.quantity))
        part = upto[0] - self.given[0], upto[1] - self.given[1]
        self.given = upto[0], upto[1]
        return part


PROVIDERS: Final = (
    "InvoiceIssuerName", "ProviderName", "PublisherName", "ServiceProviderName", "HostProviderName",
)  # fmt: skip
_SOMEBODY: Final = Work("", 0, "", "", 0)
_EMPTY: Final[dict[str, Value]] = dict.fromkeys(
    column.name for version in Version for column in columns_of(version, Dataset.COST_AND_USAGE)
) | {
    "BillingCurrency": "USD",
    "ServiceCategory": "AI and Machine Learning",
    "ServiceName": "Model inference",
    "ServiceSubcategory": "Generative AI",
}


def _applied(contract: str, commitment: str, *, cost: int | None = None, quantity: int = 0) -> str:
    """What of a charge counts towards a commitment: its cost, or its quantity."""
    of_it = f'"ContractId":"{contract}","ContractCommitmentId":"{commitment}"'
    # Numbers as they are: a float would not hold them.
    how = (
        f'"ContractCommitmentAppliedQuantity":{decimal_text(quantity)},'
        f'"ContractCommitmentAppliedUnit":"{UNIT_HOURS}"'
        if cost is None
        else f'"ContractCommitmentAppliedCost":{decimal_text(cost)}'
    )
    return f'{{"Elements":[{{{of_it},{how}}}]}}'


def _tags(*, class_: str | None = None, contract: str | None = None) -> str | None:
    return json_text({"taas/service_tier": class_, "taas/contract": contract})


def json_text(members: Mapping[str, str | None]) -> str | None:
    """An object of those that are there; None if none is."""
    there = {name: value for name, value in members.items() if value is not None}
    return orjson.dumps(there).decode() if there else None
