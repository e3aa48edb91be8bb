"""Prices of a class, of a contract, or of both: who pays which, the same in Python and in SQL."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, select, text

from billing.catalogue import projected
from billing.catalogue.price_book import ALL, Scope, list_prices, read_price_book, set_price
from billing.ledger.check import check_ledger
from billing.ledger.entries import ReceivedEvent, record_events
from billing.ledger.usage_report import report_usage
from billing.refusals import Conflict
from billing.schema.ledger import ledger_transaction
from billing.wire.dimensions import Dimension
from billing.wire.usage_event import CapacityClass, UsageEvent
from tests.billing.events import event
from tests.examples import examples

START_MS = 1_700_000_000_000
OURS, OTHERS = "con_" + "a" * 24, "con_" + "b" * 24


def sign(connection: Connection, contract_id: str, tenant: str) -> None:
    """A contract for the pool m1 that holds for an hour from START."""
    connection.execute(
        text("""
            insert into tenant (tenant_id, name, kind, on_demand, redis_down)
            values (:tenant, :tenant, 'external', true, '{}') on conflict do nothing
        """),
        {"tenant": tenant},
    )
    connection.execute(
        text("""
            insert into contract (contract_id, tenant_id, pool, state, starts_ms, ends_ms, minimum_until_ms,
              tenant_notice_days, operator_notice_days, effective_end_ms, overflow, headroom_permille)
            values (:id, :tenant, 'm1', 'active', :start, :end, :end, 1, 1, :end, 'spill', 100)
        """),
        {"id": contract_id, "tenant": tenant, "start": START_MS, "end": START_MS + 3_600_000},
    )


def rate(connection: Connection, usd: str, scope: Scope = ALL, from_ms: int = 0) -> int:
    rates = {"input": usd, "cached_input": usd, "output": usd}
    return set_price(
        connection, "m1", **rates, valid_from_ms=from_ms, scope=scope, now_ms=lambda: from_ms
    ).price.price_id


def request(request_id: str, class_: str = "on_demand", **changes: Any) -> UsageEvent:
    spilled = changes.pop("spilled", False)
    made = event(request_id, class_=CapacityClass(class_), **{"started_ms": START_MS} | changes)
    return replace(made, decision={"why": "spilled"}) if spilled else made


def record(connection: Connection, *events: UsageEvent) -> dict[str, int | None]:
    """Their prices, by request."""
    record_events(connection, [ReceivedEvent.read(each.to_json()) for each in events])
    query = select(ledger_transaction.c.request_id, ledger_transaction.c.price_id)
    return {row[0]: row[1] for row in connection.execute(query)}


def test_the_nearest_price_holds(database: Engine) -> None:
    with database.begin() as connection:
        sign(connection, OURS, "ten_a")
        sign(connection, OTHERS, "ten_b")
        general = rate(connection, "8")
        flex, batch = (
            rate(connection, "4", Scope(class_="flex")),
            rate(connection, "2", Scope(class_="batch")),
        )
        reserved = rate(connection, "1", Scope(contract_id=OURS))
        over = rate(connection, "5", Scope(contract_id=OURS, class_="on_demand"))
        priced = record(
            connection,
            request("plain"),
            request("flex", "flex"),
            request("batch", "flex", line="batch_1/1"),
            request("within", "reserved", contract=OURS),
            request("above", spilled=True),
            request("above_too_late", spilled=True, started_ms=START_MS + 3_600_000),
            request("above_other", spilled=True, tenant="ten_b"),
            request("other", "reserved", contract=OTHERS, tenant="ten_b"),
        )
        assert priced == {
            "plain": general, "flex": flex, "batch": batch, "within": reserved, "above": over,
            "above_too_late": general, "above_other": general, "other": general,
        }  # fmt: skip
        assert check_ledger(connection) == []
        lines = report_usage(connection, tenant="ten_a", by=[Dimension.CLASS, Dimension.CONTRACT]).lines
        counts = {(line.group["class"], line.group["contract"]): line.figures["requests"] for line in lines}
        assert counts == {
            ("batch", ""): 1, ("flex", ""): 1, ("on_demand", ""): 3, ("reserved", OURS): 1,
        }  # fmt: skip


def test_of_two_contracts_the_one_with_a_price_of_the_model_holds(database: Engine) -> None:
    """Whatever else is recorded with the request."""
    with database.begin() as connection:
        sign(connection, OURS, "ten_a")
        sign(connection, OTHERS, "ten_a")
        rate(connection, "8")
        ours = rate(connection, "1", Scope(contract_id=OURS))
        rates = {"input": "2", "cached_input": "2", "output": "2"}
        set_price(
            connection, "m2", **rates, valid_from_ms=0, scope=Scope(contract_id=OTHERS), now_ms=lambda: 0
        )
        assert record(connection, request("alone", spilled=True))["alone"] == ours
        both = record(
            connection, request("above", spilled=True), request("with", model="m2", contract=OTHERS)
        )
        assert both["above"] == ours
        assert check_ledger(connection) == []


SCOPES = st.builds(
    Scope,
    st.none(),
    st.sampled_from([None, OURS, OTHERS]),
    st.sampled_from([None, "reserved", "on_demand", "flex", "batch"]),
)
REQUESTS = st.fixed_dictionaries(
    {
        "class_": st.sampled_from(list(CapacityClass)),
        "tenant": st.sampled_from(["ten_a", "ten_b"]),
        "contract": st.sampled_from([None, OURS, OTHERS]),
        "line": st.sampled_from([None, "batch_1/1"]),
        "spilled": st.booleans(),
        "started_ms": st.sampled_from([START_MS - 1, START_MS, START_MS + 500, START_MS + 3_600_000]),
    }
)


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prices=st.dictionaries(st.tuples(SCOPES, st.sampled_from([0, START_MS + 500])), st.just(1), max_size=8),
    requests=st.lists(REQUESTS, min_size=1, max_size=8),
)
def test_the_audit_finds_the_same_price(database: Engine, prices: Any, requests: Any) -> None:
    with database.connect() as connection, connection.begin() as whole:
        sign(connection, OURS, "ten_a")
        sign(connection, OTHERS, "ten_b")
        for number, (scope, from_ms) in enumerate(prices, 1):
            rate(connection, str(number), scope, from_ms)
        record(connection, *(request(f"req_{index}", **each) for index, each in enumerate(requests)))
        assert check_ledger(connection) == []
        whole.rollback()


def test_a_price_of_a_class_does_not_begin_in_a_priced_past(database: Engine) -> None:
    with database.begin() as connection:
        rate(connection, "1", from_ms=START_MS)
        rates = {"input": "1", "cached_input": "1", "output": "1"}
        for from_ms in (START_MS - 1, START_MS + 1):
            with pytest.raises(Conflict):
                set_price(connection, "m1", **rates, valid_from_ms=from_ms, scope=Scope(class_="flex"))


def test_gateways_hold_the_dearest_price(database: Engine) -> None:
    later_ms = 4_000_000_000_000
    with database.begin() as connection:
        sign(connection, OURS, "ten_a")
        rate(connection, "2", from_ms=START_MS)
        rate(connection, "3", Scope(contract_id=OURS), from_ms=START_MS + 1)
        rate(connection, "1", Scope(class_="flex"), from_ms=START_MS + 2)
        rate(connection, "2.5", Scope(contract_id=OURS), from_ms=later_ms)
        figures = projected._prices(connection)
    assert figures == {"m1": [[later_ms, *[2_500_000] * 4], [START_MS + 2, *[3_000_000] * 4]]}


def test_a_model_with_a_price_of_one_class_only_is_not_for_sale(database: Engine) -> None:
    with database.begin() as connection:
        rate(connection, "1", Scope(class_="flex"))
        assert len(list_prices(connection, "m1")) == 1
        book = read_price_book(connection, ["m1"])
        assert book.at("m1", START_MS) is None
        assert record(connection, request("plain"), request("flex", "flex"))["plain"] is None
