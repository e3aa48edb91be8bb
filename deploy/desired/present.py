"""What is there now, as the admin API says it, in the words and spellings of the file."""

import time
from dataclasses import dataclass
from typing import Any

from billing.wire.engine_kinds import PROVIDERS
from deploy.cli.connection import AdminApiError, call, call_list
from deploy.desired.document import AMOUNTS, Document
from deploy.desired.yaml_values import DocumentError, spelled

_MODEL_FIELDS = (
    "context_tokens", "visible", "owner", "routes", "engine_model", "vocabulary_tokens", "default_max_tokens",
    "weights", "chat_template_kwargs", "pool", "max_body_bytes", "status",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """By name. `instances`: those that were added by hand; `workers`: the ids of all others. `prices`: of
    each model, the oldest first. `tenants`: ids by the names and ids that were asked for.
    """

    models: dict[str, dict[str, Any]]
    adapters: dict[str, dict[str, Any]]
    pools: dict[str, dict[str, Any]]
    launches: dict[str, dict[str, Any]]
    autoscaling: dict[str, dict[str, Any]]
    instances: dict[str, dict[str, Any]]
    workers: frozenset[str]
    prices: dict[str, list[dict[str, Any]]]
    cost_prices: dict[str, list[dict[str, Any]]]
    tenants: dict[str, str]
    tenant_names: dict[str, str]
    now_ms: int


def read(document: Document | None = None) -> Present:
    """All of it. Raises ClickException; DocumentError for a tenant of the document that is not there."""
    adapters = {row["model"]: row for row in call_list("adapters")["data"]}
    # An adapter is a model, too, and is described as an adapter.
    models = [row for row in call_list("models")["data"] if row["name"] not in adapters]
    instances = call_list("instances")["data"]
    return Present(
        models={row["name"]: _model(row) for row in models},
        adapters={
            name: {"path": row["path"], "owner": row["owner"], "status": row["status"]}
            for name, row in adapters.items()
        },
        pools={name: _pool(call("GET", "pools", name)) for name in sorted({row["pool"] for row in models})},
        autoscaling={
            row["pool"]: {"min": row["min"], "max": row["max"]} for row in call_list("autoscaling")["data"]
        },
        launches={row.pop("pool"): _launch(row) for row in call_list("launches")["data"]},
        instances={
            row["instance"]: _instance(row)
            for row in instances
            if row["added"] == "by hand" and not row["removed"]
        },
        workers=frozenset(row["instance"] for row in instances if row["added"] != "by hand"),
        prices=_prices("prices"),
        cost_prices=_prices("cost-prices"),
        tenants={} if document is None else _tenants(document),
        tenant_names={tenant: name for row in models for tenant, name in row["tenant_names"].items()}
        | {row["owner"]: row["owner_name"] for row in adapters.values()},
        now_ms=int(time.time() * 1000),
    )


def _model(row: dict[str, Any]) -> dict[str, Any]:
    found = {name: row[name] for name in _MODEL_FIELDS}
    found["weights"] = {name: row["weights"][name] for name in ("w_in_mu", "w_cached_mu", "w_out_mu")}
    found["visible"] = (
        found["visible"] if isinstance(found["visible"], str) else tuple(sorted(found["visible"]))
    )
    for name in ("routes", "chat_template_kwargs"):
        found[name] = tuple(found[name])
    return found


def _pool(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "instances": row["declared"],
        "headroom": spelled(row["headroom"]),
        "set_aside": spelled(row["set_aside"]),
    }


def _launch(row: dict[str, Any]) -> dict[str, Any]:
    del row["wanted"]
    return {**row, "engine_args": tuple(row["engine_args"])}


def _instance(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": row["model"],
        "url": row["url"],
        "provider": row["engine"] if row["engine"] in PROVIDERS else None,
        "engine_model": row["engine_model"],
        "max_concurrency": row["max_concurrency"],
        "priority": row["priority"],
    }


def _prices(book: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in call_list(book)["data"]:
        price = {name: spelled(row[name]) for name in AMOUNTS}
        price |= {"from": row["from_ms"], "price_id": row["price_id"], "instance": row.get("instance")}
        found.setdefault(row["model"], []).append(price)
    return {model: sorted(prices, key=lambda price: price["from"]) for model, prices in found.items()}


def _tenants(document: Document) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in [*(document.models or {}).values(), *(document.adapters or {}).values()]:
        visible = entry.fields.get("visible", ())
        named = [("visible", tenant) for tenant in (() if isinstance(visible, str) else visible)]
        named += [("owner", entry.fields["owner"])] if "owner" in entry.fields else []
        for field, tenant in named:
            if tenant in found:
                continue
            try:
                found[tenant] = call("GET", "tenants", tenant)["tenant"]
            except AdminApiError as exc:
                raise DocumentError(entry.at(field), exc.message) from exc
    return found
