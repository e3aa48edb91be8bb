"""Amendments of the overflow, the cap on what spills and the notice: what holds from when on, what the
cell is told of it, and what is refused.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, select, update

from billing.allocator.allocator import Allocator
from billing.contracts import store
from billing.contracts.clauses import ClauseChange, with_change
from billing.contracts.lifecycle import amend, draft, give_notice, sign, withdraw
from billing.contracts.rates import rates_now
from billing.contracts.terms import Clause, Contract, Step
from billing.contracts.timeline import FOREVER_MS, Span
from billing.metrics import BillingMetrics
from billing.refusals import Conflict, Invalid
from billing.schema.capacity import contract, contract_history, contract_step
from billing.wire import redis_keys
from tests.billing.contracts.selling import DAY, POOL, T0, UNIT, Shop, furnish, reserved_over_time, terms

DAYS = 20
CHANGES = st.builds(
    ClauseChange,
    overflow=st.sampled_from([None, "reject", "spill", "queue"]),
    spill_mu_s=st.sampled_from([None, 1, 2]),
    lift_cap=st.sampled_from([False, False, True]),
    tenant_notice_days=st.sampled_from([None, 1, 2]),
    operator_notice_days=st.sampled_from([None, 3]),
)


def signed(connection: Connection, shop: Shop, **fields: Any) -> Contract:
    made = draft(connection, terms(shop.tenants["acme"], 10, **fields), now_ms=T0)
    return sign(connection, made.contract_id, now_ms=T0)


def everything(connection: Connection) -> list[Any]:
    tables = (contract, contract_step, contract_history)
    return [
        tuple(row)
        for table in tables
        for row in connection.execute(select(table).order_by(*table.primary_key))
    ]


@given(st.lists(st.tuples(st.integers(0, DAYS - 1), CHANGES), max_size=8))
def test_each_field_is_what_was_agreed_last_for_that_moment(acts: list[tuple[int, ClauseChange]]) -> None:
    """Beside it the slow and plain way: a value for each day and field."""
    base = terms("ten_1", 10, until_ms=T0 + DAYS * DAY)
    now = Contract(
        contract_id="con_1",
        terms=base,
        state="active",
        notice_by=None,
        notice_given_ms=None,
        effective_end_ms=base.ends_ms,
        created_ms=T0,
    )
    days: list[dict[str, Any]] = [
        {"overflow": "reject", "cap": None, "tenant": 30, "operator": 30} for _ in range(DAYS)
    ]
    for day, change in acts:
        overflow = change.overflow or days[day]["overflow"]
        if overflow != "spill" and (change.spill_mu_s is not None or change.lift_cap):
            with pytest.raises(Invalid, match="goes with the overflow"):
                with_change(now, change, T0 + day * DAY, T0)
            continue
        now = with_change(now, change, T0 + day * DAY, T0)
        for each in days[day:]:
            each["overflow"] = change.overflow or each["overflow"]
            if each["overflow"] != "spill" or change.lift_cap:
                each["cap"] = None
            if each["overflow"] == "spill":
                each["cap"] = change.spill_mu_s or each["cap"]
            each["tenant"] = change.tenant_notice_days or each["tenant"]
            each["operator"] = change.operator_notice_days or each["operator"]
    for day, each in enumerate(days):
        for moment_ms in (T0 + day * DAY, T0 + (day + 1) * DAY - 1):
            found = now.terms.clause_at(moment_ms)
            seen = (found.overflow, found.spill_mu_s, found.tenant_notice_days, found.operator_notice_days)
            assert seen == tuple(each.values())
    assert (now.terms.overflow, now.terms.spill_mu_s) == ("reject", None)


def test_the_cell_is_told_of_an_amendment_when_it_holds_and_not_before(
    database: Engine, raw_redis: redis.Redis, valkey: redis.Redis
) -> None:
    with database.begin() as connection:
        shop = furnish(connection)
        made = signed(connection, shop)
        amend(
            connection, made.contract_id, change=ClauseChange(overflow="spill", spill_mu_s=5 * UNIT),
            from_ms=T0 + 10_000, now_ms=T0
        )  # fmt: skip
        amend(
            connection,
            made.contract_id,
            change=ClauseChange(overflow="queue"),
            from_ms=T0 + 20_000,
            now_ms=T0 + 1,
        )
    allocator = Allocator(database, raw_redis, BillingMetrics(), owner="a")

    def told(after_ms: int) -> list[str | None]:
        allocator.allocate_once(T0 + after_ms)
        key = redis_keys.contract_bucket(POOL, shop.tenants["acme"])
        return [valkey.hget(key, "of"), valkey.hget(key, "spill")]  # type: ignore[list-item]

    assert told(9_999) == ["reject", "-1"]
    assert told(10_000) == ["spill", "5000"]
    assert told(20_000) == ["queue", "-1"]
    with database.begin() as connection:
        amend(connection, made.contract_id, change=ClauseChange(overflow="spill"), now_ms=T0 + 21_000)
    assert told(21_000) == ["spill", "-1"]


def test_an_amendment_is_an_entry_and_comes_back_as_it_was_agreed(connection: Connection, shop: Shop) -> None:
    made = signed(connection, shop, overflow="spill", spill_mu_s=7)
    changed = amend(
        connection, made.contract_id, steps=(Step(T0 + DAY, 20 * UNIT),), ends_ms=T0 + 200 * DAY,
        change=ClauseChange(lift_cap=True, operator_notice_days=5), from_ms=T0 + DAY, now_ms=T0,
    )  # fmt: skip
    assert [asdict(each) for each in changed.terms.later] == [
        {"from_ms": T0 + DAY, "overflow": "spill", "spill_mu_s": None, "tenant_notice_days": 30,
        "operator_notice_days": 5}
    ]  # fmt: skip
    assert store.find(connection, made.contract_id) == changed
    entry = store.history(connection, made.contract_id)[-1]
    assert (entry.change, entry.after) == ("amended", changed)
    again = amend(
        connection, made.contract_id, change=ClauseChange(spill_mu_s=7, operator_notice_days=30), now_ms=T0
    )
    assert again.terms.later == ()
    (rate,) = rates_now(connection, POOL, T0 + 2 * DAY)
    assert (rate.mu_s, rate.overflow, rate.spill_mu_s) == (20 * UNIT, "spill", 7)


def test_a_contract_that_was_written_before_there_were_such_amendments_is_read(
    connection: Connection, shop: Shop
) -> None:
    made = signed(connection, shop)
    record = made.to_record()
    del record["terms"]["later"]
    assert Contract.from_record(record) == made


def test_notice_takes_the_days_that_are_agreed_when_it_is_given(connection: Connection, shop: Shop) -> None:
    made = signed(connection, shop, until_ms=T0 + 1000 * DAY)
    change = ClauseChange(tenant_notice_days=100, operator_notice_days=1)
    amend(connection, made.contract_id, change=change, from_ms=T0 + 10 * DAY, now_ms=T0)
    before = give_notice(connection, made.contract_id, "tenant", now_ms=T0 + 10 * DAY - 1)
    assert before.effective_end_ms == T0 + 40 * DAY - 1
    after = give_notice(connection, made.contract_id, "operator", now_ms=T0 + 10 * DAY)
    assert after.effective_end_ms == T0 + 11 * DAY


def test_notice_is_not_amended_once_it_has_been_given_and_the_overflow_is(
    connection: Connection, shop: Shop
) -> None:
    made = signed(connection, shop)
    given = give_notice(connection, made.contract_id, "tenant", now_ms=T0)
    before = everything(connection)
    for change, param in (
        (ClauseChange(tenant_notice_days=1), "tenant_notice_days"),
        (ClauseChange(overflow="queue", operator_notice_days=1), "operator_notice_days"),
    ):
        with pytest.raises(Conflict, match="Notice has been given") as refused:
            amend(connection, made.contract_id, change=change, now_ms=T0)
        assert (refused.value.code, refused.value.param) == ("notice_given", param)
    assert everything(connection) == before
    queued = amend(connection, made.contract_id, change=ClauseChange(overflow="queue"), now_ms=T0)
    assert (queued.state, queued.effective_end_ms) == ("notice_given", given.effective_end_ms)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "the past": ({"change": ClauseChange(overflow="queue"), "from_ms": T0 - DAY}, "from"),
    "beyond the end": ({"change": ClauseChange(overflow="queue"), "from_ms": T0 + 100 * DAY}, "from"),
    "an overflow that is none": ({"change": ClauseChange(overflow="explode")}, "overflow"),
    # type: ignore[arg-type]
    "a cap without spill": ({"change": ClauseChange(spill_mu_s=1)}, "spill_units"),
    "a cap that is taken from what does not spill": ({"change": ClauseChange(lift_cap=True)}, "spill_units"),
    "a cap with another overflow": ({"change": ClauseChange(overflow="queue", spill_mu_s=1)}, "spill_units"),
    "a cap of nothing": ({"change": ClauseChange(overflow="spill", spill_mu_s=0)}, "spill_units"),
    "a negative cap": ({"change": ClauseChange(overflow="spill", spill_mu_s=-1)}, "spill_units"),
    "a cap beyond any pool": (
        {"change": ClauseChange(overflow="spill", spill_mu_s=10**15 + 1)}, "spill_units"
    ),
    "negative notice": ({"change": ClauseChange(tenant_notice_days=-1)}, "tenant_notice_days"),
    "a notice of decades": ({"change": ClauseChange(operator_notice_days=3661)}, "operator_notice_days"),
    "nothing": ({"change": ClauseChange()}, "units"),
    "good rates with a bad notice": ({"steps": (Step(T0, 5),), "change": ClauseChange(tenant_notice_days=-1)},
    "tenant_notice_days"),
}  # fmt: skip


def test_bad_amendments_name_the_field_and_change_nothing(connection: Connection, shop: Shop) -> None:
    made = signed(connection, shop)
    before = everything(connection)
    for name, (said, param) in BAD.items():
        with pytest.raises(Invalid) as refused:
            amend(connection, made.contract_id, now_ms=T0, **said)
        assert refused.value.param == param, name
        assert everything(connection) == before, name


def test_agreeing_on_something_again_and_again_ends_somewhere() -> None:
    later = tuple(Clause(T0 + index, "reject", None, 1 + index % 2, 30) for index in range(1000))
    base = replace(terms("ten_1", 10), later=later)
    now = Contract(
        contract_id="con_1",
        terms=base,
        state="active",
        notice_by=None,
        notice_given_ms=None,
        effective_end_ms=base.ends_ms,
        created_ms=T0,
    )
    with_change(now, ClauseChange(tenant_notice_days=3), T0 + 999, T0)
    with pytest.raises(Invalid, match="at most 1000 times"):
        with_change(now, ClauseChange(tenant_notice_days=3), T0 + 2000, T0)


def test_a_draft_that_is_withdrawn_has_ended_and_held_nothing(connection: Connection, shop: Shop) -> None:
    soon = draft(connection, terms(shop.tenants["acme"], 10, from_ms=T0 + DAY), now_ms=T0)
    ended = withdraw(connection, soon.contract_id, now_ms=T0 + 5)
    assert ended == replace(soon, state="ended", effective_end_ms=T0 + 5)
    assert store.find(connection, soon.contract_id) == ended
    assert [each.change for each in store.history(connection, soon.contract_id)] == ["draft", "withdrawn"]
    late = draft(connection, terms(shop.tenants["acme"], 10), now_ms=T0)
    assert withdraw(connection, late.contract_id, now_ms=T0 + DAY).effective_end_ms == T0
    assert reserved_over_time(connection, POOL, T0) == [Span(T0, FOREVER_MS, 0)]
    before = everything(connection)
    acts: tuple[Callable[[], object], ...] = (
        lambda: withdraw(connection, soon.contract_id, now_ms=T0 + 6),
        lambda: sign(connection, soon.contract_id, now_ms=T0 + 6),
        lambda: give_notice(connection, soon.contract_id, "tenant", now_ms=T0 + 6),
        lambda: amend(connection, soon.contract_id, ends_ms=T0 + 500 * DAY, now_ms=T0 + 6),
    )
    for act in acts:
        with pytest.raises(Conflict, match="has ended"):
            act()
    assert everything(connection) == before


def test_what_is_signed_is_not_withdrawn(connection: Connection, shop: Shop) -> None:
    made = signed(connection, shop)
    before = everything(connection)
    with pytest.raises(Conflict, match="what ends it is a notice") as refused:
        withdraw(connection, made.contract_id, now_ms=T0)
    assert refused.value.code == "not_a_draft"
    connection.execute(update(contract).values(state="notice_given"))
    with pytest.raises(Conflict):
        withdraw(connection, made.contract_id, now_ms=T0)
    connection.execute(update(contract).values(state="signed"))
    assert everything(connection) == before
