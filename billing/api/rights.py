"""Who may call which route, in one table. Root may call all of them; a route that is not in the table is for
root only, and a test fails until it is added.

The key of an entry is the method and the path's template, as `routes_of` reads them from the app. That a role
of a tenant gets only that tenant's things is for the routes themselves (`Control.tenant_id`).
"""

from collections.abc import Iterator, Mapping
from typing import Final

from fastapi import FastAPI
from starlette.routing import Match, Route
from starlette.types import Scope

from billing.accounts.roles import OF_PLATFORM, OF_TENANT, Role

_PUBLIC: Final = frozenset(Role)
# All of the platform's roles read everything.
_READ: Final = OF_PLATFORM
# What runs, for whom, and how much of it.
_OPERATE: Final = frozenset({Role.OPERATOR})
# What it costs.
_PRICE: Final = frozenset({Role.FINANCE})
# What is agreed with tenants, and what they may spend.
_SELL: Final = _OPERATE | _PRICE
_SERVICE: Final = frozenset({Role.SERVICE})
_OWN: Final = OF_TENANT
_OWN_KEYS: Final = frozenset({Role.ADMIN, Role.MEMBER})
_OWN_MONEY: Final = frozenset({Role.ADMIN, Role.BILLING})
_OWN_ADMIN: Final = frozenset({Role.ADMIN})

RIGHTS: Final[Mapping[str, frozenset[Role]]] = {
    "GET /healthz": _PUBLIC,
    # What the API can do is no secret, and a browser that opens a page has no key to send.
    "GET /docs": _PUBLIC,
    "GET /docs/{asset}": _PUBLIC,
    "GET /openapi.json": _PUBLIC,
    "HEAD /openapi.json": _PUBLIC,
    "POST /admin/v1/tenants": _OPERATE,
    "GET /admin/v1/tenants": _READ | _OWN,
    "GET /admin/v1/tenants/{tenant:path}": _READ | _OWN,
    "PATCH /admin/v1/tenants/{tenant:path}": _OPERATE,
    "POST /admin/v1/projects": _OPERATE | _OWN_ADMIN,
    "GET /admin/v1/projects": _READ | _OWN,
    "PATCH /admin/v1/projects/{project}": _OPERATE | _OWN_ADMIN,
    "POST /admin/v1/keys": _OPERATE | _OWN_KEYS,
    "GET /admin/v1/keys": _READ | _OWN,
    "GET /admin/v1/keys/{key_id}": _READ | _OWN,
    "GET /admin/v1/keys/{key_id}/usage": _READ | _OWN | _SERVICE,
    "PATCH /admin/v1/keys/{key_id}": _OPERATE | _OWN_KEYS,
    "POST /admin/v1/keys/{key_id}/rotate": _OPERATE | _OWN_KEYS,
    "DELETE /admin/v1/keys/{key_id}": _OPERATE | _OWN_KEYS,
    "PUT /admin/v1/limits": _OPERATE,
    "GET /admin/v1/limits": _READ | _OWN,
    "DELETE /admin/v1/limits": _OPERATE,
    "PUT /admin/v1/budgets": _SELL | _OWN_MONEY,
    "GET /admin/v1/budgets": _READ | _OWN,
    "DELETE /admin/v1/budgets/{budget_id}": _SELL | _OWN_MONEY,
    # Alerts make billing send to a URL: not to one that a tenant chooses.
    "PUT /admin/v1/budgets/{budget_id}/alerts": _SELL,
    "DELETE /admin/v1/budgets/{budget_id}/alerts/{percent}": _SELL,
    "POST /admin/v1/models": _OPERATE,
    "GET /admin/v1/models": _READ,
    "GET /admin/v1/models/{name:path}": _READ,
    "PATCH /admin/v1/models/{name:path}": _OPERATE,
    "POST /admin/v1/adapters": _OPERATE,
    "GET /admin/v1/adapters": _READ,
    "PATCH /admin/v1/adapters/{name:path}": _OPERATE,
    "GET /admin/v1/pools": _READ,
    "GET /admin/v1/pools/{pool:path}": _READ,
    "PATCH /admin/v1/pools/{pool:path}": _OPERATE,
    "GET /admin/v1/launches": _READ | _SERVICE,
    "PUT /admin/v1/launches/{pool:path}": _OPERATE,
    "DELETE /admin/v1/launches/{pool:path}": _OPERATE,
    "GET /admin/v1/autoscaling": _READ,
    "PUT /admin/v1/autoscaling/{pool:path}": _OPERATE,
    "GET /admin/v1/autoscaling/{pool:path}": _READ,
    "DELETE /admin/v1/autoscaling/{pool:path}": _OPERATE,
    "POST /admin/v1/calibrations": _OPERATE,
    "GET /admin/v1/calibrations": _READ,
    "POST /admin/v1/calibrations/absorbed": _OPERATE,
    "POST /admin/v1/contracts": _SELL,
    "GET /admin/v1/contracts": _READ | _OWN,
    # It holds nothing.
    "POST /admin/v1/contracts/quote": _READ,
    "GET /admin/v1/contracts/{contract_id}": _READ | _OWN,
    "POST /admin/v1/contracts/{contract_id}/sign": _SELL,
    "POST /admin/v1/contracts/{contract_id}/withdraw": _SELL,
    "POST /admin/v1/contracts/{contract_id}/notice": _SELL,
    "POST /admin/v1/contracts/{contract_id}/amend": _SELL,
    "GET /admin/v1/contracts/{contract_id}/history": _READ | _OWN,
    "POST /admin/v1/reclaims": _OPERATE,
    "GET /admin/v1/reclaims": _READ,
    "GET /admin/v1/reclaims/{reclaim_id}": _READ,
    "POST /admin/v1/reclaims/{reclaim_id}/release": _OPERATE,
    "POST /admin/v1/reclaims/{reclaim_id}/cancel": _OPERATE,
    "GET /admin/v1/plan": _READ,
    "POST /admin/v1/machines": _SELL,
    "GET /admin/v1/machines": _READ,
    "GET /admin/v1/economics": _READ,
    "GET /admin/v1/economics/plan": _READ,
    "POST /admin/v1/economics/what-if": _READ,
    "POST /admin/v1/instances": _OPERATE,
    "GET /admin/v1/instances": _READ,
    "DELETE /admin/v1/instances/{instance:path}": _OPERATE,
    "POST /admin/v1/instances/{instance:path}/restart": _OPERATE,
    "GET /admin/v1/instances/{instance:path}/evidence": _READ,
    "GET /admin/v1/evidence-key": _READ,
    "POST /admin/v1/prices/list": _PRICE,
    "POST /admin/v1/makers": _PRICE,
    "GET /admin/v1/makers": _READ,
    "POST /admin/v1/books": _PRICE,
    "GET /admin/v1/books": _READ,
    "GET /admin/v1/books/{month}": _READ,
    "POST /admin/v1/terms": _SELL,
    "GET /admin/v1/terms": _READ | _OWN,
    "POST /admin/v1/capacity-prices": _PRICE,
    "GET /admin/v1/capacity-prices": _READ | _OWN,
    "POST /admin/v1/credits": _PRICE,
    "GET /admin/v1/credits": _READ | _OWN,
    "PUT /admin/v1/credits/prepaid": _PRICE,
    "POST /admin/v1/invoices": _PRICE,
    "GET /admin/v1/invoices": _READ | _OWN,
    "GET /admin/v1/invoices/draft": _READ | _OWN,
    "GET /admin/v1/invoices/{number}": _READ | _OWN,
    "GET /admin/v1/invoices/{number}/document": _READ | _OWN,
    "GET /admin/v1/invoices/{number}/pdf": _READ | _OWN,
    "GET /admin/v1/invoices/{number}/check": _READ | _OWN,
    "POST /admin/v1/invoices/{number}/credit-notes": _PRICE,
    "POST /admin/v1/prices": _PRICE,
    "GET /admin/v1/prices": _READ,
    "DELETE /admin/v1/prices/{price_id}": _PRICE,
    "POST /admin/v1/prices/backfill": _PRICE,
    "POST /admin/v1/cost-prices": _PRICE,
    "GET /admin/v1/cost-prices": _READ,
    "DELETE /admin/v1/cost-prices/{price_id}": _PRICE,
    "GET /admin/v1/usage": _READ | _OWN,
    "GET /admin/v1/usage/checkpoints": _READ | _OWN | _SERVICE,
    "GET /admin/v1/usage/export": _READ | _OWN,
    # As alerts: billing sends to where they say.
    "POST /admin/v1/sinks": _SELL,
    "GET /admin/v1/sinks": _READ,
    "POST /admin/v1/sinks/{sink}/pause": _SELL,
    "POST /admin/v1/sinks/{sink}/resume": _SELL,
    "DELETE /admin/v1/sinks/{sink}": _SELL,
    "GET /admin/v1/sinks/{sink}/skipped": _READ,
    "GET /admin/v1/retention": _READ,
    "POST /admin/v1/retention/drop": _PRICE,
    "GET /admin/v1/provider-usage": _READ,
    # It keeps nothing.
    "POST /admin/v1/provider-usage/compare": _READ,
    "POST /admin/v1/provider-usage": _SELL,
    "GET /admin/v1/reconciliation": _READ,
    "GET /admin/v1/audit": _READ,
    "GET /admin/v1/findings": _READ,
    "PATCH /admin/v1/findings/{finding_id}": _OPERATE | _PRICE,
    "GET /admin/v1/audit-log": _READ | _OWN_ADMIN,
    "GET /admin/v1/capacity": _READ | _SERVICE,
    "GET /admin/v1/scrape-targets": _READ | _SERVICE,
    "GET /admin/v1/batches": _READ | _OWN,
    "GET /admin/v1/batches/{batch}": _READ | _OWN,
    "POST /admin/v1/batches/{batch}/cancel": _OPERATE | _OWN_KEYS,
    "GET /admin/v1/requests/{request_id}": _READ | _SERVICE,
    "POST /admin/v1/requests/{request_id}/stop": _OPERATE,
    "POST /admin/v1/admin-keys": _OPERATE | _OWN_ADMIN,
    "GET /admin/v1/admin-keys": _READ | _OWN_ADMIN,
    "GET /admin/v1/admin-keys/{key_id}": _READ | _OWN_ADMIN,
    "POST /admin/v1/admin-keys/{key_id}/rotate": _OPERATE | _OWN_ADMIN,
    "DELETE /admin/v1/admin-keys/{key_id}": _OPERATE | _OWN_ADMIN,
    "GET /v1/organization/usage/completions": _READ | _OWN,
    "GET /v1/organization/usage/embeddings": _READ | _OWN,
    "GET /v1/organization/costs": _READ | _OWN,
    "GET /v1/organization/projects": _READ | _OWN,
    "GET /v1/organization/projects/{project}": _READ | _OWN,
    "GET /v1/organization/projects/{project}/api_keys": _READ | _OWN,
    "GET /v1/organization/projects/{project}/rate_limits": _READ | _OWN,
    "GET /v1/organization/admin_api_keys": _READ | _OWN_ADMIN,
    "GET /v1/organization/audit_logs": _READ | _OWN_ADMIN,
}


def routes_of(app: FastAPI) -> Iterator[str]:
    """Every method and path template that the app answers. Raises TypeError for a route of another kind,
    which could hide others.
    """
    for route in app.routes:
        if not isinstance(route, Route):
            raise TypeError(f"the rights of {route!r} cannot be told")
        for method in sorted(route.methods or ()):
            yield f"{method} {route.path}"


def entry_of(app: FastAPI, scope: Scope) -> str | None:
    """The key of the entry of this request's route; None: there is no such route."""
    for route in app.routes:
        if isinstance(route, Route) and route.matches(scope)[0] is Match.FULL:
            return f"{scope['method']} {route.path}"
    return None


def may_call(role: Role, entry: str | None) -> bool:
    """Whether this role may call the route. That a route does not exist is told to the platform's roles only,
    so that nobody else learns which ones do.
    """
    if role is Role.ROOT:
        return True
    return role in (OF_PLATFORM if entry is None else RIGHTS.get(entry, frozenset()))
