"""Reads what a gateway asks for: on whose behalf, and the JSON and the numbers that the caller sent. A field
or a value that is not known is refused by name.
"""

import hmac
from collections.abc import Collection
from typing import Any, Final

import orjson
from fastapi import Request

from billing.batch.refusals import Refused, TooLarge, Unauthorized
from billing.batch.service import Service
from billing.wire.batch_caller import BatchCaller

_BODY_BYTES_MAX: Final = 64 * 1024
EXPIRES_S_MIN: Final = 3_600
EXPIRES_S_MAX: Final = 30 * 86_400


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def caller_of(request: Request) -> BatchCaller:
    """Raises Unauthorized unless a gateway asks."""
    expected = service_of(request).settings.service_key.get_secret_value().encode()
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
    if not expected or not hmac.compare_digest(given, expected):
        raise Unauthorized("The service key is needed.")
    try:
        return BatchCaller.read(request.headers)
    except KeyError:
        raise Unauthorized("It is not said for whom.") from None


async def json_of(request: Request, known: Collection[str]) -> dict[str, Any]:
    """A small JSON object with no other members than these. Raises Refused."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY_BYTES_MAX:
            raise TooLarge(f"The request body is larger than {_BODY_BYTES_MAX} bytes.")
    try:
        read = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refused("The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(read, dict):
        raise Refused("The body must be a JSON object.", code="invalid_json")
    for name in read:
        if name not in known:
            raise Refused(f"Unknown parameter: '{name[:64]}'.", name[:64], "unknown_parameter")
    return read


def text_of(body: dict[str, Any], name: str) -> str:
    """A required text. Raises Refused."""
    value = body.get(name)
    if not isinstance(value, str) or not value or "\x00" in value:
        raise Refused(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    return value


def number_of(request: Request, name: str, default: int, highest: int) -> int:
    """A number in the query, from 1. Raises Refused."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= highest):
        raise Refused(f"'{name}' must be a number from 1 to {highest}.", name)
    return int(text)


def id_of(request: Request, name: str) -> str | None:
    """An id in the query, or none. Raises Refused."""
    text = request.query_params.get(name)
    if text is not None and (not text.isascii() or not text.isprintable() or len(text) > 128):
        raise Refused(f"'{name}' is not an id.", name)
    return text


def expires_s_of(anchor: Any, seconds: Any, name: str) -> int | None:
    """How long a file is to be kept, if that is said. Raises Refused."""
    if anchor is None and seconds is None:
        return None
    text = str(seconds)
    ok = text.isascii() and text.isdigit() and len(text) < 10 and type(seconds) in {int, str}
    if anchor != "created_at" or not ok or not EXPIRES_S_MIN <= int(text) <= EXPIRES_S_MAX:
        message = (
            f"'{name}' must have the anchor 'created_at' and {EXPIRES_S_MIN} to {EXPIRES_S_MAX} seconds."
        )
        raise Refused(message, name)
    return int(text)
