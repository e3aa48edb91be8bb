"""The catalogue as Redis shows it: JSON entries (docs/interfaces.md §3) read from SQL. It only reads, and it
does not know Redis.

Each function takes the ids to read, or None for all, so that a single change and a rebuild write the same
entries.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Select, select, true
from sqlalchemy.dialects.postgresql import distinct_on

from billing.catalogue import adapters, budgets, models
from billing.catalogue.instances import DRAIN_MS
from billing.catalogue.price_book import Price, PriceBook, for_sale_from, list_prices
from billing.schema.capacity import autoscaling, calibration, reclaim
from billing.schema.catalogue import api_key, instance, project, quota_limit, tenant
from billing.schema.clock import NOW_MS, database_now_ms
from billing.wire.engine_kinds import is_provider
from billing.wire.instance_entry import InstanceEntry, InstanceStatus, lease_of
from billing.wire.limits import NAMES
from billing.wire.tokens import CounterPair

Entries = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KeyEntries:
    """Entries of keys by hash, and hashes that must not have an entry."""

    live: Entries
    revoked: frozenset[str]


@dataclass(frozen=True, slots=True)
class ModelEntries:
    """Entries of models by name, and their cells."""

    entries: Entries
    cells: frozenset[str]


def read_tenants(connection: Connection, tenant_ids: Collection[str] | None) -> Entries:
    """Projections of tenants by id."""
    limits = _limits(connection, quota_limit.c.tenant_id, quota_limit.c.key_id.is_(None), tenant_ids)
    found_budgets = budgets.of_tenants(connection, tenant_ids)
    rotated = _not_revoked(
        connection, {key for found in found_budgets.values() for each in found for key in each.rotated}
    )
    return {
        row.tenant_id: _json(
            {
                "tenant": row.tenant_id,
                "name": row.name,
                "kind": row.kind,
                "status": row.status,
                "on_demand": row.on_demand,
                "redis_down": row.redis_down,
                "weight": row.weight,
                "retain_answers_s": row.retain_answers_s,
                "limits": limits[row.tenant_id],
                "budgets": [
                    {
                        "budget": each.budget_id,
                        "project": each.project_id,
                        "key_id": key_id,
                        "per": each.per.value,
                    }
                    for each in found_budgets.get(row.tenant_id, ())
                    for key_id in (each.key_id, *sorted(rotated.intersection(each.rotated)))
                ],
            }
        )
        for row in connection.execute(_among(select(tenant), tenant.c.tenant_id, tenant_ids))
    }


def _not_revoked(connection: Connection, key_ids: Collection[str]) -> set[str]:
    """Those of these keys that may be used, now or once they are given more time."""
    if not key_ids:
        return set()
    query = select(api_key.c.key_id).where(api_key.c.key_id.in_(key_ids), api_key.c.revoked_ms.is_(None))
    return set(connection.execute(query).scalars())


def read_keys(connection: Connection, key_ids: Collection[str] | None) -> KeyEntries:
    """Entries of keys by hash, including expired ones: gateways check the expiry themselves."""
    limits = _limits(connection, quota_limit.c.key_id, quota_limit.c.key_id.is_not(None), key_ids)
    live: dict[str, str] = {}
    revoked = set()
    query = select(api_key, project.c.status.label("project_status")).join(
        project, project.c.project_id == api_key.c.project_id
    )
    for row in connection.execute(_among(query, api_key.c.key_id, key_ids)):
        if row.revoked_ms is not None:
            revoked.add(row.hash)
            continue
        live[row.hash] = _json(
            {
                "key_id": row.key_id,
                "tenant": row.tenant_id,
                "project": row.project_id,
                "expires_at_ms": row.expires_at_ms,
                "models": row.models,
                "archived": row.project_status == "archived",
                "hash": row.hash,
                "limits": limits[row.key_id],
            }
        )
    return KeyEntries(live, frozenset(revoked))


def read_models(connection: Connection, names: Collection[str] | None) -> ModelEntries:
    """Projections of models by name, retired ones too."""
    found = [model for model in models.list_all(connection) if names is None or model.name in names]
    for_sale, capacity = for_sale_from(connection), _capacities(connection)
    prices = _prices(connection)
    paths = adapters.read_paths(connection)
    may_be_empty = set(connection.scalars(select(autoscaling.c.pool).where(autoscaling.c.least == 0)))
    return ModelEntries(
        {
            model.name: _model(
                model,
                for_sale.get(model.name),
                capacity.get(model.pool),
                paths.get(model.name, {}),
                prices.get(model.name, []),
                wakes=model.pool in may_be_empty,
            )
            for model in found
        },
        frozenset(model.cell for model in found),
    )


def read_instances(connection: Connection, instance_ids: Collection[str] | None) -> Entries:
    """Entries of instances added by hand; a removed one is draining while its open requests may end. Entries
    are `ready` with no load at first: SQL knows neither, `engine_watch` updates both.
    """
    removed_not_long = (instance.c.removed_ms.is_(None)) | (instance.c.removed_ms + DRAIN_MS > NOW_MS)
    query = select(instance).where(removed_not_long)
    return {
        row.instance_id: InstanceEntry(
            instance=row.instance_id,
            model=row.model,
            pool=row.pool,
            cell=row.cell,
            url=row.url,
            key=row.engine_key,
            engine=row.engine,
            engine_model=row.engine_model,
            max_concurrency=row.max_concurrency,
            routes=None if row.routes is None else frozenset(row.routes),
            has_metrics=not is_provider(row.engine),
            epoch=row.epoch,
            status=InstanceStatus.READY if row.removed_ms is None else InstanceStatus.DRAINING,
            lease_until_ms=0 if row.removed_ms is None else row.removed_ms + DRAIN_MS,
            abort=row.abort,
            priority=row.priority,
            counts=row.counts,
            baseline=CounterPair(row.baseline_prompt, row.baseline_generation),
        )
        .to_json()
        .decode()
        for row in connection.execute(_among(query, instance.c.instance_id, instance_ids))
    }


def read_drained(connection: Connection, instance_ids: Collection[str] | None) -> Entries:
    """Instances that a reclaim has, by id."""
    query = select(reclaim).where(reclaim.c.state.in_(("draining", "done"))).order_by(reclaim.c.by_ms)
    return {
        instance_id: _json({"use": row.use, "by_ms": row.by_ms, "reclaim": row.reclaim_id})
        for row in connection.execute(query)
        for instance_id in row.chosen
        if instance_ids is None or instance_id in instance_ids
    }


def _capacities(connection: Connection) -> dict[str, int]:
    """What an instance of each pool can do in milliunits a second, as calibrated last."""
    query = (
        select(calibration.c.pool, calibration.c.capacity_mu_s)
        .ext(distinct_on(calibration.c.pool))
        .order_by(calibration.c.pool, calibration.c.created_ms.desc(), calibration.c.calibration_id.desc())
    )
    return {row.pool: row.capacity_mu_s for row in connection.execute(query)}


def _prices(connection: Connection) -> dict[str, list[list[int]]]:
    """Of each model, what a token costs now and later, the newest first: when that begins in ms, and
    pico-dollars for a token of input, of cached input, of output and written into a cache. Where classes or
    contracts pay other prices, the dearest: gateways hold it against budgets until billing has the amount.
    """
    now_ms = database_now_ms(connection)
    by_model: dict[str, list[Price]] = {}
    for price in list_prices(connection):
        by_model.setdefault(price.model, []).append(price)
    return {model: list(_dearest(prices, now_ms)) for model, prices in by_model.items()}


def _dearest(newest_first: Sequence[Price], now_ms: int) -> Iterator[list[int]]:
    """Of one model's prices, as `_prices` has them."""
    scopes = {price.scope for price in newest_first}
    book = PriceBook(newest_first)
    for moment_ms in sorted({price.valid_from_ms for price in newest_first}, reverse=True):
        held = [price for scope in scopes if (price := book.at(newest_first[0].model, moment_ms, [scope]))]
        figures = (
            (price.input_picousd, price.cached_input_picousd, price.output_picousd, price.written_picousd)
            for price in held
        )
        yield [moment_ms, *map(max, zip(*figures, strict=True))]
        if moment_ms <= now_ms:
            return


def _model(
    model: models.Model,
    for_sale_from_ms: int | None,
    capacity_mu_s: int | None,
    adapter_paths: Mapping[str, str],
    prices: list[list[int]],
    *,
    wakes: bool,
) -> str:
    return _json(
        {
            "name": model.name,
            "pool": model.pool,
            "cell": model.cell,
            "visible": model.visible,
            "owner": model.owner,
            "routes": model.routes,
            "engine_model": model.engine_model,
            "context_tokens": model.context_tokens,
            "vocabulary_tokens": model.vocabulary_tokens,
            "default_max_tokens": model.default_max_tokens,
            "weights": model.versioned_weights(),
            "chat_template_kwargs": model.chat_template_kwargs,
            "created": model.created_ms // 1000,
            "status": model.status,
            "max_body_bytes": model.max_body_bytes,
            "for_sale_from_ms": for_sale_from_ms,
            "prices": prices,
            "capacity_mu_s": capacity_mu_s,
            "adapters": adapter_paths,
            "wakes": wakes,
        }
    )


def _limits(
    connection: Connection, subject: Column[Any], which: ColumnElement[bool], ids: Collection[str] | None
) -> defaultdict[str, list[dict[str, Any]]]:
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    query = select(quota_limit, subject.label("subject")).where(which).order_by(quota_limit.c.model)
    for row in connection.execute(_among(query, subject, ids)):
        found[row.subject].append({"model": row.model} | {name: row._mapping[name] for name in NAMES})
    return found


def _among(query: Select[Any], column: Column[Any], ids: Collection[str] | None) -> Select[Any]:
    return query.where(true() if ids is None else column.in_(ids))


def _json(entry: dict[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False)


def is_by_hand(entry: str | bytes) -> bool:
    """Whether an entry of `taas:instances` was added by hand, or cannot be read: in both cases no worker
    renews it.
    """
    return not lease_of(entry)
