"""Who may call which route, in one table. A route that is not in it is for the admin only, and a test fails
until it is added.

The key of an entry is the method and the path's template, as `routes_of` reads them from the app.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Final

from fastapi import FastAPI
from starlette.routing import Match, Route
from starlette.types import Scope


class Right(StrEnum):
    """What a caller must be. The admin may do whatever a service may."""

    PUBLIC = "public"
    SERVICE = "service"
    ADMIN = "admin"


RIGHTS: Final[Mapping[str, Right]] = {
    "GET /healthz": Right.PUBLIC,
    # What the API can do is no secret, and a browser that opens a page has no key to send.
    "GET /docs": Right.PUBLIC,
    "GET /docs/{asset}": Right.PUBLIC,
    "GET /openapi.json": Right.PUBLIC,
    "HEAD /openapi.json": Right.PUBLIC,
    "POST /admin/v1/tenants": Right.ADMIN,
    "GET /admin/v1/tenants": Right.ADMIN,
    "GET /admin/v1/tenants/{tenant:path}": Right.ADMIN,
    "PATCH /admin/v1/tenants/{tenant:path}": Right.ADMIN,
    "POST /admin/v1/projects": Right.ADMIN,
    "GET /admin/v1/projects": Right.ADMIN,
    "POST /admin/v1/keys": Right.ADMIN,
    "GET /admin/v1/keys": Right.ADMIN,
    "DELETE /admin/v1/keys/{key_id}": Right.ADMIN,
    "PUT /admin/v1/limits": Right.ADMIN,
    "GET /admin/v1/limits": Right.ADMIN,
    "DELETE /admin/v1/limits": Right.ADMIN,
    "PUT /admin/v1/budgets": Right.ADMIN,
    "GET /admin/v1/budgets": Right.ADMIN,
    "DELETE /admin/v1/budgets/{budget_id}": Right.ADMIN,
    "PUT /admin/v1/budgets/{budget_id}/alerts": Right.ADMIN,
    "DELETE /admin/v1/budgets/{budget_id}/alerts/{percent}": Right.ADMIN,
    "POST /admin/v1/models": Right.ADMIN,
    "GET /admin/v1/models": Right.ADMIN,
    "GET /admin/v1/models/{name:path}": Right.ADMIN,
    "PATCH /admin/v1/models/{name:path}": Right.ADMIN,
    "POST /admin/v1/adapters": Right.ADMIN,
    "GET /admin/v1/adapters": Right.ADMIN,
    "PATCH /admin/v1/adapters/{name:path}": Right.ADMIN,
    "GET /admin/v1/pools": Right.ADMIN,
    "GET /admin/v1/pools/{pool:path}": Right.ADMIN,
    "PATCH /admin/v1/pools/{pool:path}": Right.ADMIN,
    "GET /admin/v1/launches": Right.SERVICE,
    "PUT /admin/v1/launches/{pool:path}": Right.ADMIN,
    "DELETE /admin/v1/launches/{pool:path}": Right.ADMIN,
    "GET /admin/v1/autoscaling": Right.ADMIN,
    "PUT /admin/v1/autoscaling/{pool:path}": Right.ADMIN,
    "GET /admin/v1/autoscaling/{pool:path}": Right.ADMIN,
    "DELETE /admin/v1/autoscaling/{pool:path}": Right.ADMIN,
    "POST /admin/v1/calibrations": Right.ADMIN,
    "GET /admin/v1/calibrations": Right.ADMIN,
    "POST /admin/v1/calibrations/absorbed": Right.ADMIN,
    "POST /admin/v1/contracts": Right.ADMIN,
    "GET /admin/v1/contracts": Right.ADMIN,
    "POST /admin/v1/contracts/quote": Right.ADMIN,
    "GET /admin/v1/contracts/{contract_id}": Right.ADMIN,
    "POST /admin/v1/contracts/{contract_id}/sign": Right.ADMIN,
    "POST /admin/v1/contracts/{contract_id}/withdraw": Right.ADMIN,
    "POST /admin/v1/contracts/{contract_id}/notice": Right.ADMIN,
    "POST /admin/v1/contracts/{contract_id}/amend": Right.ADMIN,
    "GET /admin/v1/contracts/{contract_id}/history": Right.ADMIN,
    "POST /admin/v1/reclaims": Right.ADMIN,
    "GET /admin/v1/reclaims": Right.ADMIN,
    "GET /admin/v1/reclaims/{reclaim_id}": Right.ADMIN,
    "POST /admin/v1/reclaims/{reclaim_id}/release": Right.ADMIN,
    "POST /admin/v1/reclaims/{reclaim_id}/cancel": Right.ADMIN,
    "GET /admin/v1/plan": Right.ADMIN,
    "POST /admin/v1/machines": Right.ADMIN,
    "GET /admin/v1/machines": Right.ADMIN,
    "GET /admin/v1/economics": Right.ADMIN,
    "GET /admin/v1/economics/plan": Right.ADMIN,
    "POST /admin/v1/economics/what-if": Right.ADMIN,
    "POST /admin/v1/instances": Right.ADMIN,
    "GET /admin/v1/instances": Right.ADMIN,
    "DELETE /admin/v1/instances/{instance:path}": Right.ADMIN,
    "POST /admin/v1/instances/{instance:path}/restart": Right.ADMIN,
    "POST /admin/v1/prices": Right.ADMIN,
    "GET /admin/v1/prices": Right.ADMIN,
    "DELETE /admin/v1/prices/{price_id}": Right.ADMIN,
    "POST /admin/v1/prices/backfill": Right.ADMIN,
    "POST /admin/v1/cost-prices": Right.ADMIN,
    "GET /admin/v1/cost-prices": Right.ADMIN,
    "DELETE /admin/v1/cost-prices/{price_id}": Right.ADMIN,
    "GET /admin/v1/keys/{key_id}": Right.ADMIN,
    "GET /admin/v1/keys/{key_id}/usage": Right.SERVICE,
    "PATCH /admin/v1/keys/{key_id}": Right.ADMIN,
    "POST /admin/v1/keys/{key_id}/rotate": Right.ADMIN,
    "PATCH /admin/v1/projects/{project}": Right.ADMIN,
    "GET /admin/v1/usage": Right.ADMIN,
    "GET /admin/v1/provider-usage": Right.ADMIN,
    "GET /admin/v1/audit": Right.ADMIN,
    "GET /admin/v1/capacity": Right.SERVICE,
    "GET /admin/v1/scrape-targets": Right.SERVICE,
    "GET /admin/v1/instances/{instance:path}/evidence": Right.ADMIN,
    "GET /admin/v1/evidence-key": Right.ADMIN,
    "GET /admin/v1/batches": Right.ADMIN,
    "GET /admin/v1/batches/{batch}": Right.ADMIN,
    "POST /admin/v1/batches/{batch}/cancel": Right.ADMIN,
    "GET /admin/v1/requests/{request_id}": Right.SERVICE,
    "POST /admin/v1/requests/{request_id}/stop": Right.ADMIN,
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


def right_for(app: FastAPI, scope: Scope) -> Right:
    """The right that this request needs. Unknown paths and methods need the admin's, so that nobody else
    learns which ones exist.
    """
    for route in app.routes:
        if isinstance(route, Route) and route.matches(scope)[0] is Match.FULL:
            return RIGHTS.get(f"{scope['method']} {route.path}", Right.ADMIN)
    return Right.ADMIN
