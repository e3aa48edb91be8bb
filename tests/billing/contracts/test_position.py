"""No oversell, without a database: what is computed over time is what each instant says alone, whatever
the schedules.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.contracts.position import Holding, Position, Taken, refuse_worse, shortfalls, units, worsened
from billing.contracts.quote import quote
from billing.contracts.terms import Step
from billing.contracts.timeline import FOREVER_MS, Span, Timeline
from billing.refusals import Conflict
from tests.billing.contracts.ledger import capacity_at, held_at, moments_of, reserved_at
from tests.examples import examples

MOMENT = st.integers(0, 60)
BURST = st.sampled_from([1_000, 1_000, 1_001, 2_500, 10_000])


@st.composite
def holdings(draw: st.DrawFn, contract_id: str = "new") -> Holding:
    moments = sorted(draw(st.sets(MOMENT, min_size=2, max_size=5)))
    ends_ms = moments.pop()
    # Notice may have made the end earlier than the ramp's last step, or than the start.
    ends_ms = draw(st.sampled_from([ends_ms, max(moments[0], ends_ms - draw(MOMENT))]))
    steps = tuple(Step(moment, draw(st.integers(1, 900))) for moment in moments)
    headroom, burst_ms = draw(st.sampled_from([0, 0, 100, 333, 999])), draw(BURST)
    return Holding(
        contract_id=contract_id,
        tenant_id=contract_id,
        steps=steps,
        starts_ms=moments[0],
        ends_ms=ends_ms,
        headroom_permille=headroom,
        burst_ms=burst_ms,
    )


@st.composite
def positions(draw: st.DrawFn) -> Position:
    held = tuple(draw(holdings(f"con_{index}")) for index in range(draw(st.integers(0, 5))))
    taken = tuple(
        Taken(draw(st.integers(1, 3)), start, draw(st.sampled_from([FOREVER_MS, start + 7, start + 20])))
        for start in draw(st.lists(MOMENT, max_size=3))
    )
    capacity = draw(st.one_of(st.none(), st.integers(1, 700)))
    headroom = draw(st.sampled_from([0, 1, 100, 500]))
    return Position(
        pool="p",
        instances=draw(st.integers(0, 6)),
        headroom_permille=headroom,
        set_aside_mu_s=draw(st.sampled_from([0, 50, 2000])),
        capacity_mu_s=capacity,
        holdings=held,
        taken=taken,
    )


@settings(max_examples=examples(600), deadline=None)
@given(positions(), MOMENT)
def test_over_time_is_what_each_instant_says(position: Position, moment: int):
    capacity, reserved, shortage = position.capacity(), position.reserved(), position.shortage()
    for at_ms in [moment, *moments_of(position), 10**9]:
        has, owes = capacity_at(position, at_ms), reserved_at(position, at_ms)
        assert capacity.at(at_ms) == has
        assert reserved.at(at_ms) == owes
        assert shortage.at(at_ms) == max(0, owes - has)
        held = held_at(position, at_ms)
        assert held >= owes
        assert position.held().at(at_ms) == held
        assert position.overheld().at(at_ms) == max(0, held - has)
        assert position.free().at(at_ms) == max(0, has - held)


@settings(max_examples=examples(600), deadline=None)
@given(st.lists(holdings(), max_size=12), positions())
def test_whatever_is_admitted_one_by_one_never_oversells(wanted: list[Holding], base: Position):
    position = replace(base, holdings=())
    for index, each in enumerate(wanted):
        after = position.with_holding(replace(each, contract_id=f"con_{index}"))
        honest = [at for at in moments_of(after) if held_at(after, at) > capacity_at(after, at)]
        try:
            refuse_worse(position, after, 0, what="It")
        except Conflict:
            assert honest
        else:
            assert not honest
            position = after


@settings(max_examples=examples(300), deadline=None)
@given(positions(), holdings(), MOMENT)
def test_only_what_a_change_makes_worse_is_its_fault(before: Position, changed: Holding, from_ms: int):
    after = before.with_holding(changed)
    spans = worsened(before, after, from_ms)
    for at_ms in [moment for moment in {*moments_of(before), *moments_of(after)} if moment >= from_ms]:
        was = max(0, held_at(before, at_ms) - capacity_at(before, at_ms))
        now = max(0, held_at(after, at_ms) - capacity_at(after, at_ms))
        told = [span for span in spans if span.from_ms <= at_ms < span.until_ms]
        assert bool(told) == (now > was)
        assert all(span.value == now for span in told)


@settings(max_examples=examples(400), deadline=None)
@given(positions(), MOMENT, st.integers(1, 40), st.integers(1, 1500), st.sampled_from([0, 250]), BURST)
def test_a_quote_is_what_signing_would_say(
    position: Position, from_ms: int, lasts: int, mu_s: int, headroom: int, burst_ms: int
):
    def fits(rate: int, starts_ms: int, ends_ms: int) -> bool:
        wanted = Holding(
            contract_id="new",
            tenant_id="new",
            steps=(Step(starts_ms, rate),),
            starts_ms=starts_ms,
            ends_ms=ends_ms,
            headroom_permille=headroom,
            burst_ms=burst_ms,
        )
        return not worsened(position, position.with_holding(wanted), 0)

    found = quote(
        position, from_ms, from_ms + lasts, mu_s=mu_s, headroom_permille=headroom, burst_ms=burst_ms
    )
    if not shortfalls(position, 0):
        assert found.fits == fits(mu_s, from_ms, from_ms + lasts)
        assert found.fits == (not found.short)
        assert found.at_most_mu_s == 0 or fits(found.at_most_mu_s, from_ms, from_ms + lasts)
        assert not fits(found.at_most_mu_s + 1, from_ms, from_ms + lasts)
        starts = [at_ms for at_ms in range(from_ms, 130) if fits(mu_s, at_ms, at_ms + lasts)]
        assert found.fits_from_ms == (starts[0] if starts else None)
        assert found.fits_until_ms is not None
        assert found.fits_until_ms == from_ms or fits(mu_s, from_ms, min(found.fits_until_ms, 10**6))
        assert found.fits_until_ms == FOREVER_MS or not fits(mu_s, from_ms, found.fits_until_ms + 1)


def test_a_quote_says_when_and_by_how_much_it_is_short():
    position = Position(
        pool="p",
        instances=2,
        headroom_permille=0,
        set_aside_mu_s=0,
        capacity_mu_s=1000,
        taken=(Taken(1, 10, 20), Taken(2, 30, FOREVER_MS)),
    )
    found = quote(position, 0, 40, mu_s=1500)
    assert found.short == (Span(10, 20, 500), Span(30, 40, 1500))
    assert quote(position, 0, 10, mu_s=1500).short == ()
    assert quote(position, 0, 10, mu_s=1500, headroom_permille=500).short == (Span(0, 10, 500),)


def test_an_exact_fit_fits_and_one_more_says_when_and_by_how_much():
    position = Position(
        pool="p",
        instances=2,
        headroom_permille=100,
        set_aside_mu_s=0,
        capacity_mu_s=1000_000,
        taken=(Taken(1, 1_800_000_000_000, 1_800_000_600_000),),
    )
    exact = Holding(
        contract_id="c",
        tenant_id="t",
        steps=(Step(0, 900_000),),
        starts_ms=0,
        ends_ms=1_900_000_000_000,
        headroom_permille=0,
    )
    refuse_worse(position, position.with_holding(exact), 0, what="It")
    one_more = replace(exact, steps=(Step(0, 900_001),))
    with pytest.raises(Conflict) as refused:
        refuse_worse(position, position.with_holding(one_more), 0, what="It")
    assert refused.value.message == (
        "It does not fit in pool 'p': from 2027-01-15T08:00:00Z until 2027-01-15T08:10:00Z by 0.001 units "
        "per second."
    )


def test_a_refusal_names_each_time_with_its_own_amount():
    position = Position(
        pool="p",
        instances=2,
        headroom_permille=0,
        set_aside_mu_s=0,
        capacity_mu_s=1000,
        taken=(Taken(1, 10, 20), Taken(2, 30, 40)),
    )
    wanted = Holding(
        contract_id="c",
        tenant_id="t",
        steps=(Step(0, 1500), Step(35, 1700)),
        starts_ms=0,
        ends_ms=50,
        headroom_permille=0,
    )
    with pytest.raises(Conflict) as refused:
        refuse_worse(position, position.with_holding(wanted), 0, what="It")
    assert refused.value.message == (
        "It does not fit in pool 'p': from 1970-01-01T00:00:00.010Z until 1970-01-01T00:00:00.020Z by 0.5 "
        "units per second; "
        "from 1970-01-01T00:00:00.030Z until 1970-01-01T00:00:00.035Z by 1.5 units per second; "
        "from 1970-01-01T00:00:00.035Z until 1970-01-01T00:00:00.040Z by 1.7 units per second."
    )


@pytest.mark.parametrize(
    ("steps", "more"), [(5, ""), (6, "and 1 more, the worst of all"), (40, "and 35 more, the worst of all")]
)
def test_of_many_times_a_refusal_names_five_and_the_worst(steps: int, more: str):
    position = Position(pool="p", instances=0, headroom_permille=0, set_aside_mu_s=0, capacity_mu_s=1000)
    wanted = Holding(
        contract_id="c",
        tenant_id="t",
        steps=tuple(Step(at_ms, 1 + at_ms) for at_ms in range(steps)),
        starts_ms=0,
        ends_ms=steps,
        headroom_permille=0,
    )
    with pytest.raises(Conflict) as refused:
        refuse_worse(position, position.with_holding(wanted), 0, what="It")
    assert refused.value.message.count("units per second") == 5 + bool(more)
    assert more in refused.value.message
    assert f"by {units(steps)} units per second." in refused.value.message


def test_a_contracts_headroom_counts_for_all_while_it_is_in_force():
    careful = Holding(
        contract_id="a", tenant_id="a", steps=(Step(10, 1),), starts_ms=10, ends_ms=20, headroom_permille=500
    )
    position = Position(
        pool="p", instances=1, headroom_permille=0, set_aside_mu_s=0, capacity_mu_s=1000, holdings=(careful,)
    )
    assert list(position.capacity().spans(0)) == [
        Span(0, 10, 1000),
        Span(10, 20, 500),
        Span(20, FOREVER_MS, 1000),
    ]


def test_units_are_exact_decimals():
    assert [units(mu) for mu in (0, 1, 10, 100, 1000, 1500, 10**15, -2500)] == [
        "0", "0.001", "0.01", "0.1", "1", "1.5", "1000000000000", "-2.5",
    ]  # fmt: skip


def test_a_timeline_has_no_gaps():
    line = Timeline.total([Span(5, 10, 3), Span(10, 12, 3), Span(11, FOREVER_MS, 1), Span(7, 7, 9)])
    assert list(line.spans(0, 20)) == [Span(0, 5, 0), Span(5, 11, 3), Span(11, 12, 4), Span(12, 20, 1)]
    assert list(line.spans(6, 6)) == []
    assert line.least(6, 20) == 1
    assert list(Timeline().spans(3)) == [Span(3, FOREVER_MS, 0)]
