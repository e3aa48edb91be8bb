"""A receipt is found wherever the request is, for its own tenant only."""

import pytest
import redis
from msgspec.structs import replace
from sqlalchemy import Engine, text

from billing.catalogue.price_book import set_price
from billing.cell.execute import execute
from billing.cell.scripts import CellKeys, settle_call
from billing.ledger.receipt import find_receipt
from billing.ledger.receipt_parts import Receipt
from billing.metrics import BillingMetrics
from billing.usage.consumer import Consumer
from billing.wire import redis_keys
from billing.wire.ending import Ending
from billing.wire.usage_event import CapacityClass
from tests.billing.events import event
from tests.billing.usage.test_reap import reserve


def find(
    database: Engine, client: redis.Redis, request_id: str, tenant: str | None = "ten_a"
) -> Receipt | None:
    with database.connect() as connection:
        return find_receipt(connection, client, request_id, tenant=tenant)


def settle(client: redis.Redis, request_id: str) -> None:
    keys = CellKeys.of("m1", request_id=request_id, tenant="ten_a", key_id="key_a", model="m1")
    execute(client, settle_call(keys, cost_mu=1, event=event(request_id, (10, 4, 5)).to_json()))


def consume(database: Engine, client: redis.Redis) -> None:
    Consumer(database, client, name="c", batch=500, claim_idle_ms=0, metrics=BillingMetrics()).consume_once()


def test_a_request_is_followed_from_open_over_settled_to_recorded(
    database: Engine, raw_redis: redis.Redis
) -> None:
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
    assert find(database, raw_redis, "a") is None
    reserve(raw_redis, "a", lease_ms=60_000, tokens=(10, 4, 2))
    opened = find(database, raw_redis, "a")
    assert opened is not None
    assert (opened.state, opened.facts["produced"]) == ("open", {"prompt": 10, "cached": 4, "output": 2})
    assert opened.to_json()["amount"] is None
    settle(raw_redis, "a")
    settled = find(database, raw_redis, "a")
    assert settled is not None
    assert (settled.state, settled.facts["ending"], settled.amount) == ("settled", "complete", None)
    consume(database, raw_redis)
    recorded = find(database, raw_redis, "a")
    assert recorded is not None
    as_json = recorded.to_json()
    assert (as_json["state"], as_json["pricing"], as_json["amount"], as_json["currency"]) == (
        "recorded",
        "priced",
        "0.000018",
        "USD",
    )
    assert as_json["price"] == {
        "price_id": 1,
        "input": "1.00",
        "cached_input": "0.50",
        "cache_write": "1.00",
        "output": "2.00",
    }
    for name, value in settled.facts.items():
        assert as_json[name] == value
    assert "ignored" not in as_json


def test_a_receipt_names_what_was_ignored_before_and_after_it_is_recorded(
    database: Engine, raw_redis: redis.Redis
) -> None:
    reserve(raw_redis, "a", lease_ms=60_000, tokens=(10, 4, 2))
    told = replace(event("a", (10, 4, 5)), ignored=("tools[0]", "seed"))
    keys = CellKeys.of("m1", request_id="a", tenant="ten_a", key_id="key_a", model="m1")
    execute(raw_redis, settle_call(keys, cost_mu=1, event=told.to_json()))
    settled = find(database, raw_redis, "a")
    consume(database, raw_redis)
    recorded = find(database, raw_redis, "a")
    for receipt in (settled, recorded):
        assert receipt is not None
        assert receipt.to_json()["ignored"] == ["tools[0]", "seed"]


def test_absorbed_tokens_come_with_their_reason_and_cost_nothing(
    database: Engine, raw_redis: redis.Redis
) -> None:
    raw_redis.sadd(redis_keys.CELLS, "m1")
    raw_redis.xadd(
        redis_keys.usage_stream("m1"),
        {redis_keys.USAGE_FIELD: event("a", (10, 0, 5), Ending.ENGINE_DIED).to_json()},
    )
    consume(database, raw_redis)
    receipt = find(database, raw_redis, "a")
    assert receipt is not None
    assert receipt.to_json()["absorbed"] == {
        "prompt": 10, "output": 5, "reasons": {"engine_died": {"prompt": 10, "output": 5}},
    }  # fmt: skip
    assert (receipt.to_json()["pricing"], receipt.to_json()["amount"]) == ("nothing_billed", "0.00")


def test_a_row_by_the_last_versions_name_is_shown_by_the_new_one(
    database: Engine, raw_redis: redis.Redis
) -> None:
    raw_redis.sadd(redis_keys.CELLS, "m1")
    written = event("a", (10, 0, 5), Ending.PREEMPTED).to_json()
    raw_redis.xadd(redis_keys.usage_stream("m1"), {redis_keys.USAGE_FIELD: written})
    consume(database, raw_redis)
    with database.begin() as connection:  # as it stands where the last version wrote it
        connection.execute(text("alter table usage_event disable trigger user"))
        old = '{"gave_way": {"prompt": 10, "output": 5}}'
        update = text("update usage_event set ending = 'gave_way', absorbed_reasons = cast(:old as jsonb)")
        assert connection.execute(update, {"old": old}).rowcount == 1
        connection.execute(text("alter table usage_event enable trigger user"))
    receipt = find(database, raw_redis, "a")
    assert receipt is not None
    assert receipt.to_json()["ending"] == "preempted"
    assert receipt.to_json()["absorbed"]["reasons"] == {"preempted": {"prompt": 10, "output": 5}}


def test_another_tenants_request_is_not_there(database: Engine, raw_redis: redis.Redis) -> None:
    reserve(raw_redis, "a", lease_ms=60_000)
    assert find(database, raw_redis, "a", tenant="ten_b") is None
    assert find(database, raw_redis, "a", tenant=None) is not None
    settle(raw_redis, "a")
    assert find(database, raw_redis, "a", tenant="ten_b") is None
    consume(database, raw_redis)
    assert find(database, raw_redis, "a", tenant="ten_b") is None
    assert find(database, raw_redis, "a\x00") is None


@pytest.mark.parametrize("class_", list(CapacityClass))
def test_a_request_that_was_resumed_has_one_receipt_over_its_parts(
    database: Engine, raw_redis: redis.Redis, class_: CapacityClass
) -> None:
    with database.begin() as connection:
        set_price(connection, "m1", input="1", cached_input="0.5", output="2", valid_from_ms=0)
    for request_id, tokens in (("a", (10, 4, 5)), ("a-2", (15, 14, 7))):
        reserve(raw_redis, request_id, lease_ms=60_000)
        keys = CellKeys.of("m1", request_id=request_id, tenant="ten_a", key_id="key_a", model="m1")
        part = event(request_id, tokens, class_=class_)
        execute(raw_redis, settle_call(keys, cost_mu=1, event=part.to_json()))
    consume(database, raw_redis)
    found = find(database, raw_redis, "a")
    assert found is not None
    shown = found.to_json()
    assert (shown["request_id"], shown["parts"], shown["state"]) == ("a", ["a", "a-2"], "recorded")
    assert shown["billed"] == {"prompt": 25, "cached": 18, "output": 12}
    assert shown["amount"] == "0.00004"
    assert find(database, raw_redis, "a", tenant="ten_b") is None
