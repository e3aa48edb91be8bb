"""What a plan promises, without a database: nobody is left with less than what was signed, and cuts are
exact.
"""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.contracts.position import Holding, Position, Span, Taken
from billing.contracts.rates import ContractRate
from billing.contracts.terms import Step
from billing.reclaims.cuts import cut_pro_rata, rates_after_cuts, shortage_by_reclaims
from billing.reclaims.occupancy import OccupiedInstance, RunningRequest
from billing.reclaims.outlook import outlook, quarter_of, quarter_starts
from billing.reclaims.plan import ReclaimOrder, choose, draw_up, with_taken
from billing.reclaims.shortfall import SECOND_MS, shortfalls
from billing.reclaims.store import Reclaim
from billing.refusals import Conflict
from tests.billing.contracts.ledger import capacity_at, held_at, moments_of, reserved_at
from tests.billing.contracts.selling import T0
from tests.billing.contracts.test_position import MOMENT, positions
from tests.examples import examples

RATES = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10**6))


def reclaim(
    number: int, instances: int, by_ms: int, use: str = "research", *, breaks: bool = True
) -> Reclaim:
    return Reclaim(
        reclaim_id=f"rec_{number}",
        pool="p",
        instances=instances,
        use=use,
        state="done",
        breaks=breaks,
        chosen=(),
        by_ms=by_ms,
        released_ms=None,
        created_ms=0,
    )  # type: ignore[arg-type]


def short_at(position: Position, at_ms: int) -> int:
    return max(0, reserved_at(position, at_ms) - capacity_at(position, at_ms))


def overheld_at(position: Position, at_ms: int) -> int:
    """The same with the bursts that were sold: a plan takes nothing of those either."""
    return max(0, held_at(position, at_ms) - capacity_at(position, at_ms))


@settings(max_examples=examples(600), deadline=None)
@given(positions(), st.integers(1, 3), MOMENT, MOMENT)
def test_a_plan_that_is_not_refused_never_leaves_less_than_what_is_signed(
    position: Position, instances: int, by_ms: int, now_ms: int
) -> None:
    by_ms = max(by_ms, now_ms)
    try:
        plan = draw_up(
            ReclaimOrder(pool="p", instances=instances, use="research", by_ms=by_ms), position, [], 0, now_ms
        )
    except Conflict:
        away = sum(each.instances for each in position.taken)
        assert instances > position.instances - away
        return
    after = with_taken(position, Taken(instances, by_ms))
    worse = [
        at
        for at in {*moments_of(after), by_ms}
        if at >= by_ms and overheld_at(after, at) > overheld_at(position, at)
    ]
    assert (plan.refusal is not None) == bool(worse)
    # What drains before the deadline takes nothing that is signed either.
    assert now_ms <= plan.drain_from_ms <= by_ms
    draining = with_taken(position, Taken(instances, plan.drain_from_ms, by_ms))
    for at in {*moments_of(draining), plan.drain_from_ms}:
        if plan.drain_from_ms <= at < by_ms:
            assert overheld_at(draining, at) <= overheld_at(position, at)
    for left in plan.left:
        assert (left.capacity_mu_s, left.reserved_mu_s) == (
            capacity_at(after, left.from_ms), reserved_at(after, left.from_ms),
        )  # fmt: skip


@given(RATES, st.integers(0, 10**7))
def test_cuts_are_pro_rata_and_sum_exactly(rates: dict[str, int], cut: int) -> None:
    cuts = cut_pro_rata(rates, cut)
    total = sum(rates.values())
    assert sum(cuts.values()) == min(cut, total)
    for name, rate in rates.items():
        assert 0 <= cuts[name] <= rate
        assert abs(cuts[name] - rate * min(cut, total) / max(1, total)) < 1


def test_rates_after_cuts_are_what_is_left() -> None:
    rates = [
        ContractRate(contract_id=name, tenant=name, mu_s=rate, overflow="reject", spill_mu_s=None, end_ms=9)
        for name, rate in (("a", 300), ("b", 100), ("c", 0))
    ]
    assert [each.mu_s for each in rates_after_cuts(rates, 101)] == [224, 75, 0]
    assert rates_after_cuts(rates, 0) == rates


@settings(max_examples=examples(300), deadline=None)
@given(positions(), st.lists(st.tuples(st.integers(1, 3), MOMENT), max_size=3))
def test_only_what_reclaims_are_to_blame_for_is_cut(position: Position, taken: list[tuple[int, int]]) -> None:
    breaking = [reclaim(number, instances, by_ms) for number, (instances, by_ms) in enumerate(taken)]
    after = replace(position, taken=(*position.taken, *(each.taken for each in breaking)))
    line = shortage_by_reclaims(after, breaking)
    for at in moments_of(after):
        assert line.at(at) == max(0, short_at(after, at) - short_at(position, at))


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[Holding], list[Span]]:
    def moments(most: int) -> list[int]:
        return sorted(draw(st.sets(st.integers(0, 3500), min_size=2, max_size=most)))

    holdings = []
    for name in "abc"[: draw(st.integers(1, 3))]:
        *starts, ends_ms = moments(4)
        steps = tuple(Step(at, draw(st.integers(1, 5000))) for at in starts)
        holdings.append(
            Holding(
                contract_id=name,
                tenant_id=name,
                steps=steps,
                starts_ms=starts[0],
                ends_ms=ends_ms,
                headroom_permille=0,
            )
        )
    edges = [0, *moments(4), 4000]
    values = [draw(st.sampled_from([0, 0, 1, 700, 9999])) for _ in edges[1:]]
    return holdings, [Span(a, b, v) for a, b, v in zip(edges, edges[1:], values, strict=False) if a < b]


@settings(max_examples=examples(40), deadline=None)
@given(schedules())
def test_shortfalls_are_what_each_millisecond_adds_up_to(schedule: tuple[list[Holding], list[Span]]) -> None:
    holdings, cut = schedule
    wanted: dict[tuple[str, int], list[int]] = {}
    for span in cut:
        for at in range(span.from_ms, span.until_ms):
            rates = {held.contract_id: [step.mu_s for step in held.steps if step.from_ms <= at][-1]
                     for held in holdings if held.starts_ms <= at < held.ends_ms}  # fmt: skip
            cuts = cut_pro_rata(rates, span.value)
            for name, rate in rates.items():
                sums = wanted.setdefault((name, at - at % SECOND_MS), [0, 0])
                sums[0] += rate
                sums[1] += cuts[name]
    found = {
        (each.contract_id, each.second_ms): (each.assigned_mu, each.cut_mu)
        for each in shortfalls(holdings, cut, [reclaim(1, 1, 0)])
    }
    assert found == {
        key: (-(-assigned // 1000), -(-lost // 1000)) for key, (assigned, lost) in wanted.items() if lost
    }


def test_the_least_loaded_leave_and_those_that_do_not_work_before_them() -> None:
    there = [
        OccupiedInstance("a", True, 3),
        OccupiedInstance("b", True, 1),
        OccupiedInstance("c", True, 2),
        OccupiedInstance("d", False, 0),
    ]
    leaving, not_running = choose(there, 2, 4)
    assert ([each.instance for each in leaving], not_running) == (["d", "b"], 0)
    # Of six machines two run nothing: these go first.
    leaving, not_running = choose(there, 3, 6)
    assert ([each.instance for each in leaving], not_running) == (["d"], 2)
    assert choose(there, 2, 9) == ((), 2)


def occupied(name: str, *classes: str, ready: bool = True, besides: int = 0) -> OccupiedInstance:
    """With a request open of each class named; `able` is flex that can be resumed elsewhere."""
    requests = tuple(
        RunningRequest(
            request_id=f"{name}{n}",
            tenant="t",
            class_="flex" if each == "able" else each,
            contract=None,
            instance=name,
            started_ms=0,
            resumable=each == "able",
        )
        for n, each in enumerate(classes)
    )
    return OccupiedInstance(name, ready, len(requests) + besides, requests)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (occupied("z", *["reserved"] * 9, ready=False), occupied("a")),
        (occupied("z", *["on_demand"] * 9), occupied("a", "reserved")),
        (occupied("z", *["flex"] * 9), occupied("a", "on_demand")),
        (occupied("z", *["able"] * 9), occupied("a", "flex")),
        (occupied("z", *["able"] * 9), occupied("a", besides=1)),
        (occupied("z", besides=9), occupied("a", "flex")),
        (occupied("z", "able"), occupied("a", "able", "able")),
        (occupied("z", "reserved", "able"), occupied("a", "reserved", "on_demand")),
        (occupied("a", "able"), occupied("z", "able")),
    ],
)
def test_those_leave_whose_leaving_harms_least(first: OccupiedInstance, second: OccupiedInstance) -> None:
    for both in ([first, second], [second, first]):
        assert choose(both, 1, 2) == ((first,), 0)


@settings(max_examples=examples(300), deadline=None)
@given(positions(), st.integers(1, 3), st.lists(st.tuples(st.integers(1, 3), MOMENT), max_size=2), MOMENT)
def test_a_plan_says_of_every_contract_the_least_that_it_is_left_with(
    base: Position, instances: int, taken: list[tuple[int, int]], by_ms: int
) -> None:
    breaking = [Taken(count, from_ms) for count, from_ms in taken]
    more = instances + sum(each.instances for each in (*base.taken, *breaking))
    position = replace(base, instances=max(base.instances, more), taken=(*base.taken, *breaking))
    plan = draw_up(
        ReclaimOrder(pool="p", instances=instances, use="research", by_ms=by_ms, breaks=True),
        position,
        [],
        0,
        by_ms,
        breaking,
    )
    after = with_taken(position, Taken(instances, by_ms))
    without = replace(position, taken=base.taken)
    least: dict[str, tuple[Fraction, int, int, int]] = {}
    for at in sorted({*moments_of(after), by_ms}):
        if at < by_ms:
            continue
        rates = {held.contract_id: rate for held in position.holdings if (rate := rate_of(held, at))}
        cuts = cut_pro_rata(rates, max(0, short_at(after, at) - short_at(without, at)))
        for name, cut in cuts.items():
            part = Fraction(rates[name] - cut, rates[name])
            if cut and (name not in least or part < least[name][0]):
                least[name] = part, at, rates[name], rates[name] - cut
    assert {name: (cut.from_ms, cut.signed_mu_s, cut.left_mu_s) for name, cut in plan.cuts.items()} == {
        name: found[1:] for name, found in least.items()
    }


@pytest.mark.parametrize(("other_cell", "resumes"), [("llama", True), ("qwen", False)])
def test_a_request_resumes_where_an_instance_of_its_own_cell_stays(other_cell: str, resumes: bool) -> None:
    able = RunningRequest(
        request_id="req_1",
        tenant="t",
        class_="flex",
        contract=None,
        instance="leaves",
        started_ms=0,
        cell="llama",
        resumable=True,
    )
    there = [
        OccupiedInstance("leaves", True, 1, (able,), "llama"),
        OccupiedInstance("stays", True, 9, (), other_cell),
    ]
    position = Position(pool="p", instances=2, headroom_permille=0, set_aside_mu_s=0, capacity_mu_s=1000)
    order = ReclaimOrder(pool="p", instances=1, use="research", by_ms=1000, breaks=True)
    plan = draw_up(order, position, there, 0, 0)
    assert [each.instance for each in plan.leaving] == ["leaves"]
    assert plan.resumes(able) is resumes


def rate_of(held: Holding, at_ms: int) -> int:
    return sum(span.value for span in held.spans() if span.from_ms <= at_ms < span.until_ms)


def test_quarters_follow_the_calendar() -> None:
    starts = quarter_starts(T0, 4)
    assert [quarter_of(each) for each in starts] == ["2027-Q1", "2027-Q2", "2027-Q3", "2027-Q4", "2028-Q1"]
    assert quarter_of(starts[1] - 1) == "2027-Q1"


@settings(max_examples=examples(200), deadline=None)
@given(
    positions(), st.lists(st.tuples(st.sampled_from(["research", "recsys", "external"]), MOMENT), max_size=4)
)
def test_an_outlook_has_no_gap_and_every_machine_has_one_use(
    base: Position, taken: list[tuple[str, int]]
) -> None:
    reclaims = [reclaim(number, 1, T0 + by_ms, use) for number, (use, by_ms) in enumerate(taken)]
    position = replace(base, instances=6, taken=tuple(each.taken for each in reclaims))
    periods = outlook(position, reclaims, "external", T0, 4)
    assert periods[0].from_ms == T0
    assert periods[-1].until_ms == quarter_starts(T0, 4)[-1]
    assert all(a.until_ms == b.from_ms for a, b in pairwise(periods))
    for period in periods:
        assert quarter_of(period.from_ms) == quarter_of(period.until_ms - 1) == period.quarter
        assert sum(period.machines.values()) == 6
        assert (period.capacity_mu_s, period.signed_mu_s) == (
            capacity_at(position, period.from_ms), reserved_at(position, period.from_ms),
        )  # fmt: skip


def test_machines_that_are_not_there_are_refused() -> None:
    with pytest.raises(Conflict, match="no machines on record"):
        draw_up(
            ReclaimOrder(pool="p", instances=1, use="idle", by_ms=5),
            Position(pool="p", instances=0, headroom_permille=0, set_aside_mu_s=0, capacity_mu_s=None),
            [],
            0,
            0,
        )
    with pytest.raises(Conflict, match="has 2 machines, and from then on 1 of them"):
        draw_up(
            ReclaimOrder(pool="p", instances=2, use="idle", by_ms=5),
            Position(
                pool="p",
                instances=2,
                headroom_permille=0,
                set_aside_mu_s=0,
                capacity_mu_s=None,
                taken=(Taken(1, 9),),
            ),
            [],
            0,
            0,
        )
