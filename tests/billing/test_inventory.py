"""What the product has, as Prometheus is told: engines by status, declared instances, names of tenants and
ends of contracts.
"""

import redis
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine

from billing.catalogue import tenants
from billing.contracts import lifecycle, store
from billing.inventory import read_inventory
from billing.metrics_shared import InventoryMetrics, SharedFigures
from tests.billing.contracts.selling import DAY, POOL, furnish, terms
from tests.billing.engine_server import ScriptedEngine, register


def page_of(database: Engine, client: redis.Redis) -> CollectorRegistry:
    shown, registry = InventoryMetrics(), CollectorRegistry()
    registry.register(shown)
    shown.show(read_inventory(database, client))
    return registry


def test_engines_are_counted_by_status_and_one_lost_without_a_word_is_down(
    database: Engine, raw_redis: redis.Redis
) -> None:
    engine = ScriptedEngine(url="http://10.0.0.5:1")
    register(raw_redis, engine, "ready-1")
    register(raw_redis, engine, "ready-2")
    register(raw_redis, engine, "lost", lease_until_ms=1)
    register(raw_redis, engine, "ended", lease_until_ms=1, status="down")
    register(raw_redis, engine, "other", model="m2", status="starting")
    value = page_of(database, raw_redis).get_sample_value

    def counted(model: str) -> list[float | None]:
        names = ("starting", "ready", "draining", "down")
        return [value("taas_instances", {"pool": "m1", "model": model, "status": name}) for name in names]

    assert counted("m1") == [0, 2, 0, 1]
    assert counted("m2") == [1, 0, 0, 0]
    assert counted("m3") == [None] * 4


def test_tenants_and_contracts_are_named_and_those_that_are_over_are_not(
    database: Engine, raw_redis: redis.Redis
) -> None:
    with database.begin() as connection:
        shop = furnish(connection)
        now_ms = store.now_ms(connection)
        kept, over = (
            lifecycle.draft(
                connection, terms(shop.tenants[name], 100, now_ms, now_ms + DAY), now_ms=now_ms
            ).contract_id
            for name in ("acme", "bolt")
        )
        lifecycle.sign(connection, kept, now_ms=now_ms)
        lifecycle.withdraw(connection, over, now_ms=now_ms)
        tenants.change(connection, "bolt", status="archived")
        ends_ms = store.find(connection, kept).effective_end_ms
    registry = page_of(database, raw_redis)
    acme = shop.tenants["acme"]
    key = {"tenant": acme, "pool": POOL, "contract": kept}
    assert registry.get_sample_value("taas_contract_end_timestamp_seconds", key) == ends_ms / 1000
    names = {
        sample.name: [each.labels for each in family.samples]
        for family in registry.collect()
        for sample in family.samples
    }
    (contract,) = names["taas_contract_info"]
    assert contract.items() >= (key | {"tenant_name": "acme"}).items()
    assert {"tenant": acme, "name": "acme"} in names["taas_tenant_info"]
    assert shop.tenants["bolt"] not in {each["tenant"] for each in names["taas_tenant_info"]}
    declared = registry.get_sample_value("taas_pool_declared_instances", {"pool": POOL})
    assert declared is not None
    assert declared > 0


def test_no_more_tenants_are_named_than_a_page_may_have_and_the_oldest_stay(
    database: Engine, raw_redis: redis.Redis
) -> None:
    with database.begin() as connection:
        for name in ("first", "second", "third"):
            tenants.create(connection, name)
    assert [name for _, name in read_inventory(database, raw_redis, tenants_max=2).tenants] == [
        "first",
        "second",
    ]


def test_who_does_not_lead_shows_the_families_and_no_figure() -> None:
    shared, registry = SharedFigures(), CollectorRegistry()
    registry.register(shared)
    shared.gauge("taas_audit_findings", "What was found.", "kind").labels("a").set(3)
    assert registry.get_sample_value("taas_audit_findings", {"kind": "a"}) == 3
    shared.report_while(lambda: False)
    assert registry.get_sample_value("taas_audit_findings", {"kind": "a"}) is None
    assert "taas_audit_findings" in {family.name for family in registry.collect()}
