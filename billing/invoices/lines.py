"""The lines of an invoice and what they add up to. Pure: it is given what was used and agreed.

Each line has an exact amount and is rounded once, to whole cents, half to even; sums are of rounded lines. So
a reader can add up what is printed. The exact amounts of usage are those of the ledger.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

from billing.catalogue.money import PICOUSD_PER_USD, ZERO, Money, price_string
from billing.moments import HOUR_MS
from billing.wire.invoice_lines import LINE_TYPES

CENT_PICOUSD: Final = PICOUSD_PER_USD // 100
ROUNDING: Final = "each line to 0.01 USD, half to even"
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
    """How a tenant is billed in a period. `prorated`: the period has so many days instead of so many, and the
    commitment and where tiers begin are less, or more, by that.
    """

    day: int = 1
    tax_name: str | None = None
    tax_basis_points: int = 0
    commitment: Money = ZERO
    tiers: tuple[Tier, ...] = ()
    prorated: tuple[int, int] | None = None

    def for_days(self, days: int, of_days: int) -> "Terms":
        """Of a period that is shorter or longer than a month because it begins on another day from then on;
        to the cent.
        """
        if days == of_days:
            return self

        def part(amount: Money) -> Money:
            return to_cents(Fraction(amount.picousd * days, of_days))

        return replace(
            self,
            commitment=part(self.commitment),
            tiers=tuple(Tier(part(tier.above), tier.percent) for tier in self.tiers),
            prorated=(days, of_days),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """A period that is on an invoice already, of which usage came late. `billed`: its exact usage on invoices
    so far, in pico-dollars; `tiers` are its own; `unused`: what its commitment has cost that no usage has
    drawn on.
    """

    period: str
    billed: int
    tiers: tuple[Tier, ...]
    unused: Money


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
        return _sum(line for line in self.lines if line.type in types)


def make_bill(
    used: Iterable[Used],
    reserved: Iterable[Reserved],
    short: Iterable[Short],
    terms: Terms,
    earlier: Sequence[Earlier] = (),
) -> Bill:
    """All lines in their order: usage, its discount, what the commitments of earlier periods cover of it,
    capacity, what was short of it, what is left of the commitment.

    Usage that came late costs what it would have cost in time: it counts in the tiers of its own period, and
    draws on what that one's commitment has cost. It counts for no other period.
    """
    usage = [_usage(each) for each in used]
    discounts: list[Line] = []
    covered: list[Line] = []
    for each in earlier:
        late = [line for line in usage if line.what["period"] == each.period]
        off = _discounts(late, each.tiers, each.period, each.billed)
        discounts += off
        if (drawn := min(each.unused, _sum([*late, *off]))) > ZERO:
            covered.append(Line.of("covered", {"period": each.period}, -drawn.picousd))
    periods = {each.period for each in earlier}
    own = [line for line in usage if line.what["period"] not in periods]
    lines = [*usage, *discounts, *_discounts(own, terms.tiers), *covered]
    lines += [*map(_capacity, reserved), *map(_sla, short)]
    counted = (
        line for line in lines if LINE_TYPES[line.type].counts and line.what.get("period") not in periods
    )
    if (left := terms.commitment - _sum(counted)) > ZERO:
        lines.append(Line.of("commitment", {"committed": str(terms.commitment)}, left.picousd))
    net = _sum(lines)
    return Bill(tuple(lines), net, tax_on(net, terms))


def _sum(lines: Iterable[Line]) -> Money:
    return sum((line.amount for line in lines), ZERO)


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


def _discounts(
    usage: Iterable[Line], tiers: Sequence[Tier], period: str | None = None, billed: int = 0
) -> list[Line]:
    """Each tier takes off what is above it, and below the next one. `period`: of usage that came late, where
    `billed` of it is on earlier invoices.
    """
    ends = sum((line.exact for line in usage), Fraction(billed))
    ordered = sorted(tiers, key=lambda tier: tier.above)
    found = []
    for index, tier in enumerate(ordered):
        below = Fraction(ordered[index + 1].above.picousd) if index + 1 < len(ordered) else ends
        part = min(ends, below) - max(billed, tier.above.picousd)
        if part > 0 and tier.percent:
            what = {
                "period": period, "above": str(tier.above), "percent": tier.percent, "of": exact_string(part),
            }  # fmt: skip
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
    return Fraction(each.mu_s * (each.until_ms - each.from_ms) * each.picousd, _MU * HOUR_MS)


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
