"""The routes beside inference: the models that a key may see, the receipt of a request, the use of the
tenant's contracts, readiness.

They are off the hot path, so FastAPI serves them.
"""

import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from gateway.authenticate import Caller, authenticate
from gateway.billing_client import BillingClient
from gateway.catalogue.entries import Model
from gateway.catalogue.feed import Catalogue
from gateway.clock import Clock
from gateway.errors import (
    InvalidRequest,
    RouteNotFound,
    UsageUnavailable,
)
from gateway.readiness import Readiness
from gateway.receipts import find_receipt

REQUEST_ID = re.compile(r"req_[0-9a-f]{24}")
# What a tenant may ask of its capacity and of its checkpoints, and how long each word may be.
CAPACITY_WORDS = ("contract", "from", "until")
CHECKPOINT_WORDS = ("limit", "after")
PARAM_CHARS_MAX = {"contract": 128, "from": 128, "until": 128, "limit": 16, "after": 1024}
CAPACITY_FIELDS = (
    "contract",
    "minute",
    "assigned",
    "used",
    "lent",
    "borrowed",
    "refused",
    "shortfall",
    "missing",
)


def listing_router(
    catalogue: Catalogue, clock: Clock, readiness: Readiness, billing: BillingClient
) -> APIRouter:
    """Routes of one process. Errors are GatewayErrors, which the app puts into the caller's dialect."""
    router = APIRouter()

    async def caller_of(request: Request) -> Caller:
        return await authenticate(request.scope["headers"], catalogue, clock.at_ms(time.monotonic()))

    @router.get("/v1/models", summary="Models that this key may see", tags=["models"])
    async def list_models(request: Request) -> dict[str, Any]:
        caller, now_ms = await caller_of(request), clock.at_ms(time.monotonic())
        models = caller.models(catalogue, now_ms)
        if "anthropic-version" in request.headers:
            entries = [_anthropic_model(model) for model in models]
            ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"]} if entries else {}
            return {"data": entries, "has_more": False, "first_id": None, "last_id": None} | ends
        return {"object": "list", "data": [_openai_model(model) for model in models]}

    @router.get("/v1/models/{name:path}", summary="One model", tags=["models"])
    async def show_model(name: str, request: Request) -> dict[str, Any]:
        caller = await caller_of(request)
        model = caller.find_model(catalogue, name, clock.at_ms(time.monotonic()))
        return _anthropic_model(model) if "anthropic-version" in request.headers else _openai_model(model)

    @router.api_route("/v1/responses/{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
    async def no_stored_response(rest: str) -> None:
        raise RouteNotFound(
            "Responses are stateless here: none is kept, and only POST /v1/responses is served."
        )

    _add_usage_routes(router, billing, caller_of)

    @router.get("/health", include_in_schema=False)
    @router.get("/healthz", summary="The process runs", tags=["health"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", summary="The process takes requests, or why not", tags=["health"])
    async def readyz() -> JSONResponse:
        report = readiness.report()
        return JSONResponse(report.to_json(), 200 if report.ready else 503)

    return router


def _add_usage_routes(
    router: APIRouter, billing: BillingClient, caller_of: Callable[[Request], Awaitable[Caller]]
) -> None:
    """Routes that ask billing on the caller's behalf, and only about the caller's tenant."""

    @router.get(
        "/v1/usage/requests/{request_id}", summary="What one request produced and cost", tags=["usage"]
    )
    async def show_usage(request_id: str, request: Request) -> Response:
        caller = await caller_of(request)
        if not REQUEST_ID.fullmatch(request_id):
            raise RouteNotFound("There is no such request.")
        receipt = await find_receipt(billing, request_id, caller.tenant.tenant)
        if receipt is None:
            raise RouteNotFound("There is no such request, or its usage is not kept any more.")
        return JSONResponse(receipt)

    @router.get("/v1/usage/me", summary="What you have used and may use", tags=["usage"])
    async def show_own_usage(request: Request) -> Response:
        caller = await caller_of(request)
        try:
            found = await billing.get(f"/admin/v1/keys/{caller.key.key_id}/usage", {})
        except httpx.HTTPError as exc:
            raise UsageUnavailable from exc
        if found.status_code != 200:
            raise UsageUnavailable
        return JSONResponse(found.json())

    async def ask(request: Request, path: str, words: tuple[str, ...]) -> dict[str, Any]:
        """Billing's answer to these parameters of the caller's, about the caller's tenant."""
        caller = await caller_of(request)
        asked = {word: request.query_params[word] for word in words if word in request.query_params}
        for word, text in asked.items():
            if len(text) > PARAM_CHARS_MAX[word]:
                raise InvalidRequest(f"'{word}' has at most {PARAM_CHARS_MAX[word]} characters.", param=word)
        try:
            # Last, so that no parameter of the caller can name another tenant.
            found = await billing.get(path, asked | {"tenant": caller.tenant.tenant})
        except httpx.HTTPError as exc:
            raise UsageUnavailable from exc
        if found.status_code == 404:
            raise RouteNotFound("There is no such contract.")
        if found.status_code == 400:
            refusal = found.json()["error"]
            raise InvalidRequest(refusal["message"], param=refusal["param"])
        if found.status_code != 200:
            raise UsageUnavailable
        answer: dict[str, Any] = found.json()
        return answer

    @router.get(
        "/v1/usage/checkpoints",
        summary="Signed: where your chain of usage stood at the end of each day",
        tags=["usage"],
    )
    async def show_checkpoints(request: Request) -> dict[str, Any]:
        return await ask(request, "/admin/v1/usage/checkpoints", CHECKPOINT_WORDS)

    @router.get("/v1/capacity", summary="What came of your contracts, minute by minute", tags=["usage"])
    async def show_capacity(request: Request) -> dict[str, Any]:
        return tenants_capacity(await ask(request, "/admin/v1/capacity", CAPACITY_WORDS))


def tenants_capacity(report: dict[str, Any]) -> dict[str, Any]:
    """The evidence without the names of our machines: the tenant knows its contracts by their ids."""
    shown = {
        part: [{name: line[name] for name in CAPACITY_FIELDS if name in line} for line in report[part]]
        for part in ("data", "total")
    }
    return {"from": report["from"], "until": report["until"], **shown}


def _openai_model(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "taas",
        "max_model_len": model.context_tokens,
    }


def _anthropic_model(model: Model) -> dict[str, Any]:
    created = datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": model.name, "display_name": model.name, "created_at": created}
