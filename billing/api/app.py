"""Puts the admin API together: routes, rights, errors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import httpx
import redis as redis_client
from fastapi import APIRouter, FastAPI
from sqlalchemy import Engine
from starlette.middleware import Middleware

from billing.api import (
    adapters,
    admin_keys,
    audit_log,
    autoscaling,
    batches,
    books,
    budgets,
    calibrations,
    capacity,
    contracts,
    cost_prices,
    credits,
    docs,
    document,
    economics,
    economics_ahead,
    errors,
    evidence,
    findings,
    health,
    instances,
    invoices,
    key_usage,
    keys,
    launches,
    limits,
    machines,
    models,
    organization,
    organization_usage,
    plan,
    pools,
    prices,
    projects,
    provider_usage,
    reclaims,
    requests,
    restarts,
    retention,
    scrape_targets,
    sinks,
    tenants,
    terms,
    usage,
    usage_proof,
)
from billing.api.buffered_body import BufferedBody
from billing.api.control import ControlPlane
from billing.api.edge import Access, RequestId
from billing.api.idempotency import Idempotency
from billing.api.signing_key import checking_key
from billing.audit.engine_counters import CounterPoller
from billing.audit.run import Auditor
from billing.catalogue.projection import Projector
from billing.fleet.engine_probe import TIMEOUT_S
from billing.settings import BillingSettings
from billing.wire.certificates import checked_by

ROUTERS: Final[tuple[APIRouter, ...]] = (
    docs.router, health.router, tenants.router, projects.router, keys.router, key_usage.router, limits.router,
    budgets.router, models.router, instances.router, prices.router, cost_prices.router, usage.router,
    provider_usage.router, usage_proof.router, sinks.router, findings.router, retention.router,
    requests.router, pools.router, calibrations.router, contracts.router, reclaims.router, plan.router,
    capacity.router, scrape_targets.router, evidence.router, restarts.router, adapters.router,
    machines.router, economics.router, economics_ahead.router, launches.router, autoscaling.router,
    batches.router, admin_keys.router, audit_log.router, terms.router, credits.router,
    invoices.router, books.router, organization_usage.router, organization.router,
)  # fmt: skip


def build_app(
    settings: BillingSettings,
    engine: Engine,
    redis: redis_client.Redis,
    *,
    auditor: Auditor | None = None,
    projector: Projector | None = None,
) -> FastAPI:
    """The app, on a database with the newest schema. `redis` must not decode, and should have time-outs of a
    few seconds. The app writes each change to Redis. `Projector.keep_up`, which somebody else runs, writes
    what it could not, and restores a Redis that lost data. The caller closes engine and client.
    """
    ca_file = settings.upstream_ca_file
    http = httpx.Client(
        timeout=TIMEOUT_S, trust_env=False, follow_redirects=False, verify=checked_by(ca_file=ca_file)
    )
    poller = None
    if auditor is None:
        poller = CounterPoller(engine, redis, timeout_ms=settings.engine_timeout_ms, ca_file=ca_file)

    def close() -> None:
        http.close()
        if poller is not None:
            poller.close()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.to_thread(close)

    app = FastAPI(
        title="taas admin API",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        middleware=[
            Middleware(RequestId),
            Middleware(Access, admin_key=settings.admin_key, service_key=settings.service_key, engine=engine),
            Middleware(BufferedBody),
            Middleware(Idempotency, engine=engine),
        ],
    )
    app.state.control = ControlPlane(
        engine=engine,
        redis=redis,
        projector=projector or Projector(engine, redis),
        http=http,
        evidence_key_file=settings.evidence_key_file,
        issuer=settings.issuer,
        invoice_font_file=settings.invoice_font_file,
        retention_days=settings.usage_retention_days,
    )
    app.state.auditor = auditor or Auditor(
        engine,
        redis,
        poller,  # type: ignore[arg-type]
        checking_key=partial(checking_key, settings.evidence_key_file),
    )
    errors.install(app)
    for router in ROUTERS:
        # Flat, so that the table of rights covers every route.
        app.router.routes.extend(router.routes)
    document.install(app)
    return app
