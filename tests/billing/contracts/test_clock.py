"""Time makes contracts active and ends them, once; and says what each is worth at a moment."""

import ast
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sqlalchemy import Connection

from billing.api.fields import Moment
from billing.contracts import store
from billing.contracts.clock import advance
from billing.contracts.rates import ContractRate, rates_now
from billing.contracts.terms import MS_MAX, Contract
from billing.moments import utc
from tests.billing.contracts.selling import DAY, POOL, T0, UNIT, Shop, terms
from tests.examples import examples
from tests.source_tree import sources


def hold(
    connection: Connection, tenant_id: str, units: Any, state: Any = "signed", **fields: Any
) -> Contract:
    draft = store.insert_draft(connection, terms(tenant_id, units, **fields), by="operator", now_ms=T0)
    signed = store.save(connection, replace(draft, state="signed"), "signed", by="operator", now_ms=T0)
    return (
        signed
        if state == "signed"
        else store.save(connection, replace(draft, state=state), state, by="x", now_ms=T0)
    )


def test_a_contract_becomes_active_and_ends_once(connection: Connection, shop: Shop):
    made = hold(connection, shop.tenants["acme"], 10, from_ms=T0 + DAY, until_ms=T0 + 2 * DAY)
    assert advance(connection, T0 + DAY - 1) == []
    assert [each.state for each in advance(connection, T0 + DAY)] == ["active"]
    assert advance(connection, T0 + 2 * DAY - 1) == []
    assert [each.state for each in advance(connection, T0 + 2 * DAY)] == ["ended"]
    assert advance(connection, T0 + 3 * DAY) == []
    entries = store.history(connection, made.contract_id)
    assert [(each.change, each.by) for each in entries] == [
        ("draft", "operator"), ("signed", "operator"), ("active", "clock"), ("ended", "clock"),
    ]  # fmt: skip
    assert entries[-1].after == store.find(connection, made.contract_id)


def test_one_that_slept_through_its_term_skips_no_state(connection: Connection, shop: Shop):
    made = hold(connection, shop.tenants["acme"], 10)
    advance(connection, T0 + 1000 * DAY)
    assert [each.change for each in store.history(connection, made.contract_id)][-2:] == ["active", "ended"]


def test_a_draft_is_not_moved_by_time_and_is_worth_nothing(connection: Connection, shop: Shop):
    store.insert_draft(connection, terms(shop.tenants["acme"], 10), by="operator", now_ms=T0)
    assert advance(connection, T0 + 1000 * DAY) == []
    assert rates_now(connection, POOL, T0 + DAY) == []


def test_rates_follow_the_ramp_and_the_clock_whatever_the_state_says(connection: Connection, shop: Shop):
    end_ms = T0 + 100 * DAY
    ramp = [(T0, 10), (T0 + DAY, 20), (T0 + 2 * DAY, 5)]
    made = hold(connection, shop.tenants["acme"], ramp, overflow="spill", spill_mu_s=7)
    hold(connection, shop.tenants["bolt"], 3, from_ms=T0 + DAY, state="notice_given")
    hold(connection, shop.tenants["core"], 3, state="ended")

    def rate(moment_ms: int) -> list[int]:
        by_size = sorted(rates_now(connection, POOL, moment_ms), key=lambda each: -each.mu_s)
        return [each.mu_s // UNIT for each in by_size]

    assert rate(T0 - 1) == []
    assert rate(T0) == [10]
    assert rate(T0 + DAY - 1) == [10]
    assert rate(T0 + DAY) == [20, 3]
    assert rate(T0 + 2 * DAY) == [5, 3]
    assert rate(end_ms - 1) == [5, 3]
    assert rate(end_ms) == []
    assert rates_now(connection, POOL, T0) == [
        ContractRate(
            contract_id=made.contract_id,
            tenant=shop.tenants["acme"],
            mu_s=10 * UNIT,
            overflow="spill",
            spill_mu_s=7,
            end_ms=end_ms,
        )
    ]
    assert rates_now(connection, "other", T0) == []


# The last ms of a month and of a year, the hours in which Berlin and New York turn their clocks, a leap day,
# a leap second's neighbour.
EDGES = [
    "2027-01-31T23:59:59.999Z", "2027-12-31T23:59:59.999Z", "2027-03-28T03:00:00+02:00",
    "2027-10-31T02:30:00+01:00", "2027-03-14T03:00:00-04:00", "2028-02-29T00:00:00Z", "2027-06-30T23:59:59Z",
]  # fmt: skip


@pytest.fixture(params=["UTC", "Europe/Berlin", "America/New_York"])
def local_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine stands there."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("edge", EDGES)
def test_fault_40_starts_steps_and_ends_hold_from_their_millisecond_on(
    connection: Connection, shop: Shop, local_time: None, edge: str
) -> None:
    at_ms = TypeAdapter(Moment).validate_python(edge)
    assert at_ms == round(datetime.fromisoformat(edge).timestamp() * 1000)
    assert TypeAdapter(Moment).validate_python(utc(at_ms)) == at_ms
    hold(connection, shop.tenants["acme"], 10, from_ms=at_ms, until_ms=at_ms + DAY)
    hold(connection, shop.tenants["bolt"], 20, from_ms=at_ms - DAY, until_ms=at_ms)
    hold(
        connection,
        shop.tenants["core"],
        [(at_ms - DAY, 1), (at_ms, 2)],
        from_ms=at_ms - DAY,
        until_ms=at_ms + DAY,
    )

    def rates(moment_ms: int) -> set[tuple[str, int]]:
        names = {tenant_id: name for name, tenant_id in shop.tenants.items()}
        return {(names[each.tenant], each.mu_s // UNIT) for each in rates_now(connection, POOL, moment_ms)}

    assert rates(at_ms - 1) == {("bolt", 20), ("core", 1)}
    assert rates(at_ms) == {("acme", 10), ("core", 2)}
    advance(connection, at_ms - 1)
    assert sorted(each.state for each in advance(connection, at_ms)) == ["active", "ended"]


@settings(deadline=None)
@given(st.integers(0, MS_MAX))
@example(4_321_907_228_025)  # In 2106, where a float of seconds falls just short of its millisecond.
def test_fault_40_a_moment_that_was_written_is_read_as_it_was(at_ms: int) -> None:
    assert TypeAdapter(Moment).validate_python(utc(at_ms)) == at_ms


@settings(
    max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(1, 50)), min_size=1, max_size=6), st.integers(1, 100)
)
def test_fault_40_the_database_and_the_contract_agree_on_every_edge(
    connection: Connection, shop: Shop, ramp: list[tuple[int, int]], last_ms: int
) -> None:
    steps, at_ms = [], T0
    for after_ms, units in ramp:
        steps.append((at_ms, units))
        at_ms += after_ms
    end_ms = at_ms - ramp[-1][0] + last_ms
    nested = connection.begin_nested()
    made = hold(connection, shop.tenants["acme"], steps, from_ms=T0, until_ms=end_ms)
    for edge_ms in [T0, *(step for step, _ in steps), end_ms]:
        for moment_ms in (edge_ms - 1, edge_ms, edge_ms + 1):
            found = [each.mu_s for each in rates_now(connection, POOL, moment_ms)]
            assert sum(found) == made.mu_s_at(moment_ms)
    nested.rollback()


COUNTING = ("billing/contracts", "billing/allocator", "billing/reclaims", "billing/cell")


@pytest.mark.sources
def test_fault_40_what_counts_time_asks_the_stores_for_it() -> None:
    """A clock of this machine that jumps moves no contract, no minute, no reclaim and no lease."""
    asking = {
        f"{source.path}:{node.lineno}"
        for source in sources()
        if source.path.startswith((*COUNTING, "billing/allocator/capacity_usage", "billing/usage/reap"))
        for node in source.walk((ast.Attribute,))
        if isinstance(node, ast.Attribute)
        and node.attr in {"time", "time_ns", "now", "utcnow", "today"}
        and isinstance(node.value, ast.Name)
        and node.value.id in {"time", "datetime", "date"}
    }
    assert asking == set()
