"""What a price list is tried on: the newest requests of its models, found by the sums of their hours."""

from sqlalchemy import Engine, text

from billing.catalogue.price_book import set_price
from billing.ledger.entries import ReceivedEvent, record_events
from billing.ledger.price_trial import sample
from billing.moments import DAY_MS
from billing.schema.clock import database_now_ms
from tests.billing.events import event

READ = text("""
    select sum(seq_tup_read + idx_tup_fetch) from pg_stat_xact_user_tables where relname like 'usage_event%'
""")


def test_prices_are_tried_on_the_newest_requests_of_some_weeks(database: Engine) -> None:
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="1", output="1", valid_from_ms=0)
        now_ms = database_now_ms(connection)
        made = [
            event(f"{tenant}_{back}", tenant=tenant, started_ms=now_ms - back * DAY_MS - 2_000)
            for tenant in ("ten_a", "ten_b")
            for back in (0, 1, 34, 37)
        ]
        made += [event(f"m2_{n}", model="m2", tenant="ten_c", started_ms=now_ms - 2_000) for n in range(50)]
        record_events(connection, [ReceivedEvent.read(each.to_json()) for each in made])
    with database.connect() as connection:
        # Whichever of its partitions is small, PostgreSQL would read it whole. Statistics may be of an
        # earlier test.
        connection.execute(text("analyze usage_event"))
        connection.execute(text("set local enable_seqscan = off"))
        before = connection.execute(READ).scalar_one()
        newest = sample(connection, {"m1", "gone"}, 3)
        assert connection.execute(READ).scalar_one() - before < 20  # of 58
        assert sorted((now_ms - each.started_ms) // DAY_MS for each in newest) == [0, 0, 1]
        found = sample(connection, {"m1", "m2"}, 100)
    assert len([each for each in found if each.model == "m2"]) == 50
    assert sorted((now_ms - each.started_ms) // DAY_MS for each in found if each.model == "m1") == [
        0, 0, 1, 1, 34, 34,
    ]  # fmt: skip
