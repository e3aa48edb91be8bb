"""Puts the routes of a batch process together. Its errors are in the dialect of the path."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from billing.batch.api import anthropic_batches, files, openai_batches
from billing.batch.refusals import KeyInUse, NotThere, Refused, Unavailable
from billing.batch.service import Service
from billing.refusals import Conflict
from billing.wire.routes import Dialect, dialect_of_path


def build_app(service: Service) -> FastAPI:
    """The app; the caller closes what is in the service."""
    app = FastAPI(title="taas batch service", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    for router in (files.router, openai_batches.router, anthropic_batches.router):
        # Flat, so that a test sees every route.
        app.router.routes.extend(router.routes)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(Conflict, _conflict)
    app.add_exception_handler(HTTPException, _http)
    # Loaded with the store, and not by whoever imports this module.
    from obstore.exceptions import BaseError

    for kind in (OperationalError, BaseError, OSError):
        app.add_exception_handler(kind, _away)
    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    headers = {"retry-after": "1"} if isinstance(error, KeyInUse) else None
    return JSONResponse(_body(request, error), error.status, headers)


async def _conflict(request: Request, error: Exception) -> JSONResponse:
    """400, as OpenAI has it; its SDK would try a 409 again."""
    assert isinstance(error, Conflict)
    return JSONResponse(_body(request, Refused(error.message, code=error.code)), 400)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    refused = NotThere("There is no such route.", code="route_not_found")
    return JSONResponse(_body(request, refused), error.status_code)


async def _away(request: Request, _: Exception) -> JSONResponse:
    refused = Unavailable("Files and batches cannot be reached now. Try again later.")
    return JSONResponse(_body(request, refused), 503, {"retry-after": "1"})


def _body(request: Request, error: Refused) -> dict[str, Any]:
    if dialect_of_path(request.url.path) is Dialect.ANTHROPIC:
        said = {"type": error.anthropic_type, "message": error.message, "details": {"error_code": error.code}}
        return {"type": "error", "error": said}
    said_openai = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": said_openai}
