"""What billing writes is what gateways read: each side's own code on the same Redis."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import redis
from sqlalchemy import Engine

from billing.catalogue import api_keys, limits, models, tenants
from billing.catalogue.limits import Subject
from billing.catalogue.models import ModelSpec
from billing.catalogue.price_book import set_price
from billing.catalogue.projection import Projector
from billing.wire import redis_keys
from billing.wire.limits import Limits
from gateway.authenticate import Caller
from gateway.catalogue.entries import ApiKey, LimitTable, Model, Tenant
from gateway.catalogue.visible_models import VisibleModels


def test_a_gateway_reads_limits_and_policy_as_they_were_set(database: Engine, raw_redis: redis.Redis):
    lease = {"policy": "local_lease", "requests": 7, "units": 3}
    with database.begin() as connection:
        made = tenants.create(connection, "acme", "internal", on_demand=False, redis_down=lease)
        tenants.change(connection, made.tenant_id, retain_answers_s=60)
        models.create(connection, ModelSpec(name="m", context_tokens=100))
        limits.put(
            connection, Subject(made.tenant_id, None), "*", {"requests_per_minute": 60, "concurrency": 9}
        )
        limits.put(connection, Subject(made.tenant_id, None), "m", {"units_per_minute": 5, "concurrency": 2})
        new = api_keys.create(connection, made.tenant_id, expires_at_ms=5)
    Projector(database, raw_redis).rebuild()
    tenant = Tenant.read(raw_redis.get(redis_keys.tenant(made.tenant_id)))
    assert (tenant.kind, tenant.active, tenant.on_demand) == ("internal", True, False)
    assert tenant.retain_answers_s == 60
    assert (tenant.outage.requests, tenant.outage.milliunits) == (7, 3000)
    on_m, on_any = tenant.limits.for_model("m"), tenant.limits.for_model("x")
    assert on_m == Limits.of(requests_per_minute=60, units_per_minute=5, concurrency=2)
    assert on_any == Limits.of(requests_per_minute=60, concurrency=9)
    key = ApiKey.read(raw_redis.get(redis_keys.key_of_api_key(new.key.hash)))
    assert (key.key_id, key.key_hash, key.tenant, key.expires_at_ms) == (
        new.key.key_id,
        new.key.hash,
        made.tenant_id,
        5,
    )


NOW_MS = 1_700_000_000_000


def test_a_model_is_visible_to_its_audience_only(database: Engine, raw_redis: redis.Redis):
    with database.begin() as connection:
        ids = {
            name: tenants.create(connection, name, "internal" if name == "team" else "external").tenant_id
            for name in ("acme", "other", "team")
        }
        models.create(connection, ModelSpec(name="open", context_tokens=100))
        models.create(connection, ModelSpec(name="inside", context_tokens=100, visible="internal"))
        models.create(connection, ModelSpec(name="shared", context_tokens=100, visible=("acme", "team")))
        models.create(connection, ModelSpec(name="private", context_tokens=100, owner="acme"))
        models.create(connection, ModelSpec(name="gone", context_tokens=100))
        models.change(connection, "gone", models.ModelChange(status="retired"))
        models.create(connection, ModelSpec(name="unpriced", context_tokens=100))
        for name, since_ms in (
            ("open", 1),
            ("shared", 1),
            ("private", 1),
            ("gone", 1),
            ("inside", 1),
            ("soon", NOW_MS + 1),
        ):
            if name == "soon":
                models.create(connection, ModelSpec(name=name, context_tokens=100))
            set_price(
                connection,
                name,
                input="0",
                cached_input="0",
                output="0",
                valid_from_ms=since_ms,
                now_ms=lambda: NOW_MS,
            )
    Projector(database, raw_redis).rebuild()
    callers = {
        name: Tenant.read(raw_redis.get(redis_keys.tenant(tenant_id))) for name, tenant_id in ids.items()
    }
    entries = [Model.read(raw) for raw in raw_redis.hgetall(redis_keys.MODELS).values()]
    key = ApiKey(
        key_id="key_1",
        key_hash="hash",
        tenant="ten_1",
        project="prj_1",
        expires_at_ms=None,
        limits=LimitTable({}),
    )
    read: Any = SimpleNamespace(loaded=True, visible=VisibleModels({each.name: each for each in entries}))

    def names(key: ApiKey, tenant: Tenant) -> set[str]:
        return {model.name for model in Caller(key, tenant).models(read, NOW_MS)}

    seen = {name: names(key, caller) for name, caller in callers.items()}
    assert names(replace(key, models=frozenset({"open"})), callers["team"]) == {"open"}
    assert seen == {
        "acme": {"open", "shared", "private"},
        "other": {"open"},
        # What has no price yet is not for sale, and the operator's own may use it.
        "team": {"open", "inside", "shared", "unpriced", "soon"},
    }
