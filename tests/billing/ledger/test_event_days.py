"""Partitions by day: each event in that of its day, read from no others, and recorded once wherever it is."""

import threading
from collections.abc import Iterator

import pytest
from alembic import command
from sqlalchemy import Connection, Engine, create_engine, select, text
from sqlalchemy.exc import DBAPIError

from billing.catalogue.price_book import set_price
from billing.ledger import event_days
from billing.ledger.check import check_ledger
from billing.ledger.entries import ReceivedEvent, Recorded, record_events
from billing.ledger.usage_report import report_usage, usage_of_requests
from billing.migrate import alembic_config, upgrade
from billing.moments import DAY_MS
from billing.schema.clock import database_now_ms
from billing.schema.ledger import NO_DAY, usage_conflict, usage_event
from billing.wire.usage_event import UsageEvent
from tests.billing.events import event


def record(connection: Connection, *events: UsageEvent) -> Recorded:
    return record_events(connection, [ReceivedEvent.read(each.to_json()) for each in events])


def at(request_id: str, moment_ms: int, **changes: object) -> UsageEvent:
    return event(request_id, started_ms=moment_ms, ended_ms=moment_ms, **changes)  # type: ignore[arg-type]


@pytest.fixture
def connection(database: Engine) -> Iterator[Connection]:
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
        yield connection


def where(connection: Connection) -> dict[str, str]:
    query = text("select request_id, tableoid::regclass::text from usage_event")
    return {row[0]: row[1] for row in connection.execute(query)}


def test_an_event_is_in_the_partition_of_its_day_however_late_it_comes(connection: Connection) -> None:
    now_ms = database_now_ms(connection)
    today = now_ms // DAY_MS
    record(
        connection,
        at("now", now_ms), at("late", now_ms - 100 * DAY_MS), at("years_ago", 1_690_000_000_000),
        at("of_a_wrong_clock", now_ms + 9 * DAY_MS), at("first", today * DAY_MS),
        at("last", today * DAY_MS - 1),
    )  # fmt: skip
    assert where(connection) == {
        "now": f"usage_event_d{today}",
        "first": f"usage_event_d{today}",
        "last": f"usage_event_d{today - 1}",
        "late": f"usage_event_d{today - 100}",
        "years_ago": "usage_event_d0",
        "of_a_wrong_clock": "usage_event_d0",
    }
    assert check_ledger(connection) == []
    # Both ends of this time are read from requests, and the year in between from hours.
    report = report_usage(
        connection, tenant="ten_a", from_ms=1_690_000_000_000, until_ms=now_ms + 9 * DAY_MS + 1
    )
    assert report.total.figures["requests"] == 6
    with pytest.raises(DBAPIError, match="append-only"), connection.begin_nested():
        connection.execute(text(f"delete from usage_event_d{today - 100}"))  # noqa: S608


def test_a_request_is_recorded_once_though_its_second_event_is_of_another_day(connection: Connection) -> None:
    now_ms = database_now_ms(connection)
    first, other = at("a", now_ms), at("a", now_ms - 5 * DAY_MS)
    assert len(record(connection, first, other).events) == 1
    again = record(connection, other, first)
    assert (again.events, again.duplicates, again.conflicts) == ((), 1, ("a",))
    assert len(where(connection)) == 1
    assert len(connection.execute(select(usage_conflict)).all()) == 1
    assert check_ledger(connection) == []


def test_of_two_consumers_with_two_days_of_a_request_one_records(
    database: Engine, connection: Connection
) -> None:
    """The second has inserted its event before the first commits."""
    now_ms = database_now_ms(connection)
    connection.commit()
    found: list[Recorded] = []

    def second() -> None:
        with database.begin() as other:
            found.append(record(other, at("a", now_ms - DAY_MS)))

    with database.begin() as first:
        record(first, at("a", now_ms))
        thread = threading.Thread(target=second)
        thread.start()
        waits = text("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
        with database.connect() as watching:
            while not watching.execute(waits).scalar_one():
                watching.rollback()
    thread.join(timeout=60)
    with database.connect() as reading:
        assert len(where(reading)) == 1
        assert check_ledger(reading) == []
        conflicts = reading.execute(select(usage_conflict)).all()
    assert found == [Recorded((), 0, ("a",))]
    assert len(conflicts) == 1


def test_only_partitions_of_the_asked_days_are_read(connection: Connection) -> None:
    now_ms = database_now_ms(connection)
    today = now_ms // DAY_MS
    for query in (
        usage_of_requests("ten_a", now_ms - 1000, now_ms),
        select(usage_event).where(event_days.are_those({"a": today, "b": NO_DAY})),
    ):
        compiled = query.compile(connection, compile_kwargs={"literal_binds": True})
        plan = "".join(connection.exec_driver_sql(f"explain {compiled}").scalars())
        assert f"usage_event_d{today}" in plan
        assert "usage_event_d0" in plan
        assert f"usage_event_d{today - 1}" not in plan
        assert f"usage_event_d{today + 1}" not in plan


def test_an_earlier_version_records_beside_this_one(connection: Connection) -> None:
    """Its events and entries have no day, and triggers add them to the sums by hour."""
    now_ms = database_now_ms(connection)
    record(connection, at("a", now_ms), at("b", now_ms, tokens=(1, 0, 1)))
    connection.execute(
        text("""
        create temporary table older as select * from usage_event where request_id = 'a';
        update older set request_id = 'c', day = 0;
        insert into usage_event select * from older;
        with made as (
          insert into ledger_transaction (request_id, pricing, price_id)
          select 'c', pricing, price_id from ledger_transaction where request_id = 'a'
          returning transaction_id
        )
        insert into ledger_posting select made.transaction_id, line, account, holder, amount_picousd
        from made, ledger_posting p join ledger_transaction t using (transaction_id) where t.request_id = 'a';
        update usage_total set billed_prompt = billed_prompt + 10, billed_output = billed_output + 5;
    """)
    )
    assert where(connection)["c"] == "usage_event_d0"
    assert check_ledger(connection) == []
    assert record(connection, at("c", now_ms)).events == ()


def test_a_filled_database_is_upgraded_where_it_is(database_url: str) -> None:
    """What there is becomes the partition of no day, and goes on being found."""
    upgrade(database_url)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0046")
        connection.execute(
            text("""
            insert into price (model, valid_from_ms, input_picousd, cached_input_picousd, output_picousd)
            values ('m1', 0, 1000000, 500000, 2000000)
        """)
        )
        connection.execute(
            text("""
            insert into usage_event (request_id, version, tenant, project, key_id, model, pool, cell,
              instance, epoch, route, stream, class, weights, samples, started_ms, ended_ms, waited_ms,
              ending, usage_source, produced_prompt, produced_cached, produced_output, delivered_output,
              billed_prompt, billed_cached, billed_output, absorbed_prompt, absorbed_output,
              absorbed_reasons, units_mu, http_status, gateway, digest)
            select 'req_' || n, 1, 'ten_a', 'prj_a', 'key_a', 'm1', 'm1', 'm1', 'i1', 'e1', 'chat', true,
              'on_demand', '{}', 1, now_ms - n * 3600000, now_ms - n * 3600000, 0, 'complete', 'engine',
              10, 0, 5, 5, 10, 0, 5, 0, 0, '{}', 1, 200, 'gw', 'x'
            from generate_series(1, 100) n,
              lateral (select (extract(epoch from clock_timestamp()) * 1000)::bigint as now_ms) clock;
            insert into ledger_transaction (request_id, pricing, price_id)
            select request_id, 'priced', 1 from usage_event;
            insert into ledger_posting select transaction_id, line, account, holder, sign * 20000000
            from ledger_transaction,
              (values (0, 'receivable', 'ten_a', 1), (1, 'revenue', 'm1', -1))
                as each (line, account, holder, sign);
            insert into usage_total values ('i1', 'e1', 1000, 500, 0, 0);
        """)
        )
        file_before = connection.execute(text("select pg_relation_filenode('usage_event')")).scalar_one()
    upgrade(database_url)
    with engine.begin() as connection:
        # Not a row of it was written again.
        file_now = connection.execute(text("select pg_relation_filenode('usage_event_d0')")).scalar_one()
        assert file_now == file_before
        assert set(where(connection).values()) == {"usage_event_d0"}
        now_ms = database_now_ms(connection)
        # One of them comes again, and a new one.
        again = record(connection, at("req_5", now_ms), at("new", now_ms))
        assert [each.event.request_id for each in again.events] == ["new"]
        assert again.conflicts == ("req_5",)
        assert report_usage(connection, tenant="ten_a").total.figures["requests"] == 101
        assert [each for each in check_ledger(connection) if each.kind != "chain_broken"] == []
    engine.dispose()
