"""The division of a pool's month: nothing is lost, nothing is there twice."""

from collections import defaultdict
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.contracts.timeline import FOREVER_MS
from billing.economics.division import divided
from billing.economics.figures import Figures
from billing.economics.machine_time import Away, PoolHistory, machine_time
from billing.economics.machines import MachineTerms
from billing.economics.months import Cell, Held, MachineTime, PoolMonth, Used, share_out
from billing.economics.shown import shown
from tests.examples import examples

HOUR = 3_600_000
USD = 10**12
USES = ("external", "internal", "research", "recsys", "idle")
AMOUNT = st.integers(0, 10**15)
SMALL = st.integers(0, 50)

TIMES = st.builds(
    MachineTime,
    machine_ms=st.integers(1, 10**15),
    cost=AMOUNT,
    gpu_ms=AMOUNT,
    milliwatt_ms=AMOUNT,
    capacity=AMOUNT,
)
BY_USE = st.dictionaries(st.sampled_from(USES), TIMES, max_size=3)
HELD = st.lists(
    st.builds(
        Held, contract=st.sampled_from(["c1", "c2", "c3"]), use=st.sampled_from(USES[:2]), total=AMOUNT,
        used_mu=st.none() | AMOUNT, lent_mu=st.none() | SMALL | AMOUNT, capacity_picousd=AMOUNT,
    ),
    max_size=3, unique_by=lambda held: held.contract,
)  # fmt: skip
USED = st.lists(
    st.builds(
        Used, use=st.sampled_from(USES[:2]), model=st.sampled_from(["m1", "m2", ""]),
        contract=st.sampled_from(["", "", "c1", "c9"]), units_mu=SMALL | AMOUNT,
        list_picousd=st.none() | AMOUNT, revenue=AMOUNT, cost_providers=st.none() | AMOUNT,
    ),
    max_size=5,
)  # fmt: skip
MONTHS = st.builds(PoolMonth, own=BY_USE, taken=BY_USE, held=HELD, used=USED)


@settings(max_examples=examples(600))
@given(MONTHS)
def test_what_is_divided_is_all_there_is(month: PoolMonth) -> None:
    """Sold + lent + idle + other uses = calibrated; cost, time and revenue likewise."""
    total = Figures.total(share_out(month, month.list_price).values())
    own = sum(month.own.values(), MachineTime())
    taken = sum(month.taken.values(), MachineTime())
    assert min(total.sold, total.lent, total.idle, total.other) >= 0
    assert total.sold + total.lent + total.idle == own.capacity
    assert total.other == taken.capacity
    assert total.machine_ms == own.machine_ms + taken.machine_ms
    assert (total.gpu_ms or 0) == own.gpu_ms + taken.gpu_ms
    assert (total.milliwatt_ms or 0) == own.milliwatt_ms + taken.milliwatt_ms
    assert (total.cost_machines or 0) == round(Fraction(own.cost + taken.cost, HOUR))
    assert total.revenue == sum(each.revenue for each in month.used) + sum(
        each.capacity_picousd for each in month.held
    )
    assert total.used_mu == sum(each.units_mu for each in month.used)
    if month.list_price is not None:
        assert (total.list_picousd or 0) == round(total.calibrated * month.list_price)


@settings(max_examples=examples(300))
@given(MONTHS, st.sampled_from(Cell._fields))
def test_groups_add_up_to_the_total(month: PoolMonth, by: str) -> None:
    cells = share_out(month, month.list_price)
    groups: defaultdict[str, Figures] = defaultdict(Figures)
    for cell, figures in cells.items():
        groups[getattr(cell, by)] += figures
    assert Figures.total(groups.values()) == Figures.total(cells.values())


@given(st.integers(0, 10**30), st.dictionaries(st.integers(), st.integers(0, 10**20), min_size=1))
def test_parts_differ_from_their_share_by_less_than_one(total: int, weights: dict[int, int]) -> None:
    weights[-1] = weights.get(-1, 0) + 1
    parts = divided(total, weights)
    assert sum(parts.values()) == total
    for name, part in parts.items():
        assert abs(part - Fraction(total * weights[name], sum(weights.values()))) < 1


AWAY = st.lists(
    st.builds(
        lambda use, count, from_ms, length: Away(
            use=use, instances=count, from_ms=from_ms, until_ms=from_ms + length
        ),
        st.sampled_from(USES), st.integers(1, 4), st.integers(0, 100 * HOUR), st.integers(1, 200 * HOUR),
    ),
    max_size=2,
)  # fmt: skip
TERMS = st.lists(
    st.builds(
        MachineTerms, pool=st.just("p"), from_ms=st.integers(0, 100 * HOUR),
        cost_picousd_hour=st.none() | AMOUNT, gpus=st.none() | st.integers(0, 8),
        watts=st.none() | st.integers(0, 10_000), use=st.sampled_from([None, *USES]),
    ),
    max_size=3,
).map(lambda some: sorted(some, key=lambda each: each.from_ms))  # fmt: skip


@settings(max_examples=examples(300))
@given(AWAY, TERMS, st.integers(8, 12), st.integers(0, 150 * HOUR), st.integers(0, 100 * HOUR))
def test_moving_machines_changes_their_use_and_nothing_else(
    away: list[Away], terms: list[MachineTerms], machines: int, from_ms: int, length: int
) -> None:
    """Whatever others have, the machines, their cost, power and capacity are the same in all."""

    def all_of(moved: list[Away]) -> MachineTime:
        history = PoolHistory(
            pool="p", own_use="external", sizes=[(50 * HOUR, machines + 1), (FOREVER_MS, machines)],
            measured=[(0, 1000), (70 * HOUR, 3000)], terms=terms, away=moved,
        )  # fmt: skip
        own, taken = machine_time(history, from_ms, from_ms + length)
        return sum([*own.values(), *taken.values()], MachineTime())

    assert all_of(away) == all_of([])


def test_a_month_by_hand() -> None:
    """Two machines of 1,000 units/s for 100 hours: 200,000 unit-hours, at 3 USD an hour 600 USD.

    A contract of 500 units/s holds 50,000 unit-hours, lends 10,000 of them and was used for 20,000: it bears
    150 USD, of which the model 60 and nobody's 90 (60 unused and 30 lent). Requests without a contract used
    30,000, of these 10,000 of what was lent: they bear 20,000, 60 USD. 130,000 are idle: 390 USD.
    150 + 60 + 390 = 600.
    """
    unit_hour = 1000 * HOUR
    month = PoolMonth(
        own={"external": MachineTime(
            machine_ms=200 * HOUR, cost=200 * HOUR * 3 * USD, gpu_ms=1600 * HOUR,
            milliwatt_ms=200 * HOUR * 10_000 * 1250, capacity=200_000 * unit_hour,
        )},
        taken={},
        held=[Held(contract="c", use="external", total=50_000 * unit_hour, used_mu=20_000 * HOUR,
                   lent_mu=10_000 * HOUR)],
        used=[
            Used(use="external", model="m", contract="c", units_mu=20_000 * HOUR, list_picousd=40 * USD,
                 revenue=20 * USD),
            Used(use="internal", model="m", units_mu=30_000 * HOUR, list_picousd=60 * USD, revenue=60 * USD),
        ],
    )  # fmt: skip
    assert month.list_price == Fraction(100 * USD, 50_000 * unit_hour)  # 0.002 USD a unit-hour
    cells = share_out(month, month.list_price)
    costs = {cell: (figures.cost_machines or 0) / USD for cell, figures in cells.items()}
    assert costs == {
        Cell("external", "m", "c"): 60, Cell("external", "", "c"): 90, Cell("internal", "m"): 60,
        Cell("external"): 390,
    }  # fmt: skip
    total = shown(Figures.total(cells.values()))
    assert total["unit_hours"] == {
        "calibrated": "200000", "sold": "60000", "lent": "10000", "idle": "130000", "other": "0",
        "used": "50000",
    }  # fmt: skip
    assert total["commitment"] == {
        "total_commitment": "50000", "used_commitment": "20000", "unused_commitment": "30000",
        "short_commitment": None, "utilization_percentage": "40",
    }  # fmt: skip
    # 80 USD of 200,000 × 0.002 = 400.
    assert total["economic_utilization_percentage"] == "20"
    # 80 and 600 USD over 1,600 GPU-hours; over 200 × 10 kW × 1.25 = 2,500 kWh; these are 2.5/8,760 MW-years.
    assert total["per_gpu_hour"] == {"revenue": "0.05", "cost": "0.375", "margin": "-0.325"}
    assert total["per_kwh"] == {"revenue": "0.032", "cost": "0.24", "margin": "-0.208"}
    assert total["per_mw_year"] == {"revenue": "280320", "cost": "2102400", "margin": "-1822080"}


def test_200_megawatts_at_50_billion_a_gigawatt_year_are_10_billion_a_year() -> None:
    """50 × 10^9 USD / GW-year × 0.2 GW × 1 year = 10 × 10^9 USD. As machines: 20,000 of 8 kW with an overhead
    of 1.25 draw 20,000 × 8 × 1.25 = 200,000 kW = 200 MW.
    """
    year = 365 * 24 * HOUR
    power = MachineTime(machine_ms=20_000 * year, milliwatt_ms=20_000 * year * 8_000 * 1250, capacity=1)
    used = [Used(use="external", model="m", units_mu=1, revenue=10 * 10**9 * USD)]
    total = Figures.total(share_out(PoolMonth({"external": power}, {}, used=used), None).values())
    # A GW-year is a thousand MW-years.
    assert shown(total)["per_mw_year"]["revenue"] == str(50 * 10**9 // 1000)
    assert shown(total)["kwh"] == str(200_000 * 8760)
    assert shown(total)["revenue"] == "10000000000.00"


def test_what_was_not_reported_is_not_zero() -> None:
    unknown = MachineTime(
        machine_ms=HOUR, cost_unknown_ms=HOUR, gpus_unknown_ms=HOUR, power_unknown_ms=HOUR,
        capacity_unknown_ms=HOUR,
    )  # fmt: skip
    free = MachineTime(machine_ms=HOUR, capacity=1)
    said = shown(Figures.total(share_out(PoolMonth({"external": unknown}, {}), None).values()))
    assert (said["cost"], said["margin"], said["gpu_hours"], said["kwh"]) == (None, None, None, None)
    assert said["unknown"]["cost_machine_hours"] == "1"
    said = shown(Figures.total(share_out(PoolMonth({"external": free}, {}), None).values()))
    assert (said["cost"], said["margin"], said["gpu_hours"], said["kwh"]) == ("0.00", "0.00", "0", "0")
    assert said["commitment"]["total_commitment"] is None
