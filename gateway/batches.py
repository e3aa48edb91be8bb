"""The routes of files and batches. The gateway says who the caller is, and passes the request on to the batch
service and its answer back, piece by piece: it holds no file.

It knows neither what is stored nor what is answered. With `TAAS_BATCH=0` none of these routes is there.
"""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from billing.wire.batch_caller import caller_headers
from billing.wire.certificates import checked_by
from gateway.authenticate import authenticate
from gateway.catalogue.feed import Catalogue
from gateway.clock import Clock
from gateway.edge.client import ClientConnection
from gateway.errors import BatchUnavailable, ClientDisconnected, RouteNotFound, UnsupportedContentEncoding
from gateway.settings import GatewaySettings

# Method, path and what it is for. The batch service serves the same paths.
BATCH_ROUTES: Final = (
    ("POST", "/v1/files", "Upload a file (OpenAI)"),
    ("GET", "/v1/files", "Your files (OpenAI)"),
    ("GET", "/v1/files/{file_id}", "One file (OpenAI)"),
    ("GET", "/v1/files/{file_id}/content", "What a file holds (OpenAI)"),
    ("DELETE", "/v1/files/{file_id}", "Delete a file (OpenAI)"),
    ("POST", "/v1/batches", "Create a batch (OpenAI)"),
    ("GET", "/v1/batches", "Your batches (OpenAI)"),
    ("GET", "/v1/batches/{batch_id}", "One batch (OpenAI)"),
    ("POST", "/v1/batches/{batch_id}/cancel", "Cancel a batch (OpenAI)"),
    ("POST", "/v1/messages/batches", "Create a batch (Anthropic)"),
    ("GET", "/v1/messages/batches", "Your batches (Anthropic)"),
    ("GET", "/v1/messages/batches/{batch_id}", "One batch (Anthropic)"),
    ("GET", "/v1/messages/batches/{batch_id}/results", "What a batch has answered (Anthropic)"),
    ("POST", "/v1/messages/batches/{batch_id}/cancel", "Cancel a batch (Anthropic)"),
    ("DELETE", "/v1/messages/batches/{batch_id}", "Delete a batch (Anthropic)"),
)
# Of the request and of the answer; all others are of one connection, or say who the caller is.
_PASSED_ON: Final = ("content-type", "content-length", "idempotency-key")
_PASSED_BACK: Final = (
    "content-type", "content-length", "content-disposition", "idempotent-replayed", "retry-after",
)  # fmt: skip
_CONNECT_S: Final = 2.0
# A message batch is read as a whole before its creation is answered.
_ANSWER_S: Final = 120.0


def batch_router(catalogue: Catalogue, clock: Clock, settings: GatewaySettings) -> APIRouter:
    """All routes, which end in the batch service. Raises BatchUnavailable where that does not answer."""
    router = APIRouter()
    service = httpx.AsyncClient(
        base_url=settings.batch_url,
        headers={"authorization": f"Bearer {settings.service_key.get_secret_value()}"},
        timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        trust_env=False,
        verify=checked_by(settings.batch_url),
    )

    async def pass_on(request: Request) -> StreamingResponse:
        if not settings.batch:
            raise RouteNotFound("Files and batches are not offered here.")
        caller = await authenticate(request.scope["headers"], catalogue, clock.at_ms(time.monotonic()))
        if request.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
            raise UnsupportedContentEncoding
        connection: ClientConnection = request.scope["extensions"]["taas.connection"]
        connection.expect_body_within(settings.upload_deadline_s)
        who = caller_headers(
            caller.tenant.tenant,
            caller.key.project,
            caller.key.key_id,
            restricted=caller.key.models is not None,
        )
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers} | who
        asked = service.build_request(
            request.method,
            httpx.URL(path=request.url.path, query=request.url.query.encode()),
            headers=headers,
            content=_body(request) if request.method == "POST" else None,
        )
        async with AsyncExitStack() as ending:
            try:
                answer = await service.send(asked, stream=True)
            except httpx.HTTPError as exc:
                raise BatchUnavailable from exc
            ending.push_async_callback(answer.aclose)
            kept = ending.pop_all()
        passed = {name: answer.headers[name] for name in _PASSED_BACK if name in answer.headers}
        return StreamingResponse(_pieces(answer, kept), answer.status_code, passed)

    for method, path, summary in BATCH_ROUTES:
        router.add_api_route(
            path, pass_on, methods=[method], summary=summary, tags=["batches"],
            operation_id=f"{method} {path}",
            response_class=StreamingResponse, include_in_schema=settings.batch,
        )  # fmt: skip
    return router


async def _body(request: Request) -> AsyncIterator[bytes]:
    """The caller's body as it comes: the next piece is read once this one has been passed on."""
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            raise ClientDisconnected
        if message["body"]:
            yield message["body"]
        if not message.get("more_body", False):
            return


async def _pieces(answer: httpx.Response, ending: AsyncExitStack) -> AsyncIterator[bytes]:
    async with ending:
        async for piece in answer.aiter_raw():
            yield piece
