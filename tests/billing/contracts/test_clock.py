"""Time makes contracts active and ends them, once; and says what each is worth at a moment."""

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from billing.contracts import store
from billing.contracts.clock import advance
from billing.contracts.rates import ContractRate, rates_now
from billing.contracts.terms import Contract
from tests.billing.contracts.selling import DAY, POOL, T0, UNIT, Shop, terms


def hold(connection: Connection, tenant_id: str, units: Any, state: Any = "signed", **fields: Any) -> Contract:
    draft = store.insert_draft(connection, terms(tenant_id, units, **fields), by="operator", now_ms=T0)
    signed = store.save(connection, replace(draft, state="signed"), "signed", by="operator", now_ms=T0)
    return (
        signed if state == "signed" else store.save(connection, replace(draft, state=state), state, by="x", now_ms=T0)
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
        ContractRate(made.contract_id, shop.tenants["acme"], 10 * UNIT, "spill", 7, end_ms)
    ]
    assert rates_now(connection, "other", T0) == []
