"""`/v1/organization`: usage, costs, projects, keys and changes, as the admin client of OpenAI's SDK asks for
them. Billing answers; the caller's admin key goes to it as it came, and billing decides what that may see.

Reading only, nothing but these paths, and no key but an admin key that was made for somebody: the admin API
itself, and what its root key may do, are not to be reached through a gateway.
"""

import re
from typing import Final

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import Response

from billing.wire.secret_forms import ADMIN_KEY_FORM, ADMIN_KEY_PREFIX, ADMIN_KEY_REQUIRED, API_KEY_PREFIX
from gateway.authenticate import presented_bearer
from gateway.billing_client import BillingClient
from gateway.errors import AuthenticationFailed, PermissionDenied, UsageUnavailable

_ADMIN_KEY: Final = re.compile(ADMIN_KEY_FORM)
# Billing serves the same paths.
PATHS: Final = (
    ("usage/completions", "Usage of models that generate, by minute, hour or day (OpenAI)"),
    ("usage/embeddings", "Usage of embeddings and scores (OpenAI)"),
    ("costs", "What is owed for tokens, by day (OpenAI)"),
    ("projects", "Projects (OpenAI)"),
    ("projects/{project}", "One project (OpenAI)"),
    ("projects/{project}/api_keys", "The keys of a project (OpenAI)"),
    ("projects/{project}/rate_limits", "The limits that hold for a project (OpenAI)"),
    ("admin_api_keys", "Admin keys (OpenAI)"),
    ("audit_logs", "Who changed what (OpenAI)"),
)


def organization_router(billing: BillingClient) -> APIRouter:
    """All routes. They raise PermissionDenied for an API key, by its form, AuthenticationFailed for what else
    is no admin key, UsageUnavailable while billing does not answer; whatever else billing refuses, it says
    itself, in OpenAI's form.
    """
    router = APIRouter(prefix="/v1/organization", tags=["organization"])

    async def pass_on(request: Request) -> Response:
        bearer = presented_bearer(request.scope["headers"])
        if _ADMIN_KEY.fullmatch(bearer) is None:
            if bearer.startswith(API_KEY_PREFIX) and not bearer.startswith(ADMIN_KEY_PREFIX):
                raise PermissionDenied(ADMIN_KEY_REQUIRED)
            raise AuthenticationFailed
        try:
            answer = await billing.get(
                request.url.path, request.url.query, {"authorization": f"Bearer {bearer}"}
            )
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as exc:
            raise UsageUnavailable from exc
        if answer.status_code >= 500:
            raise UsageUnavailable
        return Response(answer.content, answer.status_code, media_type="application/json")

    for path, summary in PATHS:
        router.add_api_route(
            f"/{path}", pass_on, methods=["GET"], summary=summary, operation_id=f"organization {path}",
            response_class=Response,
        )  # fmt: skip
    return router
