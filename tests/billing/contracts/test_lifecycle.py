"""A contract from its draft to its end: what may follow what, when it ends, and that a refusal changes
nothing.
"""

from typing import Any

import pytest
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DBAPIError

from billing.catalogue import models
from billing.contracts import store
from billing.contracts.clock import advance
from billing.contracts.commitments import change_pool
from billing.contracts.lifecycle import amend, draft, give_notice, sign
from billing.contracts.terms import Contract, Side, Step, Terms, check
from billing.contracts.timeline import FOREVER_MS, Span
from billing.refusals import Conflict, Invalid, NotFound, RequestRefused
from billing.schema.capacity import contract, contract_history, contract_step
from tests.billing.contracts.selling import (
    DAY,
    POOL,
    T0,
    UNIT,
    Shop,
    calibrate,
    capacity_over_time,
    reserved_over_time,
    shortfalls,
    take,
    terms,
)


def signed(connection: Connection, what: Terms, now_ms: int = T0) -> Contract:
    return sign(connection, draft(connection, what, now_ms=now_ms).contract_id, now_ms=now_ms)


def everything(connection: Connection) -> list[Any]:
    tables = (contract, contract_step, contract_history)
    return [
        tuple(row)
        for table in tables
        for row in connection.execute(select(table).order_by(*table.primary_key))
    ]


def test_a_draft_holds_nothing_and_is_signed_once(connection: Connection, shop: Shop):
    made = draft(connection, terms(shop.tenants["acme"], 5000), now_ms=T0)
    assert (made.state, store.find(connection, made.contract_id)) == ("draft", made)
    assert reserved_over_time(connection, POOL, T0) == [Span(T0, FOREVER_MS, 0)]
    small = signed(connection, terms(shop.tenants["bolt"], 10))
    assert small.state == "signed"
    with pytest.raises(Conflict) as refused:
        sign(connection, small.contract_id, now_ms=T0)
    assert refused.value.code == "not_a_draft"


def test_signing_checks_every_instant_and_says_when_and_by_how_much(connection: Connection, shop: Shop):
    take(connection, 1, T0 + 10 * DAY, T0 + 20 * DAY)
    signed(connection, terms(shop.tenants["bolt"], [(T0, 300), (T0 + 5 * DAY, 600)], until_ms=T0 + 15 * DAY))
    before = everything(connection)
    with (
        pytest.raises(
            Conflict, match=r"from 2027-01-25T08:00:00Z until 2027-01-30T08:00:00Z by 100\.5 units per second"
        ),
        connection.begin_nested(),
    ):
        signed(
            connection,
            Terms(
                tenant_id=shop.tenants["acme"],
                pool=POOL,
                steps=(Step(T0, 500_500),),
                starts_ms=T0,
                ends_ms=T0 + 30 * DAY,
                minimum_until_ms=T0,
                tenant_notice_days=30,
                operator_notice_days=30,
            ),
        )
    assert everything(connection) == before
    signed(connection, terms(shop.tenants["acme"], 400, until_ms=T0 + 30 * DAY))
    assert reserved_over_time(connection, POOL, T0, T0 + 40 * DAY) == [
        Span(T0, T0 + 5 * DAY, 700 * UNIT),
        Span(T0 + 5 * DAY, T0 + 15 * DAY, 1000 * UNIT),
        Span(T0 + 15 * DAY, T0 + 30 * DAY, 400 * UNIT),
        Span(T0 + 30 * DAY, T0 + 40 * DAY, 0),
    ]
    assert [span.value for span in capacity_over_time(connection, POOL, T0)] == [2000_000, 1000_000, 2000_000]
    assert shortfalls(connection, POOL, T0) == []


def test_without_a_calibration_nothing_is_sold(connection: Connection, shop: Shop):
    models.create(connection, models.ModelSpec(name="other", context_tokens=10))
    change_pool(connection, "other", now_ms=T0, instances=9)
    made = draft(
        connection,
        Terms(
            tenant_id=shop.tenants["acme"],
            pool="other",
            steps=(Step(T0, 1),),
            starts_ms=T0,
            ends_ms=T0 + DAY,
            minimum_until_ms=T0,
            tenant_notice_days=1,
            operator_notice_days=1,
        ),
        now_ms=T0,
    )
    with pytest.raises(Conflict, match="calibrate first") as refused:
        sign(connection, made.contract_id, now_ms=T0)
    assert refused.value.code == "not_calibrated"


@pytest.mark.parametrize(
    ("side", "minimum_days", "given_days", "end_days"),
    [
        ("tenant", 0, 0, 30), ("operator", 0, 0, 90), ("tenant", 0, 40, 70), ("tenant", 60, 0, 60), ("tenant",
        60, 50, 80),
        ("operator", 0, 950, 1000), ("tenant", 1000, 0, 1000),
    ],
)  # fmt: skip
def test_notice_ends_it_after_the_minimum_term_and_the_notice(
    connection: Connection, shop: Shop, side: Side, minimum_days: int, given_days: int, end_days: int
):
    what = terms(
        shop.tenants["acme"], 10, until_ms=T0 + 1000 * DAY, minimum_until_ms=T0 + minimum_days * DAY,
        tenant_notice_days=30, operator_notice_days=90,
    )  # fmt: skip
    made = signed(connection, what)
    given_ms = T0 + given_days * DAY
    advance(connection, given_ms)
    ended = give_notice(connection, made.contract_id, side, now_ms=given_ms)
    assert (ended.state, ended.notice_by, ended.notice_given_ms) == ("notice_given", side, given_ms)
    assert ended.effective_end_ms == T0 + end_days * DAY
    assert reserved_over_time(connection, POOL, given_ms)[-1] == Span(ended.effective_end_ms, FOREVER_MS, 0)
    assert [each.state for each in advance(connection, ended.effective_end_ms)] == ["ended"]


def test_a_second_notice_counts_only_if_it_is_earlier(connection: Connection, shop: Shop):
    made = signed(
        connection, terms(shop.tenants["acme"], 10, until_ms=T0 + 1000 * DAY, operator_notice_days=300)
    )
    give_notice(connection, made.contract_id, "operator", now_ms=T0)
    earlier = give_notice(connection, made.contract_id, "tenant", now_ms=T0 + DAY)
    assert (earlier.notice_by, earlier.effective_end_ms) == ("tenant", T0 + 31 * DAY)
    with pytest.raises(Conflict, match="already"):
        give_notice(connection, made.contract_id, "operator", now_ms=T0 + 2 * DAY)


def test_notice_before_the_start_may_end_it_before_it_begins(connection: Connection, shop: Shop):
    made = signed(connection, terms(shop.tenants["acme"], 10, from_ms=T0 + 99 * DAY, until_ms=T0 + 200 * DAY))
    ended = give_notice(connection, made.contract_id, "tenant", now_ms=T0)
    assert ended.effective_end_ms == T0 + 99 * DAY
    assert reserved_over_time(connection, POOL, T0) == [Span(T0, FOREVER_MS, 0)]
    assert [each.state for each in advance(connection, T0 + 99 * DAY)] == ["ended"]


def test_a_tenant_has_one_contract_in_a_pool_at_a_time(connection: Connection, shop: Shop):
    first = signed(connection, terms(shop.tenants["acme"], 10))
    with pytest.raises(Conflict, match="amend that one") as refused:
        signed(connection, terms(shop.tenants["acme"], 10, from_ms=T0 + 99 * DAY, until_ms=T0 + 200 * DAY))
    assert refused.value.code == "contract_overlaps"
    signed(connection, terms(shop.tenants["acme"], 10, from_ms=T0 + 100 * DAY, until_ms=T0 + 200 * DAY))
    with pytest.raises(Conflict):
        amend(connection, first.contract_id, ends_ms=T0 + 101 * DAY, now_ms=T0)
    give_notice(connection, first.contract_id, "tenant", now_ms=T0)
    signed(connection, terms(shop.tenants["acme"], 10, from_ms=T0 + 30 * DAY, until_ms=T0 + 100 * DAY))


def test_an_amendment_replaces_what_follows_and_leaves_the_past(connection: Connection, shop: Shop):
    made = signed(
        connection, terms(shop.tenants["acme"], [(T0, 100), (T0 + 10 * DAY, 200), (T0 + 20 * DAY, 300)])
    )
    now_ms = T0 + 12 * DAY
    advance(connection, now_ms)
    changed = amend(connection, made.contract_id, steps=(Step(T0 + 15 * DAY, 50 * UNIT),), now_ms=now_ms)
    assert [(step.from_ms, step.mu_s // UNIT) for step in changed.terms.steps] == [
        (T0, 100), (T0 + 10 * DAY, 200), (T0 + 15 * DAY, 50),
    ]  # fmt: skip
    assert store.find(connection, made.contract_id) == changed
    for past_ms in (T0, T0 + 11 * DAY):
        with pytest.raises(Invalid, match="past"):
            amend(connection, made.contract_id, steps=(Step(past_ms, 1),), now_ms=now_ms)
    longer = amend(connection, made.contract_id, ends_ms=T0 + 300 * DAY, now_ms=now_ms)
    assert (longer.terms.ends_ms, longer.effective_end_ms) == (T0 + 300 * DAY, T0 + 300 * DAY)
    with pytest.raises(Invalid, match="notice"):
        amend(connection, made.contract_id, ends_ms=T0 + 100 * DAY, now_ms=now_ms)


def test_an_amendment_of_now_never_reaches_back(connection: Connection, shop: Shop):
    made = signed(connection, terms(shop.tenants["acme"], 100))
    now_ms = T0 + DAY
    changed = amend(connection, made.contract_id, steps=(Step(now_ms - 60_000, 50 * UNIT),), now_ms=now_ms)
    assert changed.terms.steps == (Step(T0, 100 * UNIT), Step(now_ms, 50 * UNIT))


def test_an_increase_is_checked_as_signing_is_and_a_decrease_is_not_held_up(
    connection: Connection, shop: Shop
):
    made = signed(connection, terms(shop.tenants["acme"], 1500))
    before = everything(connection)
    with pytest.raises(Conflict, match="by 500 units"):
        amend(connection, made.contract_id, steps=(Step(T0, 2500 * UNIT),), now_ms=T0)
    assert everything(connection) == before
    take(connection, 1, T0, state="done", breaks=True)
    assert shortfalls(connection, POOL, T0) == [Span(T0, T0 + 100 * DAY, 500 * UNIT)]
    less = amend(connection, made.contract_id, steps=(Step(T0 + DAY, 1200 * UNIT),), now_ms=T0)
    assert less.terms.steps[-1].mu_s == 1200 * UNIT
    assert [span.value for span in shortfalls(connection, POOL, T0 + DAY)] == [200 * UNIT]


def test_after_notice_it_is_not_extended_and_after_its_end_nothing_is(connection: Connection, shop: Shop):
    made = signed(connection, terms(shop.tenants["acme"], 10))
    give_notice(connection, made.contract_id, "tenant", now_ms=T0)
    with pytest.raises(Conflict, match="Notice has been given"):
        amend(connection, made.contract_id, ends_ms=T0 + 500 * DAY, now_ms=T0)
    with pytest.raises(Invalid, match="beyond the end"):
        amend(connection, made.contract_id, steps=(Step(T0 + 40 * DAY, 1),), now_ms=T0)
    amend(connection, made.contract_id, steps=(Step(T0 + DAY, 5 * UNIT),), now_ms=T0)
    # Its state is behind the clock, and counts as what it will be.
    for act in (
        lambda: amend(connection, made.contract_id, steps=(Step(T0 + 31 * DAY, 1),), now_ms=T0 + 31 * DAY),
        lambda: give_notice(connection, made.contract_id, "operator", now_ms=T0 + 31 * DAY),
    ):
        with pytest.raises(Conflict, match="has ended"):
            act()


def test_a_draft_takes_neither_notice_nor_amendment(connection: Connection, shop: Shop):
    made = draft(connection, terms(shop.tenants["acme"], 10), now_ms=T0)
    for act in (
        lambda: give_notice(connection, made.contract_id, "tenant", now_ms=T0),
        lambda: amend(connection, made.contract_id, ends_ms=T0 + 500 * DAY, now_ms=T0),
    ):
        with pytest.raises(Conflict, match="sign it first"):
            act()


def test_a_pool_is_not_changed_below_what_is_signed(connection: Connection, shop: Shop):
    signed(connection, terms(shop.tenants["acme"], 1500))
    for change in ({"instances": 1}, {"headroom_permille": 251}, {"set_aside_mu_s": 500_001}):
        with pytest.raises(Conflict, match="What is signed does not fit"):
            change_pool(connection, POOL, now_ms=T0, **change)
    changed = change_pool(
        connection, POOL, now_ms=T0, instances=3, headroom_permille=100, set_aside_mu_s=1200_000
    )
    assert (changed.instances, changed.headroom_permille, changed.set_aside_mu_s) == (3, 100, 1200_000)
    # When all is over, it may go.
    change_pool(connection, POOL, now_ms=T0 + 100 * DAY, instances=0)
    with pytest.raises(NotFound):
        change_pool(connection, "nothing", now_ms=T0, instances=1)


def test_the_newest_calibration_holds(connection: Connection, shop: Shop):
    calibrate(connection, 100, at_ms=T0 + 1)
    assert [span.value for span in capacity_over_time(connection, POOL, T0)] == [200 * UNIT]


def test_the_history_is_never_rewritten(connection: Connection, shop: Shop):
    made = signed(connection, terms(shop.tenants["acme"], 10))
    amend(connection, made.contract_id, steps=(Step(T0 + DAY, 20 * UNIT),), now_ms=T0)
    give_notice(connection, made.contract_id, "tenant", now_ms=T0 + 1)
    advance(connection, T0 + 500 * DAY)
    entries = store.history(connection, made.contract_id)
    assert [(each.change, each.by, each.at_ms - T0) for each in entries] == [
        ("draft", "operator", 0), ("signed", "operator", 0), ("amended", "operator", 0), ("notice_given",
        "tenant", 1),
        ("ended", "clock", 500 * DAY),
    ]  # fmt: skip
    assert entries[1].after == made
    assert [len(each.after.terms.steps) for each in entries] == [1, 1, 2, 2, 2]
    for statement in (contract_history.update().values(by="nobody"), contract_history.delete()):
        with pytest.raises(DBAPIError, match="append"), connection.begin_nested():
            connection.execute(statement)
    assert connection.execute(select(func.count()).select_from(contract_history)).scalar_one() == len(entries)


BAD = {
    "negative units": ({"steps": (Step(T0, -1),)}, "units"),
    "zero units": ({"steps": (Step(T0, 0),)}, "units"),
    "more units than any pool does": ({"steps": (Step(T0, 10**15 + 1),)}, "units"),
    "no rate": ({"steps": ()}, "units"),
    "ends before it starts": ({"ends_ms": T0 - 1}, "until"),
    "ends as it starts": ({"ends_ms": T0}, "until"),
    "a term of centuries": ({"ends_ms": T0 + 101 * 366 * DAY}, "until"),
    "an end beyond the calendar": ({"ends_ms": 10**17}, "until"),
    "a gap before the first step": ({"steps": (Step(T0 + 1, 1),)}, "ramp"),
    "a step before the start": ({"steps": (Step(T0 - 1, 1),)}, "ramp"),
    "a ramp out of order": ({"steps": (Step(T0, 1), Step(T0 + 20, 2), Step(T0 + 10, 3))}, "ramp"),
    "two steps at once": ({"steps": (Step(T0, 1), Step(T0, 2))}, "ramp"),
    "a step to nothing": ({"steps": (Step(T0, 1), Step(T0 + 10, 0))}, "ramp"),
    "a step beyond the end": ({"steps": (Step(T0, 1), Step(T0 + 100 * DAY, 2))}, "ramp"),
    "too many steps": ({"steps": tuple(Step(T0 + index, 1) for index in range(1001))}, "ramp"),
    "a minimum term beyond the end": ({"minimum_until_ms": T0 + 101 * DAY}, "minimum_until"),
    "a minimum term before the start": ({"minimum_until_ms": T0 - 1}, "minimum_until"),
    "negative notice": ({"tenant_notice_days": -1}, "tenant_notice_days"),
    "a notice of decades": ({"operator_notice_days": 3661}, "operator_notice_days"),
    "an overflow that is none": ({"overflow": "explode"}, "overflow"),
    "a spill cap without spill": ({"spill_mu_s": 1}, "spill_units"),
    "a spill cap of nothing": ({"overflow": "spill", "spill_mu_s": 0}, "spill_units"),
    "headroom of everything": ({"headroom_permille": 1000}, "headroom"),
    "negative headroom": ({"headroom_permille": -1}, "headroom"),
}


@pytest.mark.parametrize("name", BAD)
def test_terms_that_make_no_sense_name_the_field(name: str):
    fields, param = BAD[name]
    base: dict[str, Any] = {
        "tenant_id": "ten_1", "pool": POOL, "steps": (Step(T0, 10),), "starts_ms": T0,
        "ends_ms": T0 + 100 * DAY, "minimum_until_ms": T0, "tenant_notice_days": 30,
        "operator_notice_days": 30,
    }  # fmt: skip
    check(Terms(**base))
    with pytest.raises(Invalid) as refused:
        check(Terms(**{**base, **fields}))
    assert refused.value.param == param


def test_a_start_in_the_past_is_refused_but_for_the_slack_of_now(connection: Connection, shop: Shop):
    made = draft(connection, terms(shop.tenants["acme"], [(T0, 10), (T0 + 100, 20)]), now_ms=T0 + 60_000)
    assert (made.terms.starts_ms, made.terms.steps) == (T0 + 60_000, (Step(T0 + 60_000, 20 * UNIT),))
    before = everything(connection)
    with pytest.raises(Invalid, match="past") as refused:
        draft(connection, terms(shop.tenants["acme"], 10), now_ms=T0 + 5 * 60_000 + 1)
    assert refused.value.param == "from"
    with pytest.raises(Invalid, match="past"):
        sign(connection, made.contract_id, now_ms=T0 + DAY)
    assert everything(connection) == before


def test_names_of_nothing_are_not_found(connection: Connection, shop: Shop):
    nowhere = Terms(
        tenant_id=shop.tenants["acme"],
        pool="nothing",
        steps=(Step(T0, 1),),
        starts_ms=T0,
        ends_ms=T0 + DAY,
        minimum_until_ms=T0,
        tenant_notice_days=1,
        operator_notice_days=1,
    )
    acts = (
        lambda: draft(connection, nowhere, now_ms=T0),
        lambda: sign(connection, "con_0", now_ms=T0),
        lambda: give_notice(connection, "con_0", "tenant", now_ms=T0),
        lambda: amend(connection, "con_0", ends_ms=T0, now_ms=T0),
        lambda: store.history(connection, "con_0"),
    )
    for act in acts:
        with pytest.raises(RequestRefused) as refused:
            act()
        assert isinstance(refused.value, NotFound)
