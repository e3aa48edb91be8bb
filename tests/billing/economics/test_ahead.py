"""What is expected, would be otherwise, and can be taken back: worked out by hand, and conserved."""

from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.contracts.position import Holding, Position
from billing.contracts.terms import Contract, Step, Terms
from billing.contracts.timeline import FOREVER_MS
from billing.economics.expected import Asked, CapacityRate, Demand, PoolOutlook
from billing.economics.figures import Figures
from billing.economics.machine_time import PoolHistory
from billing.economics.machines import MachineTerms
from billing.economics.shown import shown_hours
from billing.economics.takeback import assured, most_to_take, take_backs
from billing.economics.whatif import Changes, Ending, Move, by, outcome
from billing.refusals import Conflict
from tests.examples import examples

HOUR = 3_600_000
DAY = 24 * HOUR
USD = 10**12
T0 = 1_798_761_600_000  # 2027-01-01T00:00:00Z
APRIL, JULY = T0 + 90 * DAY, T0 + 181 * DAY
# For each unit-hour of a contract; all of it is given back for what is short.
TWO_CENTS = CapacityRate(*[Fraction(2 * USD, 100 * 3_600_000_000)] * 2)
AS_IT_IS = Changes()
USES = ("external", "internal", "research", "recsys", "idle")
# A unit-hour is 3,600,000 mu; at this price it earns 0.01 USD.
CENT_AN_HOUR = Fraction(USD, 100 * 3_600_000)


def contract(name: str, units: int, years: int = 3, notice_days: int = 90) -> Contract:
    terms = Terms(
        tenant_id="ten_a", pool="p", steps=(Step(T0, units * 1000),), starts_ms=T0,
        ends_ms=T0 + years * 365 * DAY, minimum_until_ms=T0, tenant_notice_days=notice_days,
        operator_notice_days=notice_days,
    )  # fmt: skip
    return Contract(
        contract_id=name, terms=terms, state="active", notice_by=None, notice_given_ms=None,
        effective_end_ms=terms.ends_ms, created_ms=T0,
    )  # fmt: skip


def pool(*signed: Contract, machines: int = 4, **changes: Any) -> PoolOutlook:
    """Machines of 1,000 units/s for 2 USD an hour, half of each contract used; others ask 800 units/s."""
    made = PoolOutlook(
        history=PoolHistory(
            pool="p", own_use="external", sizes=[(FOREVER_MS, machines)], measured=[(0, 1_000_000)],
            terms=[MachineTerms(pool="p", from_ms=0, cost_picousd_hour=2 * USD)],
        ),
        position=Position(
            pool="p", instances=machines, headroom_permille=0, set_aside_mu_s=0, capacity_mu_s=1_000_000,
            holdings=tuple(map(Holding.of, signed)),
        ),
        uses={each.contract_id: "external" for each in signed},
        held={
            each.contract_id: Asked(use="external", units=Fraction(1, 2), earned=CENT_AN_HOUR)
            for each in signed
        },
        shared=[Asked(use="internal", units=Fraction(800_000), earned=CENT_AN_HOUR, listed=CENT_AN_HOUR)],
    )  # fmt: skip
    return replace(made, **changes)


def total(outlook: PoolOutlook, edges: list[int], changes: Changes = AS_IT_IS) -> Figures:
    return Figures.total(outcome({"p": outlook}, edges, changes).values())


def test_a_quarter_to_come_by_hand() -> None:
    """2,160 hours of four machines: 8,640,000 unit-hours for 17,280 USD. The contract holds 2,000 × 2,160 =
    4,320,000 and uses half, others use 800 × 2,160 = 1,728,000 of the 4,320,000 left: together 3,888,000 for
    38,880 USD, and 2,592,000 idle.
    """
    found = total(pool(contract("c", 2000)), [T0, APRIL])
    assert (found.revenue, found.cost) == (38_880 * USD, 17_280 * USD)
    assert [shown_hours(each) for each in (found.calibrated, found.sold, found.lent, found.idle)] == [
        "8640000", "6048000", "0", "2592000"
    ]  # fmt: skip


def test_a_reclaim_that_breaks_costs_what_is_cut_and_what_others_lose() -> None:
    """Three of four machines leave in April: 1,000 units/s for a contract of 2,000 that uses 1,000, so 1,000
    are cut and nothing of its use is lost; the others' 800 are: 91 days × 24 × 800 × 0.01 = 17,472 USD. At
    0.02 USD a unit-hour the credit is 91 × 24 × 1,000 × 0.02 = 43,680 USD. Research bears 3 × 2 × 2,184.
    """
    price = {"c": TWO_CENTS}
    outlook, edges = pool(contract("c", 2000), capacity=price), [T0, APRIL, JULY]
    move = Move(pool="p", instances=3, from_use=None, to_use="research", from_ms=APRIL)
    before = outcome({"p": outlook}, edges)
    after = outcome({"p": outlook}, edges, Changes(moves=(move,)))
    was, now = by(before, "quarter"), by(after, "quarter")
    assert was["2027-Q1",] == now["2027-Q1",]
    lost, left = was["2027-Q2",], now["2027-Q2",]
    assert lost.revenue_tokens - left.revenue_tokens == 17_472 * USD
    assert left.revenue_capacity == lost.revenue_capacity == 2184 * 2000 * 2 * USD // 100
    assert (lost.credits, left.credits) == (0, 43_680 * USD)
    assert left.commitment_short_mu == 91 * 24 * 1000 * 3_600_000
    assert by(after, "use")["research",].cost_machines == 3 * 2 * 2184 * USD
    assert lost.cost == left.cost


def test_what_contracts_leave_idle_is_lent_to_others() -> None:
    """One machine, a contract of all of it that uses half: others get 500 of the 800 that they ask."""
    found = total(pool(contract("c", 1000), machines=1), [T0, T0 + 10 * HOUR])
    assert [shown_hours(each) for each in (found.sold, found.lent, found.idle)] == ["5000", "5000", "0"]
    assert found.revenue == 100 * USD


@pytest.mark.parametrize(
    ("demand", "revenue"),
    [
        # Of 18 USD in an hour: 1,000 by contract and 800 beside it.
        (Demand(), 1800),
        (Demand(price=Fraction(9, 10)), 1620),
        (Demand(work=Fraction(3, 2)), 2700),
        # No more than there is: the contract uses all of its 2,000, others at most the rest.
        (Demand(work=Fraction(10)), 4000),
        (Demand(utilization=Fraction(6, 10)), 2400),
    ],
)
def test_other_prices_and_other_work(demand: Demand, revenue: int) -> None:
    found = total(pool(contract("c", 2000)), [T0, T0 + HOUR], Changes(demand=demand))
    assert found.revenue == revenue * USD // 100


def test_a_notice_ends_what_a_contract_earns() -> None:
    ending = Ending(contract="c", ends_ms=APRIL)
    found = by(
        outcome({"p": pool(contract("c", 2000))}, [T0, APRIL, JULY], Changes(endings=(ending,))), "quarter"
    )
    assert found["2027-Q2",].revenue == 800 * 91 * 24 * USD // 100
    assert found["2027-Q2",].commitment_total is None


MOVES = st.lists(
    st.builds(
        Move, pool=st.just("p"), instances=st.integers(1, 3), from_use=st.none() | st.sampled_from(USES),
        to_use=st.none() | st.sampled_from(USES), from_ms=st.integers(T0, APRIL),
        until_ms=st.just(FOREVER_MS) | st.integers(APRIL + 1, JULY),
    ).filter(lambda move: move.from_use != move.to_use),
    max_size=4,
)  # fmt: skip


@settings(max_examples=examples(200))
@given(MOVES)
def test_moving_machines_conserves(moves: list[Move]) -> None:
    """Between any uses: the same machines, cost and capacity in all; or it says that they are not there."""
    outlook, edges = pool(contract("c", 500)), [T0, APRIL, JULY]
    before = total(outlook, edges)
    try:
        found = outcome({"p": outlook}, edges, Changes(moves=tuple(moves)))
    except Conflict:
        return
    after = Figures.total(found.values())
    for figure in ("machine_ms", "calibrated", "cost_machines"):
        assert getattr(after, figure) == getattr(before, figure)
    groups: defaultdict[str, int] = defaultdict(int)
    for (_, _, cell), figures in found.items():
        groups[cell.use] += figures.machine_ms
    assert min(groups.values()) >= 0


def test_machines_that_are_not_there_do_not_move() -> None:
    for move in (
        Move(pool="p", instances=5, from_use=None, to_use="research", from_ms=T0),
        Move(pool="p", instances=1, from_use="research", to_use=None, from_ms=T0),
    ):
        with pytest.raises(Conflict):
            total(pool(), [T0, APRIL], Changes(moves=(move,)))


def test_a_three_year_contract_with_90_days_notice_is_worth_at_least_a_quarter() -> None:
    """Notice of either side on the day of signing ends it after 90 days, which are the first quarter of 2027:
    2,160 hours × 2,000 units/s = 4,320,000 unit-hours. At 0.02 USD each for capacity they are 86,400 USD, and
    half of them used at 0.01 are 21,600. Without notice it would be three years: 26,280 hours.
    """
    signed = contract("c", 2000)
    outlook = pool(signed, capacity={"c": TWO_CENTS})
    found = assured(outlook, signed, T0)
    assert found.until_ms == APRIL
    assert shown_hours(found.capacity) == "4320000"
    assert found.revenue == (86_400 + 21_600) * USD
    quarter = by(outcome({"p": outlook}, [T0, APRIL]), "contract")["c",]
    assert found.revenue >= quarter.revenue
    # As a part of three years: 90 of 1,095 days.
    assert Fraction(found.capacity, 2_000_000 * 3 * 365 * DAY) == Fraction(90, 1095)


def test_what_can_be_taken_back_by_when_and_for_how_much() -> None:
    """Of four machines two are free of the contract of 2,000, which by notice ends in 90 days. Two taken at
    once cost others nothing: 2,000 − 1,000 used leave 1,000 for their 800. All four, from April on, cost
    1,800 × 91 × 24 × 0.01 = 39,312 USD.
    """
    signed = contract("c", 2000)
    now, later = take_backs(pool(signed), [signed], [T0, APRIL, JULY], T0)
    assert [(each.machines, each.notices, each.lost) for each in now] == [(2, (), 0), (2, (), 0)]
    without, with_notice = later
    assert (without.machines, without.lost) == (2, 0)
    assert (with_notice.machines, with_notice.notices) == (4, ("c",))
    assert with_notice.lost == 39_312 * USD
    assert with_notice.cost == 4 * 2 * 2184 * USD


@given(st.lists(st.integers(1, 1500), max_size=3), st.integers(0, 5))
def test_the_most_that_can_be_taken_is_what_is_not_needed(units: list[int], machines: int) -> None:
    signed = [contract(f"c{number}", each) for number, each in enumerate(units)]
    position = pool(*signed, machines=machines).position
    free = machines - -(-sum(units) // 1000)
    # What does not fit anyway is not made worse by taking nothing.
    assert most_to_take(position, T0) == max(0, free)
