"""The consumer: every event of every cell is recorded once, whatever dies, and nothing blocks a stream."""

import threading
from collections.abc import Callable

import pytest
import redis
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from billing.catalogue.price_book import set_price
from billing.ledger.entries import ReceivedEvent, record_events
from billing.metrics import BillingMetrics
from billing.schema.ledger import ledger_transaction, usage_conflict, usage_event, usage_rejected
from billing.usage.consumer import Consumer
from billing.usage.streams import UsageStreams
from billing.wire import redis_keys
from billing.wire.usage_event import UsageEvent
from tests.billing.events import event

NewConsumer = Callable[[str], Consumer]


@pytest.fixture
def new_consumer(database: Engine, raw_redis: redis.Redis) -> NewConsumer:
    """Consumers of one database and one Redis, by name; what another has held for any time may be claimed."""

    def make(name: str) -> Consumer:
        return Consumer(database, raw_redis, name=name, batch=500, claim_idle_ms=0, metrics=BillingMetrics())

    return make


def publish(client: redis.Redis, *events: UsageEvent | bytes, cell: str = "m1") -> None:
    client.sadd(redis_keys.CELLS, cell)
    for item in events:
        raw = item if isinstance(item, bytes) else item.to_json()
        client.xadd(redis_keys.usage_stream(cell), {redis_keys.USAGE_FIELD: raw})


def count(database: Engine, table: str) -> int:
    with database.connect() as connection:
        return int(connection.execute(text(f"select count(*) from {table}")).scalar_one())  # noqa: S608


def test_events_of_all_cells_are_recorded_and_leave_the_streams(
    database: Engine, raw_redis: redis.Redis, new_consumer: NewConsumer
) -> None:
    publish(raw_redis, event("a"), event("b"), cell="m1")
    publish(raw_redis, event("c", cell="m2"), cell="m2")
    assert new_consumer("one").consume_once() == 3
    assert count(database, "usage_event") == count(database, "ledger_transaction") == 3
    for cell in ("m1", "m2"):
        assert raw_redis.xlen(redis_keys.usage_stream(cell)) == 0
        assert raw_redis.xpending(redis_keys.usage_stream(cell), redis_keys.USAGE_GROUP)["pending"] == 0


def test_events_written_before_the_group_existed_are_recorded(
    database: Engine, raw_redis: redis.Redis, new_consumer: NewConsumer
) -> None:
    publish(raw_redis, event("a"))
    new_consumer("one").consume_once()
    assert count(database, "usage_event") == 1


def test_death_between_commit_and_acknowledgement_bills_once(
    database: Engine, raw_redis: redis.Redis, new_consumer: NewConsumer
) -> None:
    survivor = new_consumer("survivor")
    publish(raw_redis, event("a"), event("b"))
    # Read and committed, never acknowledged: what a kill -9 leaves behind.
    dead = UsageStreams(raw_redis, "dead")
    dead.ensure_groups(["m1"])
    held = [ReceivedEvent.read(entry.raw) for entry in dead.read_new(["m1"], 10) if entry.raw is not None]
    with database.begin() as connection:
        assert len(record_events(connection, held).events) == 2
    assert survivor.consume_once() == 0
    assert survivor.claim_once() == 2
    assert count(database, "usage_event") == count(database, "ledger_transaction") == 2
    assert raw_redis.xlen(redis_keys.usage_stream("m1")) == 0


def test_what_is_still_held_by_a_living_consumer_is_not_claimed(
    database: Engine, raw_redis: redis.Redis
) -> None:
    patient = Consumer(
        database, raw_redis, name="p", batch=500, claim_idle_ms=60_000, metrics=BillingMetrics()
    )
    publish(raw_redis)
    patient.consume_once()
    publish(raw_redis, event("a"))
    living = UsageStreams(raw_redis, "living")
    living.ensure_groups(["m1"])
    living.read_new(["m1"], 10)
    assert patient.claim_once() == 0


def test_after_an_outage_of_sql_the_same_entries_are_recorded_first(
    database: Engine, raw_redis: redis.Redis, new_consumer: NewConsumer
) -> None:
    consumer = new_consumer("one")
    publish(raw_redis, event("a"))
    with database.begin() as connection:
        connection.execute(text("alter table usage_event rename to gone"))
    with pytest.raises(ProgrammingError):
        consumer.consume_once()
    with database.begin() as connection:
        connection.execute(text("alter table gone rename to usage_event"))
    publish(raw_redis, event("b"))
    consumer.consume_once()
    consumer.consume_once()
    assert count(database, "usage_event") == 2
    assert raw_redis.xlen(redis_keys.usage_stream("m1")) == 0


@pytest.mark.parametrize(
    "code", ["disk_full", "data_corrupted", "read_only_sql_transaction", "lock_not_available"]
)
def test_fault_38_what_a_ledger_that_takes_nothing_was_given_stays_in_the_stream(
    database: Engine, raw_redis: redis.Redis, new_consumer: NewConsumer, code: str
) -> None:
    """A full disk, a broken page, a server that became read-only, a table that somebody has locked."""
    consumer = new_consumer("one")
    publish(raw_redis, event("a"), event("b"))
    with database.begin() as connection:
        connection.execute(text(
            "create function fail() returns trigger language plpgsql as $$ begin "
            f"raise exception 'it takes nothing' using errcode = '{code}'; end $$"
        ))  # fmt: skip
        connection.execute(text(
            "create trigger failing before insert on ledger_posting for each row execute function fail()"
        ))  # fmt: skip
        set_price(connection, "m1", input="1", cached_input="1", output="1", valid_from_ms=0)
    for _ in range(2):
        with pytest.raises(DBAPIError, match="it takes nothing"):
            consumer.consume_once()
        assert count(database, "usage_event") == count(database, "usage_rejected") == 0
        assert raw_redis.xlen(redis_keys.usage_stream("m1")) == 2
    with database.begin() as connection:
        connection.execute(text("drop trigger failing on ledger_posting"))
    assert consumer.consume_once() == 2
    assert count(database, "usage_event") == count(database, "ledger_transaction") == 2
    assert raw_redis.xlen(redis_keys.usage_stream("m1")) == 0


def test_an_entry_that_is_no_event_is_set_aside_with_its_text_and_blocks_nothing(
    database: Engine, raw_redis: redis.Redis, new_consumer: NewConsumer
) -> None:
    nul = event("b", tenant="ten\x00a").to_json()
    huge = event("c", tokens=(777_777, 0, 1)).to_json().replace(b"777777", str(2**63).encode())
    deep = (
        event("e").to_json().replace(b'"decision":null', b'"decision":' + b'{"a":' * 300 + b"1" + b"}" * 300)
    )
    publish(raw_redis, b"{not json", b"[]", event("a"), nul, huge, deep, event("d"))
    raw_redis.xadd(redis_keys.usage_stream("m1"), {"other": "field"})
    consumer = new_consumer("one")
    assert consumer.consume_once() == 8
    with database.connect() as connection:
        assert set(connection.execute(select(usage_event.c.request_id)).scalars()) == {"a", "d"}
        rejected = connection.execute(select(usage_rejected.c.raw, usage_rejected.c.reason)).all()
    assert {bytes(row.raw) for row in rejected} == {
        b"{not json",
        b"[]",
        nul,
        huge,
        deep,
        b"{b'other': b'field'}",
    }
    assert all(row.reason for row in rejected)
    assert raw_redis.xlen(redis_keys.usage_stream("m1")) == 0


def test_a_rejected_entry_that_is_delivered_again_is_kept_once(
    database: Engine, raw_redis: redis.Redis, new_consumer: NewConsumer
) -> None:
    publish(raw_redis, b"{")
    entry = raw_redis.xrange(redis_keys.usage_stream("m1"))[0][0]
    new_consumer("one").consume_once()
    raw_redis.xadd(redis_keys.usage_stream("m1"), {"filler": "x"})
    raw_redis.delete(redis_keys.usage_stream("m1"))
    raw_redis.xadd(redis_keys.usage_stream("m1"), {redis_keys.USAGE_FIELD: "{"}, id=entry)
    new_consumer("two").consume_once()
    assert count(database, "usage_rejected") == 1


def test_a_second_differing_event_is_recorded_as_a_conflict(
    database: Engine, raw_redis: redis.Redis, new_consumer: NewConsumer
) -> None:
    publish(raw_redis, event("a"), event("a", tokens=(10, 0, 99)))
    new_consumer("one").consume_once()
    with database.connect() as connection:
        assert connection.execute(select(usage_event.c.billed_output)).scalar_one() == 5
        assert connection.execute(select(usage_conflict.c.request_id)).scalars().all() == ["a"]


def test_a_stream_that_was_lost_with_its_group_is_read_again(
    database: Engine, raw_redis: redis.Redis, new_consumer: NewConsumer
) -> None:
    consumer = new_consumer("one")
    publish(raw_redis, event("a"))
    consumer.consume_once()
    raw_redis.flushall()
    publish(raw_redis, event("b"))
    consumer.consume_once()
    consumer.consume_once()
    assert count(database, "usage_event") == 2


def test_an_entry_that_the_group_skipped_is_found(
    database: Engine, raw_redis: redis.Redis, new_consumer: NewConsumer
) -> None:
    stream = redis_keys.usage_stream("m1")
    raw_redis.sadd(redis_keys.CELLS, "m1")
    raw_redis.xadd(stream, {redis_keys.USAGE_FIELD: event("a").to_json()}, id="1700000000000-0")
    raw_redis.xgroup_create(stream, redis_keys.USAGE_GROUP, id="$")
    consumer = new_consumer("one")
    assert consumer.consume_once() == 0
    assert consumer.claim_once() == 1
    assert count(database, "usage_event") == 1
    assert raw_redis.xlen(stream) == 0


def test_lag_is_published_in_entries_and_seconds(
    database: Engine, raw_redis: redis.Redis, new_consumer: NewConsumer
) -> None:
    consumer = new_consumer("one")
    raw_redis.sadd(redis_keys.CELLS, "m1")
    raw_redis.xadd(redis_keys.usage_stream("m1"), {redis_keys.USAGE_FIELD: "x"}, id="1700000000000-0")
    raw_redis.xadd(redis_keys.usage_stream("m1"), {redis_keys.USAGE_FIELD: "x"})
    consumer.claim_once()
    registry = consumer._metrics.registry
    assert registry.get_sample_value("taas_usage_stream_lag_entries", {"cell": "m1"}) == 2
    assert (registry.get_sample_value("taas_usage_stream_lag_seconds", {"cell": "m1"}) or 0) > 1_000_000


def test_two_consumers_share_a_stream_and_record_each_event_once(
    database: Engine, raw_redis: redis.Redis, new_consumer: NewConsumer
) -> None:
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="1", output="1", valid_from_ms=0)
    publish(raw_redis, *(event(f"r{number}") for number in range(300)))
    consumers = [new_consumer("one"), new_consumer("two")]

    def drain(consumer: Consumer) -> None:
        while consumer.consume_once() + consumer.claim_once():
            pass

    threads = [threading.Thread(target=drain, args=(consumer,)) for consumer in consumers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    drain(consumers[0])
    with database.connect() as connection:
        assert connection.execute(select(func.count()).select_from(ledger_transaction)).scalar_one() == 300
    assert raw_redis.xlen(redis_keys.usage_stream("m1")) == 0
