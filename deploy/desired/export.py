"""What is there now, written as a file of desired state. Applied at once, it changes nothing."""

from typing import Any

import yaml

from deploy.desired.document import AMOUNTS
from deploy.desired.present import Present
from deploy.desired.price_changes import rfc3339


def as_yaml(there: Present) -> str:
    """Tenants by name. What is null is left out."""
    pools: dict[str, Any] = {name: dict(fields) for name, fields in there.pools.items()}
    for name, launch in there.launches.items():
        pools.setdefault(name, {})["launch"] = _given(launch)
    for name, bounds in there.autoscaling.items():
        pools.setdefault(name, {})["autoscale"] = bounds
    sections = {
        "models": {name: _model(fields, there) for name, fields in there.models.items()},
        "adapters": {
            name: {"path": fields["path"], "owner": there.tenant_names[fields["owner"]]}
            for name, fields in there.adapters.items()
            if fields["status"] == "active"
        },
        "pools": pools,
        "instances": {name: _given(fields) for name, fields in there.instances.items()},
        "prices": {name: _prices(rows, there.now_ms) for name, rows in there.prices.items()},
        "cost_prices": {name: _prices(rows, there.now_ms) for name, rows in there.cost_prices.items()},
    }
    return str(yaml.safe_dump(_plain(sections), sort_keys=False, allow_unicode=True, width=110))


def _model(fields: dict[str, Any], there: Present) -> dict[str, Any]:
    found = _given(fields)
    if "owner" in found:
        found["owner"] = there.tenant_names[found["owner"]]
        del found["visible"]
    elif not isinstance(found["visible"], str):
        found["visible"] = [there.tenant_names[tenant] for tenant in found["visible"]]
    return found


def _prices(rows: list[dict[str, Any]], now_ms: int) -> list[dict[str, Any]]:
    """Of each instance, and of all, the one that holds and those to come: what was is not desired."""
    shown = []
    for instance in dict.fromkeys(row["instance"] for row in rows):
        ours = [row for row in rows if row["instance"] == instance]
        past = [row for row in ours if row["from"] <= now_ms]
        shown += [*past[-1:], *(row for row in ours if row["from"] > now_ms)]
    return [
        _given({"instance": row["instance"]})
        | {name: row[name] for name in AMOUNTS}
        | {"from": rfc3339(row["from"])}
        for row in shown
    ]


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, (), {})}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value
