"""The lines of an invoice and what they add up to. Pure: it is given what was used and agreed.

Each line has an exact amount and is rounded once, to whole cents, half to even; sums are of rounded lines. So
a reader can add up what is printed. The exact amounts of usage are those of the ledger.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from billing.catalogue.money import PICOUSD_PER_USD, ZERO, Money, price_string

CENT_PICOUSD: Final = PICOUSD_PER_USD // 100
ROUNDING: Final = "each line to 0.01 USD, half to even"
_MS_PER_HOUR: Final = 3_600_000
_MU: Final = 1_000


def to_cents(picousd: Fraction | int) -> Money:
    """Whole cents, half to even."""
    return Money(round(Fraction(picousd) / CENT_PICOUSD) * CENT_PICOUSD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """Tokens of one kind at one price (pico-dollars each). `period`: in which they were used, by its name."""

    period: str
    project: str
    model: str
    class_: str
    contract: str | None
    price_id: int
    kind: str
    tokens: int
    picousd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """Capacity of a contract at one rate and one price in [from, until): milliunits per second, pico-dollars
    for a unit per second and hour.
    """

    contract: str
    from_ms: int
    until_ms: int
    mu_s: int
    picousd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Short:
    """What a contract was short of in [from, until), in milliunits, and the percent of its price that is
    given back.
    """

    contract: str
    from_ms: int
    until_ms: int
    mu: int
    picousd: int
    percent: int


@dataclass(frozen=True, slots=True)
class Tier:
    """So much off (percent) what is used beyond this amount."""

    above: Money
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a tenant is billed in a period."""

    day: int = 1
    tax_name: str | None = None
    tax_basis_points: int = 0
    commitment: Money = ZERO
    tiers: tuple[Tier, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """What is charged, or given back if it is negative. `what` says of what, as the document has it. `exact`
    in pico-dollars.
    """

    type: str
    what: Mapping[str, Any]
    exact: Fraction
    amount: Money

    @classmethod
    def of(cls, type: str, what: Mapping[str, Any], exact: Fraction | int) -> "Line":
        return cls(type, what, Fraction(exact), to_cents(exact))


@dataclass(frozen=True, slots=True)
class Bill:
    """The lines and their sums. `tax` is rounded once, of `net`."""

    lines: tuple[Line, ...]
    net: Money
    tax: Money

    @property
    def total(self) -> Money:
        return self.net + self.tax

    def of_type(self, *types: str) -> Money:
        """The sum of rounded lines of these types."""
        return sum((line.amount for line in self.lines if line.type in types), ZERO)


def make_bill(
    used: Iterable[Used], reserved: Iterable[Reserved], short: Iterable[Short], terms: Terms
) -> Bill:
    """All lines in their order: usage, its discount, capacity, what was short of it, what is left of the
    commitment.
    """
    usage = [_usage(each) for each in used]
    lines = [*usage, *_discounts(sum((line.exact for line in usage), Fraction(0)), terms.tiers)]
    lines += [_capacity(each) for each in reserved]
    spent = sum((line.amount for line in lines), ZERO)
    lines += [_sla(each) for each in short]
    if terms.commitment > spent:
        left = terms.commitment - spent
        lines.append(Line.of("commitment", {"committed": str(terms.commitment)}, left.picousd))
    net = sum((line.amount for line in lines), ZERO)
    return Bill(tuple(lines), net, tax_on(net, terms))


def tax_on(net: Money, terms: Terms) -> Money:
    """Rounded once. There is none on a negative amount of an invoice."""
    return to_cents(Fraction(max(0, net.picousd) * terms.tax_basis_points, 10_000))


def _usage(each: Used) -> Line:
    what = {
        "period": each.period, "project": each.project, "model": each.model, "class": each.class_,
        "contract": each.contract, "kind": each.kind, "price_id": each.price_id, "tokens": each.tokens,
        "price": price_string(each.picousd),
    }  # fmt: skip
    return Line.of("usage", what, each.tokens * each.picousd)


def _discounts(exact: Fraction, tiers: Sequence[Tier]) -> list[Line]:
    """Each tier takes off what is above it, and below the next one."""
    ordered = sorted(tiers, key=lambda tier: tier.above)
    found = []
    for index, tier in enumerate(ordered):
        ends = Fraction(ordered[index + 1].above.picousd) if index + 1 < len(ordered) else exact
        part = min(exact, ends) - tier.above.picousd
        if part > 0 and tier.percent:
            what = {"above": str(tier.above), "percent": tier.percent, "of": exact_string(part)}
            found.append(Line.of("discount", what, -part * tier.percent / 100))
    return found


def _capacity(each: Reserved) -> Line:
    what = {
        "contract": each.contract, "from_ms": each.from_ms, "until_ms": each.until_ms,
        "milliunits_per_second": each.mu_s, "price_per_unit_hour": str(Money(each.picousd)),
    }  # fmt: skip
    return Line.of("capacity", what, capacity_amount(each))


def capacity_amount(each: Reserved) -> Fraction:
    """In pico-dollars."""
    return Fraction(each.mu_s * (each.until_ms - each.from_ms) * each.picousd, _MU * _MS_PER_HOUR)


def _sla(each: Short) -> Line:
    what = {
        "contract": each.contract, "from_ms": each.from_ms, "until_ms": each.until_ms,
        "milliunits_short": each.mu, "price_per_unit_hour": str(Money(each.picousd)), "percent": each.percent,
    }  # fmt: skip
    return Line.of("sla_credit", what, -short_amount(each.mu, each.picousd, each.percent))


def short_amount(mu: int, picousd: int, percent: int) -> Fraction:
    """What is given back of the price of a unit-hour for so many milliunits, in pico-dollars."""
    return Fraction(mu * picousd * percent, _MU * 3_600 * 100)


def exact_string(picousd: Fraction) -> str:
    """In USD; what is less than a pico-dollar is rounded half to even."""
    return str(Money(round(picousd)))
