"""The one form of an error, `{"error": {"message", "type", "param", "code"}}`, for each kind of failure;
never FastAPI's own.

It owns status codes. An error never repeats what a caller sent, except names that the caller asked for.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

import redis
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from billing.refusals import Conflict, Forbidden, Invalid, NotFound, RequestRefused, Unreachable

_log = logging.getLogger(__name__)

REQUEST_ID_HEADER: Final = "x-request-id"
_STATUS_OF: Final[Mapping[type[RequestRefused], int]] = {
    Invalid: 400,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    Unreachable: 424,
}
_TYPE_OF: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
}
_CODE_OF: Final[Mapping[int, str]] = {
    400: "invalid_request", 404: "unknown_route", 405: "method_not_allowed", 413: "body_too_large",
    415: "unsupported_media_type",
}  # fmt: skip
_CODE_OF_FINDING: Final[Mapping[str, str]] = {
    "extra_forbidden": "unknown_parameter", "missing": "missing_parameter", "json_invalid": "invalid_json",
}  # fmt: skip


def error_response(
    status: int,
    message: str,
    *,
    code: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    request: Request | None = None,
) -> JSONResponse:
    """An error as every client of ours expects it."""
    kind = _TYPE_OF.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    response = JSONResponse(body, status, dict(headers or {}))
    if request is not None and (request_id := request.scope.get("state", {}).get("request_id")):
        response.headers[REQUEST_ID_HEADER] = request_id
    return response


def install(app: FastAPI) -> None:
    """Give every failure the form of an error."""
    app.add_exception_handler(RequestRefused, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(OperationalError, _database_down)
    app.add_exception_handler(redis.RedisError, _redis_down)
    app.add_exception_handler(Exception, _bug)


def answer_to(request: Request, exc: Exception) -> JSONResponse:
    """The answer to a failure outside the routes. A bug is raised again."""
    if isinstance(exc, RequestRefused):
        return _refused(request, exc)
    if isinstance(exc, OperationalError):
        return _database_down(request, exc)
    raise exc


def _refused(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestRefused)
    # By the branch of the tree: a noun may have subclasses of its own.
    status = next((status for kind, status in _STATUS_OF.items() if isinstance(exc, kind)), 400)
    return error_response(status, exc.message, code=exc.code, param=exc.param)


def _http(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    message = {404: "There is no such route.", 405: "This route does not answer that method."}.get(
        exc.status_code, exc.detail
    )
    return error_response(
        exc.status_code, message, code=_CODE_OF.get(exc.status_code, "error"), headers=exc.headers
    )


def _invalid(request: Request, exc: Exception) -> JSONResponse:
    """The first finding, with its path as the parameter. 400, because clients of OpenAI's API do not expect
    422.
    """
    assert isinstance(exc, RequestValidationError)
    finding: Mapping[str, Any] = exc.errors()[0]
    code = _CODE_OF_FINDING.get(finding["type"], "invalid_value")
    if code == "invalid_json":
        return error_response(400, "The body is not valid JSON.", code=code)
    place = [str(step) for step in finding["loc"][1:] if isinstance(step, int) or is_plain(step)]
    if finding["loc"][0] != "body" or place:
        param = ".".join(place) or None
        return error_response(400, f"{param or 'A parameter'}: {_sentence(finding)}", code=code, param=param)
    return error_response(400, "The body must be a JSON object, sent as application/json.", code=code)


def _sentence(finding: Mapping[str, Any]) -> str:
    return {
        "extra_forbidden": "there is no such parameter here.",
        "missing": "this parameter is required.",
    }.get(finding["type"], str(finding["msg"]).removeprefix("Value error, "))


def is_plain(step: str) -> bool:
    """Whether a name that a caller chose may be repeated in an error."""
    return len(step) <= 64 and step.isascii() and step.replace("_", "").replace("-", "").isalnum()


def _database_down(request: Request, exc: Exception) -> JSONResponse:
    _log.error("the database did not answer: %s", type(exc).__name__)
    return error_response(503, "The database does not answer.", code="database_unavailable")


def _redis_down(request: Request, exc: Exception) -> JSONResponse:
    _log.error("Redis did not answer: %s", type(exc).__name__)
    return error_response(503, "Redis does not answer.", code="redis_unavailable")


def _bug(request: Request, exc: Exception) -> JSONResponse:
    # Starlette raises it again after the answer, so the server logs it.
    return error_response(
        500, "The server failed at this; see its log.", code="internal_error", request=request
    )
