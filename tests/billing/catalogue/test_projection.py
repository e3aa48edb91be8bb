"""What gateways see in Redis is what SQL says: at once, after an outage, and after Redis has lost it."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from sqlalchemy import Connection, Engine

from billing.catalogue import api_keys, instances, limits, models, outbox, tenants
from billing.catalogue.instances import EngineFacts
from billing.catalogue.limits import Subject
from billing.catalogue.models import ModelChange, ModelSpec, Weights
from billing.catalogue.projection import Projector, announce_stop
from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry, InstanceStatus, read_snapshot
from billing.wire.limits import NAMES
from tests.fixtures.valkey import ValkeyProcess

FACTS = EngineFacts(epoch="17", abort=True, baseline_prompt=5, baseline_generation=7)


@pytest.fixture
def projector(database: Engine, raw_redis: redis.Redis) -> Projector:
    """A projector whose Redis holds the (empty) catalogue."""
    projector = Projector(database, raw_redis)
    projector.rebuild()
    return projector


@pytest.fixture
def commit(database: Engine) -> Callable[[Callable[[Connection], Any]], Any]:
    """Runs a change in a transaction of its own."""

    def run(change: Callable[[Connection], Any]) -> Any:
        with database.begin() as connection:
            return change(connection)

    return run


def entry_of(client: redis.Redis, key: str) -> Any:
    raw = client.get(key)
    return None if raw is None else json.loads(raw)


def field_of(client: redis.Redis, key: str, field: str) -> Any:
    raw = client.hget(key, field)
    return None if raw is None else json.loads(raw)


def changes(client: redis.Redis) -> list[tuple[str, str]]:
    return [
        (fields[b"kind"].decode(), fields[b"id"].decode()) for _, fields in client.xrange(redis_keys.CHANGES)
    ]


def test_a_new_tenant_and_its_key_are_in_redis_as_the_contract_says(projector, commit, raw_redis):
    tenant = commit(lambda c: tenants.create(c, "acme", "internal"))
    new = commit(lambda c: api_keys.create(c, tenant.tenant_id, expires_at_ms=99))
    assert projector.deliver()
    assert entry_of(raw_redis, redis_keys.tenant(tenant.tenant_id)) == {
        "tenant": tenant.tenant_id, "name": "acme", "kind": "internal", "status": "active", "on_demand": True,
        "redis_down": {"policy": "refuse"}, "weight": 1, "retain_answers_s": 0, "limits": [], "budgets": [],
    }  # fmt: skip
    assert entry_of(raw_redis, redis_keys.key_of_api_key(api_keys.hash_of(new.secret))) == {
        "key_id": new.key.key_id, "tenant": tenant.tenant_id, "project": new.key.project_id,
        "expires_at_ms": 99, "hash": api_keys.hash_of(new.secret), "limits": [], "models": None,
        "archived": False,
    }  # fmt: skip
    assert changes(raw_redis)[-2:] == [("tenant", tenant.tenant_id), ("key", new.key.hash)]


def test_the_secret_of_a_key_is_nowhere_in_redis_or_sql(projector, commit, raw_redis, database):
    tenant = commit(lambda c: tenants.create(c, "acme"))
    new = commit(lambda c: api_keys.create(c, tenant.tenant_id))
    projector.deliver()
    assert len(new.secret) == 3 + 43
    with database.connect() as connection:
        rows = connection.exec_driver_sql("select api_key::text from api_key").scalars().all()
    held = [raw_redis.dump(key) or b"" for key in raw_redis.scan_iter()]
    assert not any(new.secret[3:].encode() in value for value in held)
    assert not any(new.secret[3:] in row for row in rows)
    assert new.secret not in repr(new)


def test_a_revoked_key_is_gone_from_redis_and_announced(projector, commit, raw_redis):
    tenant = commit(lambda c: tenants.create(c, "acme"))
    new = commit(lambda c: api_keys.create(c, tenant.tenant_id))
    projector.deliver()
    first = commit(lambda c: api_keys.revoke(c, new.key.key_id))
    projector.deliver()
    assert entry_of(raw_redis, redis_keys.key_of_api_key(new.key.hash)) is None
    assert changes(raw_redis)[-1] == ("key", new.key.hash)
    assert commit(lambda c: api_keys.revoke(c, new.key.key_id)).revoked_ms == first.revoked_ms


def test_limits_are_in_the_entry_of_whom_they_bind(projector, commit, raw_redis):
    tenant = commit(lambda c: tenants.create(c, "acme"))
    new = commit(lambda c: api_keys.create(c, tenant.tenant_id))
    commit(lambda c: models.create(c, ModelSpec(name="m", context_tokens=100)))
    of_tenant, of_key = Subject(tenant.tenant_id, None), Subject(tenant.tenant_id, new.key.key_id)
    commit(lambda c: limits.put(c, of_tenant, "*", {"requests_per_minute": 5}))
    commit(lambda c: limits.put(c, of_tenant, "m", {"concurrency": 2}))
    commit(lambda c: limits.put(c, of_key, "m", {"units_per_minute": 0}))
    projector.deliver()
    nothing = dict.fromkeys(NAMES)
    assert entry_of(raw_redis, redis_keys.tenant(tenant.tenant_id))["limits"] == [
        {**nothing, "model": "*", "requests_per_minute": 5}, {**nothing, "model": "m", "concurrency": 2},
    ]  # fmt: skip
    key = redis_keys.key_of_api_key(new.key.hash)
    assert entry_of(raw_redis, key)["limits"] == [{**nothing, "model": "m", "units_per_minute": 0}]
    commit(lambda c: limits.remove(c, of_key, "m"))
    projector.deliver()
    assert entry_of(raw_redis, key)["limits"] == []


def test_a_model_is_in_redis_as_the_contract_says_and_names_its_cell(projector, commit, raw_redis):
    acme = commit(lambda c: tenants.create(c, "acme"))
    spec = ModelSpec(
        name="org/m-1",
        context_tokens=4096,
        visible=("acme",),
        routes=("chat",),
        engine_model="served",
        default_max_tokens=64,
        weights=Weights(1, 2, 3),
        chat_template_kwargs=("enable_thinking",),
        vocabulary_tokens=50_000,
        max_body_bytes=8_000_000,
    )
    model = commit(lambda c: models.create(c, spec))
    projector.deliver()
    assert field_of(raw_redis, redis_keys.MODELS, "org/m-1") == {
        "name": "org/m-1", "pool": "org/m-1", "cell": "org/m-1", "visible": [acme.tenant_id], "owner": None,
        "routes": ["chat"], "engine_model": "served", "context_tokens": 4096, "vocabulary_tokens": 50_000,
        "default_max_tokens": 64, "weights": {"version": 1, "w_in_mu": 1, "w_cached_mu": 2, "w_out_mu": 3},
        "chat_template_kwargs": ["enable_thinking"], "created": model.created_ms // 1000, "status": "active",
        "for_sale_from_ms": None, "prices": [], "max_body_bytes": 8_000_000, "capacity_mu_s": None,
        "adapters": {}, "wakes": False,
    }  # fmt: skip
    assert raw_redis.smembers(redis_keys.CELLS) == {b"org/m-1"}
    commit(lambda c: models.change(c, "org/m-1", ModelChange(status="retired", weights=Weights(9, 9, 9))))
    projector.deliver()
    entry = field_of(raw_redis, redis_keys.MODELS, "org/m-1")
    assert (entry["status"], entry["weights"]["version"]) == ("retired", 2)
    assert changes(raw_redis)[-1] == ("model", "org/m-1")


def test_an_instance_added_by_hand_reads_as_ready_and_once_removed_as_draining(projector, commit, raw_redis):
    commit(lambda c: models.create(c, ModelSpec(name="m", context_tokens=100)))
    added = commit(lambda c: instances.add(c, "m", "http://10.0.0.1:8100", FACTS, engine_key="ek"))
    projector.deliver()
    (entry,) = read_snapshot(raw_redis.hgetall(redis_keys.INSTANCES), now_ms=10**15)
    assert (entry.instance, entry.url, entry.key, entry.abort, entry.epoch) == (
        added.instance_id,
        added.url,
        "ek",
        True,
        "17",
    )
    assert (entry.baseline.prompt, entry.baseline.generation, entry.status) == (5, 7, InstanceStatus.READY)
    removed = commit(lambda c: instances.remove(c, added.instance_id))
    projector.deliver()
    entry = InstanceEntry.from_json(raw_redis.hget(redis_keys.INSTANCES, added.instance_id))
    assert entry.status is InstanceStatus.DRAINING
    assert entry.lease_until_ms == removed.removed_ms + instances.DRAIN_MS


def test_a_change_made_while_redis_is_down_takes_effect_when_it_is_back(
    database, commit, own_valkey: ValkeyProcess
):
    with redis.Redis(port=own_valkey.port, retry=None) as client:
        projector = Projector(database, client)
        projector.rebuild()
        tenant = commit(lambda c: tenants.create(c, "acme"))
        projector.deliver()
        own_valkey.kill()
        commit(lambda c: tenants.change(c, "acme", status="suspended"))
        commit(lambda c: tenants.stop_streams(c, tenant.tenant_id))
        assert not projector.deliver()
        with database.connect() as connection:
            assert outbox.count(connection) == 2
        own_valkey.start()
        assert projector.deliver()
        assert entry_of(client, redis_keys.tenant(tenant.tenant_id))["status"] == "suspended"
        assert changes(client)[-2:] == [("tenant", tenant.tenant_id), ("stop", f"tenant:{tenant.tenant_id}")]
        with database.connect() as connection:
            assert outbox.count(connection) == 0


def test_after_flushall_the_whole_projection_is_written_again(projector, commit, raw_redis):
    commit(lambda c: models.create(c, ModelSpec(name="m", context_tokens=100)))
    tenant = commit(lambda c: tenants.create(c, "acme"))
    commit(lambda c: api_keys.create(c, tenant.tenant_id))
    commit(lambda c: instances.add(c, "m", "http://10.0.0.1:8100", FACTS))
    projector.deliver()
    # Of cells the projection writes nothing.
    raw_redis.delete(*raw_redis.keys("{c:*}:intact"))
    before = snapshot(raw_redis)
    raw_redis.flushall()
    assert projector.deliver()
    assert snapshot(raw_redis) == before
    assert changes(raw_redis) == [("all", "*")]


def test_a_change_right_after_flushall_does_not_hide_the_loss(projector, commit, raw_redis):
    acme = commit(lambda c: tenants.create(c, "acme"))
    projector.deliver()
    raw_redis.flushall()
    commit(lambda c: tenants.create(c, "other"))
    projector.deliver()
    assert entry_of(raw_redis, redis_keys.tenant(acme.tenant_id)) is not None


def test_an_older_state_of_redis_is_recognised(projector, commit, raw_redis):
    tenant = commit(lambda c: tenants.create(c, "acme"))
    projector.deliver()
    old_entry, old_marker = (
        raw_redis.get(redis_keys.tenant(tenant.tenant_id)),
        raw_redis.get(redis_keys.PROJECTION),
    )
    commit(lambda c: tenants.change(c, "acme", status="suspended"))
    projector.deliver()
    raw_redis.set(redis_keys.tenant(tenant.tenant_id), old_entry)
    raw_redis.set(redis_keys.PROJECTION, old_marker)
    projector.deliver()
    assert entry_of(raw_redis, redis_keys.tenant(tenant.tenant_id))["status"] == "suspended"


def test_rebuild_removes_what_sql_does_not_have_and_leaves_what_workers_registered(
    projector, commit, raw_redis
):
    worker = {"instance": "w-1", "lease_until_ms": 123}
    raw_redis.set(redis_keys.key_of_api_key("0" * 64), "{}")
    raw_redis.set(redis_keys.tenant("ten_gone"), "{}")
    raw_redis.hset(redis_keys.MODELS, "gone", "{}")
    raw_redis.hset(
        redis_keys.INSTANCES, mapping={"gone": '{"lease_until_ms":0}', "w-1": json.dumps(worker), "bad": "x"}
    )
    projector.rebuild()
    assert raw_redis.keys("taas:key:*") == []
    assert raw_redis.keys("taas:tenant:*") == []
    assert raw_redis.hgetall(redis_keys.MODELS) == {}
    assert list(raw_redis.hgetall(redis_keys.INSTANCES)) == [b"w-1"]


def test_the_cache_salt_survives_a_rebuild(projector, raw_redis):
    salt = raw_redis.hget(redis_keys.SECRETS, redis_keys.CACHE_SALT_FIELD)
    assert len(bytes.fromhex(salt.decode())) == 32
    projector.rebuild()
    assert raw_redis.hget(redis_keys.SECRETS, redis_keys.CACHE_SALT_FIELD) == salt


def test_concurrent_changes_leave_redis_with_the_last_state(projector, database, commit, raw_redis):
    tenant = commit(lambda c: tenants.create(c, "acme"))
    failed: list[BaseException] = []

    def toggle() -> None:
        try:
            for on_demand in (True, False) * 5:
                with database.begin() as connection:
                    tenants.change(connection, "acme", on_demand=on_demand)
                projector.deliver()
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=toggle) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with database.connect() as connection:
        assert outbox.count(connection) == 0
        expected = tenants.find(connection, "acme").on_demand
    assert entry_of(raw_redis, redis_keys.tenant(tenant.tenant_id))["on_demand"] is expected


def test_more_changes_than_one_write_takes_are_all_delivered(projector, commit, raw_redis):
    commit(lambda c: [tenants.create(c, f"t{number}") for number in range(450)])
    projector.deliver()
    assert len(raw_redis.keys("taas:tenant:*")) == 450


def test_more_changes_than_a_statement_has_parameters_are_told_and_forgotten(database, raw_redis):
    with database.begin() as connection:
        connection.exec_driver_sql(
            "insert into projection_outbox (kind, subject) select 'tenant', 'ten_' || n from "
            "generate_series(1, 70000) n"
        )
    Projector(database, raw_redis).rebuild()
    with database.connect() as connection:
        assert outbox.count(connection) == 0


def test_its_loop_writes_everything_first_and_notices_a_loss_later(database, commit, raw_redis):
    tenant = commit(lambda c: tenants.create(c, "acme"))
    projector = Projector(database, raw_redis)
    raw_redis.set(redis_keys.tenant("ten_gone"), "{}")
    assert projector.keep_up()
    assert raw_redis.keys("taas:tenant:*") == [redis_keys.tenant(tenant.tenant_id).encode()]
    assert not projector.keep_up()
    raw_redis.flushall()
    while projector.keep_up():
        pass
    assert entry_of(raw_redis, redis_keys.tenant(tenant.tenant_id)) is not None


def test_its_loop_fails_out_loud_while_redis_is_down_and_rebuilds_after(
    database, commit, own_valkey: ValkeyProcess
):
    tenant = commit(lambda c: tenants.create(c, "acme"))
    with redis.Redis(port=own_valkey.port, retry=None) as client:
        projector = Projector(database, client)
        own_valkey.kill()
        with pytest.raises(redis.RedisError):
            projector.keep_up()
        own_valkey.start()
        assert projector.keep_up()
        assert entry_of(client, redis_keys.tenant(tenant.tenant_id)) is not None


def test_a_request_to_stop_is_announced(raw_redis):
    announce_stop(raw_redis, "req-1")
    assert changes(raw_redis) == [("stop", "req-1")]


def snapshot(client: redis.Redis) -> dict[bytes, Any]:
    """Everything but the changes, the marker and the salt."""
    own = {redis_keys.CHANGES.encode(), redis_keys.PROJECTION.encode(), redis_keys.SECRETS.encode()}
    hashes = {redis_keys.MODELS.encode(), redis_keys.INSTANCES.encode()}
    found: dict[bytes, Any] = {}
    for key in client.scan_iter():
        if key in hashes:
            found[key] = client.hgetall(key)
        elif key == redis_keys.CELLS.encode():
            found[key] = client.smembers(key)
        elif key not in own:
            found[key] = client.get(key)
    return found
