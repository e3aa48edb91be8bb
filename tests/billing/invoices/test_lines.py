"""The lines of an invoice: exact amounts, rounded once, and what is worked out from them."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.catalogue.money import ZERO, Money
from billing.invoices.close import postings_of
from billing.invoices.lines import (
    Bill,
    Earlier,
    Line,
    Reserved,
    Short,
    Terms,
    Tier,
    Used,
    make_bill,
    to_cents,
)
from billing.ledger.accounts import Account
from billing.wire.invoice_lines import LINE_TYPES
from tests.examples import examples

USD = 10**12
HOUR_MS = 3_600_000


def used(tokens: int, picousd: int = 600_000, **changes: Any) -> Used:
    values = {
        "period": "2026-11", "project": "prj_a", "model": "m", "class_": "on_demand", "contract": None,
        "price_id": 1, "kind": "output", "tokens": tokens, "picousd": picousd,
    }  # fmt: skip
    return Used(**values | changes)


def usd(text: str) -> Money:
    return Money.parse(text)


@pytest.mark.parametrize(
    ("picousd", "cents"),
    [(5 * 10**9, 0), (15 * 10**9, 2), (25 * 10**9, 2), (5 * 10**9 + 1, 1), (-15 * 10**9, -2), (10**10, 1)],
)
def test_half_a_cent_goes_to_the_even_one(picousd: int, cents: int) -> None:
    assert to_cents(picousd) == Money(cents * 10**10)


def test_a_bill_by_hand() -> None:
    """2,000 million tokens at 0.60 are 1,200; 10 % off what is above 1,000 are 20. 50 units for 10 hours at
    0.5 are 250. 36,000,000 milliunits short are 10 unit-hours: 5 USD, given back twice over. 19 % of 1,420.
    """
    bill = make_bill(
        [used(2_000_000_000)],
        [Reserved(contract="con_1", from_ms=0, until_ms=10 * HOUR_MS, mu_s=50_000, picousd=USD // 2)],
        [Short(contract="con_1", from_ms=0, until_ms=HOUR_MS, mu=36_000_000, picousd=USD // 2, percent=200)],
        Terms(tax_name="VAT", tax_basis_points=1900, tiers=(Tier(usd("1000"), 10),)),
    )
    assert [(line.type, str(line.amount)) for line in bill.lines] == [
        ("usage", "1200.00"), ("discount", "-20.00"), ("capacity", "250.00"), ("sla_credit", "-10.00"),
    ]  # fmt: skip
    assert (str(bill.net), str(bill.tax), str(bill.total)) == ("1420.00", "269.80", "1689.80")


def test_what_is_left_of_a_commitment_is_due() -> None:
    """What was short does not count: it is given back of what was paid."""
    short = Short(contract="con_1", from_ms=0, until_ms=1, mu=3_600_000, picousd=USD, percent=100)
    bill = make_bill([used(10**9)], [], [short], Terms(commitment=usd("1000")))
    assert [(line.type, str(line.amount)) for line in bill.lines] == [
        ("usage", "600.00"), ("sla_credit", "-1.00"), ("commitment", "400.00"),
    ]  # fmt: skip
    assert [line.type for line in make_bill([used(10**10)], [], [], Terms(commitment=usd("1000"))).lines] == [
        "usage"
    ]


@settings(max_examples=examples(100))
@given(
    cents=st.lists(st.integers(0, 10**5), min_size=2, max_size=5),
    tiers=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 100)), max_size=3, unique_by=lambda t: t[0]),
    commitment=st.integers(0, 10**5),
)
def test_usage_that_comes_late_costs_what_it_would_have_cost_in_time(
    cents: list[int], tiers: list[tuple[int, int]], commitment: int
) -> None:
    terms = Terms(
        tiers=tuple(Tier(Money(above * USD), percent) for above, percent in tiers),
        commitment=Money(commitment * 10**10),
    )
    in_time = make_bill([used(sum(cents), 10**10)], [], [], terms)
    bill = make_bill([used(cents[0], 10**10)], [], [], terms)
    net, unused, billed = bill.net, bill.of_type("commitment"), cents[0]
    for late in cents[1:]:
        earlier = Earlier(period="2026-11", billed=billed * 10**10, tiers=terms.tiers, unused=unused)
        # It counts neither in the tiers nor for the commitment of the invoice that it is on.
        other = Terms(tiers=(Tier(ZERO, 50),), commitment=usd("7"))
        bill = make_bill([used(late, 10**10)], [], [], other, [earlier])
        assert bill.of_type("commitment") == usd("7")
        net, unused = net + bill.net - usd("7"), unused + bill.of_type("covered")
        billed += late
        assert unused >= ZERO
    # Each line of a discount is rounded.
    assert abs(net.picousd - in_time.net.picousd) <= 10**10 * len(cents) * (len(tiers) + 1)
    assert abs(unused.picousd - in_time.of_type("commitment").picousd) <= 10**10 * len(cents) * (
        len(tiers) + 1
    )


def test_tiers_take_off_each_its_part() -> None:
    tiers = (Tier(usd("500"), 50), Tier(usd("100"), 10), Tier(usd("550"), 0))
    bill = make_bill([used(10**9)], [], [], Terms(tiers=tiers))
    assert [(line.what.get("above"), str(line.amount)) for line in bill.lines[1:]] == [
        ("100.00", "-40.00"), ("500.00", "-25.00"),
    ]  # fmt: skip


def test_there_is_no_tax_on_a_bill_below_nothing() -> None:
    short = Short(contract="con_1", from_ms=0, until_ms=1, mu=3_600_000, picousd=USD, percent=100)
    bill = make_bill([], [], [short], Terms(tax_basis_points=1900))
    assert (bill.net, bill.tax, bill.total) == (usd("-1.00"), ZERO, usd("-1.00"))


@settings(max_examples=examples(100))
@given(
    counts=st.lists(st.tuples(st.integers(1, 10**12), st.integers(0, 10**9)), max_size=20),
    tiers=st.lists(
        st.tuples(st.integers(0, 10**9), st.integers(0, 100)), max_size=3, unique_by=lambda t: t[0]
    ),
    commitment=st.integers(0, 10**8),
    basis_points=st.integers(0, 10_000),
)
def test_sums_are_of_what_is_printed_and_each_line_is_within_half_a_cent(
    counts: Any, tiers: Any, commitment: int, basis_points: int
) -> None:
    terms = Terms(
        tiers=tuple(Tier(Money(above * USD), percent) for above, percent in tiers),
        commitment=Money(commitment * 10**10),
        tax_basis_points=basis_points,
    )
    bill = make_bill([used(tokens, price) for tokens, price in counts], [], [], terms)
    assert bill.net == sum((line.amount for line in bill.lines), ZERO)
    assert all(abs(line.exact - line.amount.picousd) <= Fraction(10**10, 2) for line in bill.lines)
    assert all(line.amount.picousd % 10**10 == 0 for line in bill.lines)
    assert bill.net >= terms.commitment
    exact = sum(tokens * price for tokens, price in counts)
    assert sum(line.exact for line in bill.lines if line.type == "usage") == exact
    assert -exact <= sum(line.exact for line in bill.lines if line.type == "discount") <= 0


def test_no_line_is_left_out_of_the_ledger_for_its_type() -> None:
    bill = Bill((Line.of("gift", {}, USD),), usd("1"), ZERO)
    draft: Any = SimpleNamespace(bill=bill, credits=())
    with pytest.raises(KeyError, match="gift"):
        list(postings_of("ten_a", draft))
    assert {type_.account for type_ in LINE_TYPES.values()} <= {None, *Account}
