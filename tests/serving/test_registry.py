"""Promises of the registry of instances."""

from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest
import redis as redis_sync
from redis.asyncio import Redis

from billing.wire import redis_keys
from billing.wire.engine_kinds import VLLM
from billing.wire.instance_entry import (
    EngineLoad,
    FinalCounters,
    InstanceEntry,
    InstanceStatus,
    read_snapshot,
)
from billing.wire.tokens import CounterPair
from serving import registry

ENTRY = InstanceEntry(
    instance="m-host-8100",
    model="m",
    pool="m",
    cell="m",
    url="http://127.0.0.1:8100",
    key="secret-engine-key",
    epoch="1700000000000-ab12",
    status=InstanceStatus.READY,
    lease_until_ms=10_000,
    abort=True,
    priority=True,
    load=EngineLoad(running=3, waiting=1, kv_usage=0.25),
    baseline=CounterPair(prompt=2, generation=1),
    earlier=(
        FinalCounters(
            epoch="1", counters=CounterPair(prompt=5, generation=7), baseline=CounterPair(1, 1), exact=False
        ),
    ),
)


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey_url) as connected:
        yield connected


def test_an_entry_survives_its_own_json() -> None:
    ended = replace(
        ENTRY,
        status=InstanceStatus.DOWN,
        final=FinalCounters(ENTRY.epoch, CounterPair(9, 8), ENTRY.baseline, exact=True),
    )
    assert InstanceEntry.from_json(ENTRY.to_json()) == ENTRY
    assert InstanceEntry.from_json(ended.to_json()) == ended
    named = replace(ENTRY, engine="another", engine_model="its own name")
    assert InstanceEntry.from_json(named.to_json()) == named
    pools = replace(ENTRY, routes=frozenset({"embeddings", "score"}))
    assert InstanceEntry.from_json(pools.to_json()) == pools


def test_an_entry_without_routes_serves_every_route_and_one_with_them_serves_those() -> None:
    old = {name: value for name, value in orjson.loads(ENTRY.to_json()).items() if name != "routes"}
    assert InstanceEntry.from_json(orjson.dumps(old)).serves("chat")
    pools = InstanceEntry.from_json(orjson.dumps(old | {"routes": ["embeddings"]}))
    assert pools.serves("embeddings")
    assert not pools.serves("chat")
    for wrong in ([""], [1], 7):
        with pytest.raises(ValueError, match="not an instance entry"):
            InstanceEntry.from_json(orjson.dumps(old | {"routes": wrong}))


def test_an_entry_of_before_engines_had_kinds_and_names_is_read() -> None:
    fields = orjson.loads(ENTRY.to_json())
    del fields["engine"], fields["engine_model"]
    entry = InstanceEntry.from_json(orjson.dumps(fields))
    assert entry == ENTRY
    assert (entry.engine, entry.engine_model) == (VLLM, None)


def test_the_engine_key_is_in_no_repr() -> None:
    assert "secret-engine-key" not in repr(ENTRY)


def test_a_hand_made_entry_without_optional_fields_is_read() -> None:
    fields = {
        "instance": "x",
        "model": "m",
        "pool": "m",
        "cell": "m",
        "url": "http://h",
        "epoch": "0",
        "status": "ready",
        "lease_until_ms": 0,
    }
    entry = InstanceEntry.from_json(orjson.dumps({**fields, "field_of_the_future": [1]}))
    assert entry.key is None
    assert not entry.abort
    assert not entry.priority
    assert entry.load == EngineLoad()
    assert entry.final is None


def test_a_lease_holds_to_its_last_millisecond_and_not_beyond() -> None:
    raw = {b"m-host-8100": ENTRY.to_json()}
    assert read_snapshot(raw, 10_000) == [ENTRY]
    assert read_snapshot(raw, 10_001) == []


def test_a_lease_of_zero_never_lapses() -> None:
    by_hand = replace(ENTRY, lease_until_ms=0)
    assert read_snapshot({b"m-host-8100": by_hand.to_json()}, 2**60) == [by_hand]


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"[]",
        b"not json",
        b'{"instance":"x"}',
        ENTRY.to_json().replace(b'"ready"', b'"dancing"'),
        ENTRY.to_json().replace(b'"prompt":2', b'"prompt":-2'),
        ENTRY.to_json().replace(b'"lease_until_ms":10000', b'"lease_until_ms":true'),
        ENTRY.to_json().replace(b'"http://127.0.0.1:8100"', b'""'),
    ],
)
def test_a_broken_entry_is_left_out_and_takes_no_other_away(broken: bytes) -> None:
    raw = {b"broken": broken, b"m-host-8100": ENTRY.to_json()}
    assert read_snapshot(raw, 0) == [ENTRY]


def test_snapshot_is_in_the_order_of_ids() -> None:
    other = replace(ENTRY, instance="a")
    assert [entry.instance for entry in read_snapshot({b"b": ENTRY.to_json(), b"a": other.to_json()}, 0)] == [
        "a",
        "m-host-8100",
    ]


async def test_publish_leases_from_the_clock_of_redis_and_remove_takes_it_out(
    client: Redis, valkey: redis_sync.Redis
) -> None:
    before = valkey.time()
    written = await registry.publish(client, ENTRY, lease_ms=5_000)
    after = valkey.time()
    assert (
        before[0] * 1000 + before[1] // 1000 + 5_000
        <= written.lease_until_ms
        <= after[0] * 1000 + after[1] // 1000 + 5_000
    )
    assert await registry.find(client, ENTRY.instance) == written
    await registry.remove(client, ENTRY.instance)
    assert await registry.find(client, ENTRY.instance) is None


async def test_find_treats_a_broken_entry_as_none(client: Redis, valkey: redis_sync.Redis) -> None:
    valkey.hset(redis_keys.INSTANCES, "x", "{")
    assert await registry.find(client, "x") is None
