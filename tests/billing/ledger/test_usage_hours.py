"""Sums by hour and by day: always those of the requests themselves, whoever recorded them, however they got
a price.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, insert, select, text

from billing.catalogue.money import Money
from billing.catalogue.price_book import set_price
from billing.findings import FindingKind
from billing.ledger import day_sums
from billing.ledger.backfill import Scope, backfill
from billing.ledger.check import check_ledger
from billing.ledger.entries import OWED_EVENTS, ReceivedEvent, record_events
from billing.ledger.usage_report import report_usage, usage_between
from billing.migrate import alembic_config, upgrade
from billing.moments import DAY_MS, HOUR_MS
from billing.schema.ledger import ledger_posting, summed_day, usage_event
from billing.wire.dimensions import Dimension
from billing.wire.ending import Ending
from billing.wire.usage_event import UsageEvent
from tests.billing.events import event
from tests.examples import examples
from tests.fixtures.gateway import wait_until

START_MS = 472_222 * HOUR_MS


def record(connection: Connection, events: Sequence[UsageEvent]) -> None:
    record_events(connection, [ReceivedEvent.read(each.to_json()) for each in events])


def owed(connection: Connection, tenant: str | None, from_ms: int | None, until_ms: int | None) -> Any:
    """Requests, tokens and amount by the requests themselves."""
    query = select(usage_event, ledger_posting.c.amount_picousd).select_from(OWED_EVENTS)
    rows = [
        row
        for row in connection.execute(query)
        if (tenant is None or row.tenant == tenant)
        and (from_ms is None or row.ended_ms >= from_ms)
        and (until_ms is None or row.ended_ms < until_ms)
    ]
    whole = [row for row in rows if "-" not in row.request_id]
    return (
        len(whole),
        sum(row.billed_prompt for row in rows),
        sum(row.billed_output for row in rows),
        sum(row.absorbed_prompt + row.absorbed_output for row in rows),
        Money(sum(int(row.amount_picousd or 0) for row in rows)),
    )


def reported(
    connection: Connection, tenant: str | None, from_ms: int | None, until_ms: int | None, by: Dimension
) -> Any:
    total = report_usage(
        connection, tenant=tenant, from_ms=from_ms, until_ms=until_ms, by=[Dimension.MODEL, by]
    ).total
    figures = total.figures
    return (
        figures["requests"],
        figures["tokens.prompt"],
        figures["tokens.output"],
        figures["absorbed.prompt"] + figures["absorbed.output"],
        total.amount,
    )


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ten_a", "ten_b"]),
        st.sampled_from(["m1", "m2"]),
        st.integers(0, 4 * HOUR_MS) | st.integers(0, 60 * HOUR_MS),
        st.tuples(st.integers(0, 50), st.just(0), st.integers(1, 50)),
        st.sampled_from([Ending.COMPLETE, Ending.CLIENT_DISCONNECT, Ending.ENGINE_DIED]),
        st.sampled_from([None, "usage_missing"]),
        st.booleans(),
    ),
    max_size=12,
)
# The first midnight is two hours after the start.
BOUND = (
    st.none()
    | st.integers(-HOUR_MS, 61 * HOUR_MS)
    | st.integers(0, 60).map(lambda hour: hour * HOUR_MS)
    | st.integers(-1, 2).map(lambda day: 2 * HOUR_MS + day * DAY_MS)
)


@settings(max_examples=examples(90), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EVENTS, BOUND, BOUND, st.sampled_from([None, "ten_a"]), st.booleans(), st.integers(0, 12))
def test_any_time_of_any_tenant_is_what_its_requests_were(
    database: Engine,
    rows: list[Any],
    first: int | None,
    last: int | None,
    tenant: str | None,
    priced: bool,
    summed: int,
) -> None:
    """`m2` has no price while they are recorded, and gets one later. After so many, days are added up."""
    from_ms, until_ms = (None if each is None else START_MS + each for each in (first, last))
    with database.connect() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        events = [
            event(
                f"req_{number}-2" if later else f"req_{number}", tokens, ending, anomaly, tenant=who,
                model=model, started_ms=START_MS + after_ms - 1500,
            )
            for number, (who, model, after_ms, tokens, ending, anomaly, later) in enumerate(rows)
        ]  # fmt: skip
        for number, each in enumerate(events):
            if number == summed:
                add_up_all(connection)
            record(connection, [each, each])
        if priced:
            set_price(connection, "m2", input="3", cached_input="1", output="5", valid_from_ms=0)
            backfill(connection, Scope("m2", 0, 10**14), dry_run=False)
        expected = owed(connection, tenant, from_ms, until_ms)
        for by in (Dimension.HOUR, Dimension.DAY, Dimension.KEY):
            assert reported(connection, tenant, from_ms, until_ms, by) == expected
        assert check_ledger(connection) == []


def add_up_all(connection: Connection) -> None:
    """Every day that may have usage."""
    days = range(START_MS // DAY_MS - 1, START_MS // DAY_MS + 4)
    connection.execute(insert(summed_day), [{"day": day, "whole": False, "after_xid": 0} for day in days])
    assert all(day_sums.add_up(connection, day) for day in days)


def whole_days(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        found = select(summed_day.c.day).where(summed_day.c.whole).order_by(summed_day.c.day)
        return list(connection.execute(found).scalars())


def test_days_that_are_over_are_added_up_and_again_after_late_usage(database: Engine) -> None:
    day = int(time.time() * 1000) // DAY_MS - 3
    hours = {"a": 13, "b": 20, "c": 1}
    late = [event(name, started_ms=day * DAY_MS + hour * HOUR_MS) for name, hour in hours.items()]
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        record(connection, late[:1])
    # One that has recorded, and not ended, when the days are noted.
    with database.begin() as recording:
        record(recording, late[1:2])
        for _ in range(3):
            assert day_sums.round_of_days(database) == 0
    assert day_sums.round_of_days(database) == 3
    assert whole_days(database) == [day, day + 1, day + 2]
    with database.begin() as connection:
        assert reported(connection, None, None, None, Dimension.DAY)[0] == 2
        record(connection, late[2:])
        assert reported(connection, None, None, None, Dimension.DAY)[0] == 3
    assert whole_days(database) == [day + 1, day + 2]
    assert [day_sums.round_of_days(database) for _ in range(3)] == [0, 1, 0]
    with database.connect() as connection:
        assert reported(connection, None, None, None, Dimension.DAY)[0] == 3
        assert check_ledger(connection) == []


def test_a_day_to_which_somebody_adds_is_not_added_up(database: Engine) -> None:
    first = event("a")
    day = first.ended_ms // DAY_MS
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        connection.execute(insert(summed_day).values(day=day, whole=False, after_xid=0))
    with database.connect() as recording:
        record(recording, [first])
        with ThreadPoolExecutor(1) as other, database.begin() as connection:
            done = other.submit(day_sums.add_up, connection, day)
            with database.connect() as looking:
                waits = text("select count(*) from pg_locks where not granted")
                wait_until(lambda: looking.execute(waits).scalar() == 1, "add_up to wait")
            recording.commit()
            assert done.result(60) is False
    assert whole_days(database) == []


def test_a_day_that_was_noted_anew_meanwhile_is_not_added_up(database: Engine) -> None:
    """As by another leader: who is adding to it may not have seen that note."""
    with database.begin() as connection:
        connection.execute(insert(summed_day).values(day=1, whole=False))
        assert not day_sums.add_up(connection, 1)


@pytest.mark.parametrize("tenant", [None, "ten_a"])
def test_hours_of_days_that_are_added_up_are_not_read(database: Engine, tenant: str | None) -> None:
    first = START_MS // DAY_MS * DAY_MS
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        record(connection, [event(f"r{n}", started_ms=first + n * HOUR_MS) for n in range(40)])
        add_up_all(connection)
        connection.execute(text("analyze usage_hour, usage_day, summed_day"))
        usage = usage_between(tenant, first, first + 3 * DAY_MS)
        words = str(select(usage).compile(database, compile_kwargs={"literal_binds": True}))
        plan = connection.exec_driver_sql(f"explain (analyze) {words}".replace("%", "%%")).scalars().all()
    read = [line for line in plan if " on usage_hour" in line]
    assert read
    assert all("never executed" in line for line in read), "\n".join(plan)


def test_a_changed_day_is_found(database: Engine) -> None:
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        record(connection, [event("a")])
        add_up_all(connection)
        connection.execute(text("update usage_day set requests = requests + 1"))
        (finding,) = check_ledger(connection)
    assert finding.kind is FindingKind.TOTALS_DIFFER
    assert finding.ids == (f"ten_a {event('a').ended_ms // DAY_MS}",)


def test_a_changed_hour_is_found(database: Engine) -> None:
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        record(connection, [event("a")])
    with database.begin() as connection:
        connection.execute(text("update usage_hour set billed_output = billed_output + 1"))
    with database.connect() as connection:
        (finding,) = check_ledger(connection)
    assert finding.kind is FindingKind.TOTALS_DIFFER
    assert finding.ids == (f"ten_a {event('a').ended_ms // HOUR_MS}",)


def test_what_was_recorded_before_there_were_hours_is_in_them(database_url: str) -> None:
    engine = create_engine(database_url)
    upgrade(database_url)
    with engine.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        record(connection, [event("a"), event("b", model="m2"), event("req_c"), event("req_c-2")])
        set_price(connection, "m2", input="3", cached_input="1", output="5", valid_from_ms=0)
        backfill(connection, Scope("m2", 0, 10**14), dry_run=False)
        before = report_usage(connection, tenant="ten_a", by=[Dimension.MODEL, Dimension.DAY]).to_json()
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0025")
    upgrade(database_url)
    with engine.connect() as connection:
        after = report_usage(connection, tenant="ten_a", by=[Dimension.MODEL, Dimension.DAY]).to_json()
        assert check_ledger(connection) == []
    assert after == before
    assert before["total"]["requests"] == 3
    engine.dispose()


@pytest.mark.parametrize("by", [(Dimension.KEY,), (Dimension.PROJECT, Dimension.CLASS), (Dimension.TENANT,)])
def test_every_dimension_adds_up_to_the_whole(database: Engine, by: tuple[Dimension, ...]) -> None:
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        record(
            connection,
            [
                event(f"r{n}", key_id=f"key_{n % 2}", project=f"prj_{n % 3}", tenant=f"ten_{n % 2}")
                for n in range(7)
            ],
        )
    with database.connect() as connection:
        report = report_usage(connection, tenant=None, by=by)
        whole = report_usage(connection, tenant=None)
    assert len(report.lines) > 1
    assert report.total == whole.total
    assert report.items == whole.items
