"""How many instances a pool should have."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.autoscaling.decide import (
    CALM_MS,
    LEAD_MS,
    Bounds,
    Decision,
    Load,
    Recent,
    Why,
    decide,
    needed_by_contracts,
    needed_by_load,
    taken_now,
)
from billing.contracts.position import Holding, Position, Taken
from billing.contracts.terms import Step
from billing.contracts.timeline import FOREVER_MS

NOW = 1_800_000_000_000
BOUNDS = Bounds(1, 8)


def position(
    *rates: int, from_ms: int = 0, instances: int = 10, headroom: int = 0, aside: int = 0
) -> Position:
    return Position(
        pool="p",
        instances=instances,
        headroom_permille=headroom,
        set_aside_mu_s=aside,
        capacity_mu_s=1000,
        holdings=tuple(
            Holding(
                contract_id=f"c{number}", tenant_id="t", steps=(Step(from_ms, rate),), starts_ms=from_ms,
                ends_ms=FOREVER_MS, headroom_permille=0,
            )
            for number, rate in enumerate(rates)
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("has", "need"),
    [
        (position(), 0),
        (position(aside=5000), 0),
        (position(1), 1),
        (position(1000), 1),
        (position(1001), 2),
        (position(600, 600), 2),
        (position(1000, headroom=100), 2),
        (position(1000, aside=500), 2),
        (position(2500, instances=1), 3),
        (position(2500, from_ms=NOW + LEAD_MS - 1), 3),
        (position(2500, from_ms=NOW + LEAD_MS), 0),
    ],
)
def test_contracts_need_what_holds_them_with_headroom(has: Position, need: int) -> None:
    assert needed_by_contracts(has, NOW) == need


@given(st.lists(st.integers(1, 50_000), max_size=5), st.integers(0, 900), st.integers(0, 5_000))
def test_no_fewer_would_hold_what_is_signed(rates: list[int], headroom: int, aside: int) -> None:
    has = position(*rates, headroom=headroom, aside=aside)
    need = needed_by_contracts(has, NOW)
    ceiling = lambda count: count * 1000 * (1000 - headroom) // 1000 - aside  # noqa: E731
    if rates:
        assert ceiling(need) >= sum(rates)
        assert ceiling(need - 1) < sum(rates)
    else:
        assert need == 0


@pytest.mark.parametrize(
    ("sequences", "woken", "need"), [(0, False, 0), (0, True, 1), (1, False, 1), (8, False, 1), (9, False, 2)]
)
def test_the_load_needs_instances_that_are_not_quite_full(sequences: int, woken: bool, need: int) -> None:
    assert needed_by_load(Load(sequences, 10, woken)) == need


@pytest.mark.parametrize(
    ("changes", "decision"),
    [
        ({}, Decision(1, Why.MINIMUM)),
        ({"load": Load(30, 10)}, Decision(4, Why.LOAD)),
        ({"load": Load(30, 10), "recent": 6}, Decision(6, Why.CALM)),
        ({"load": Load(300, 10)}, Decision(8, Why.MAXIMUM)),
        ({"load": Load(300, 10), "machines": 5}, Decision(5, Why.MACHINES)),
        ({"contracts": 3}, Decision(3, Why.CONTRACTS)),
        ({"contracts": 9}, Decision(9, Why.CONTRACTS)),
        ({"contracts": 9, "machines": 7}, Decision(7, Why.MACHINES)),
        ({"bounds": Bounds(0, 8)}, Decision(0, Why.MINIMUM)),
        ({"bounds": Bounds(0, 8), "load": Load(0, 10, woken=True)}, Decision(1, Why.WOKEN)),
        ({"bounds": Bounds(0, 8), "load": Load(0, 10, woken=True), "machines": 0}, Decision(0, Why.MACHINES)),
        ({"bounds": Bounds(2, 8), "load": Load(1, 10)}, Decision(2, Why.MINIMUM)),
    ],
)
def test_what_decides_is_said(changes: dict[str, object], decision: Decision) -> None:
    usual = {"bounds": BOUNDS, "machines": 10, "contracts": 0, "load": Load(0, 10), "recent": 0}
    assert decide(**{**usual, **changes}) == decision  # type: ignore[arg-type]


@given(
    st.tuples(st.integers(0, 9), st.integers(1, 9)).filter(lambda pair: pair[0] <= pair[1]),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(0, 500),
    st.integers(0, 20),
    st.booleans(),
)
def test_never_below_what_is_signed_never_beyond_the_machines(
    bounds: tuple[int, int], machines: int, contracts: int, sequences: int, recent: int, woken: bool
) -> None:
    made = decide(
        bounds=Bounds(*bounds), machines=machines, contracts=contracts, load=Load(sequences, 10, woken),
        recent=recent,
    ).instances  # fmt: skip
    assert made <= machines
    assert made >= min(machines, max(contracts, bounds[0]))
    assert made <= max(contracts, bounds[1])


def test_the_most_of_the_last_minutes_counts() -> None:
    recent = Recent()
    recent.add(NOW, 3)
    recent.add(NOW + 1, 5)
    recent.add(NOW + 2, 2)
    assert recent.most == 5
    recent.add(NOW + 1 + CALM_MS, 1)
    assert recent.most == 2
    recent.add(NOW + 2 + CALM_MS, 0)
    assert recent.most == 1


def test_machines_of_other_uses_are_not_counted_on() -> None:
    has = replace(
        position(),
        taken=(
            Taken(1, NOW - 5, NOW + 5),
            Taken(2, NOW + 5, drains=True),
            Taken(4, NOW + 5),
            Taken(8, NOW - 9, NOW - 5),
        ),
    )
    assert taken_now(has, NOW) == 3
