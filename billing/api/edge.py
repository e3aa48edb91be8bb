"""What every request passes before its body is read: it gets a request id, and its caller's rights are
checked. Pure ASGI.

It knows the rights of keys, not what the routes do.
"""

import hmac
import secrets
from typing import Final

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from billing.api.errors import REQUEST_ID_HEADER, error_response
from billing.api.rights import Right, right_for
from billing.catalogue.api_keys import SECRET_PREFIX

_CHALLENGE: Final = {"www-authenticate": "Bearer"}


class RequestId:
    """Gives each request an id of ours, whatever id it brought, and returns it in the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with `request_id` in the state."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"adm_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class Access:
    """Lets a request through if its bearer key has the route's right (`rights.RIGHTS`). It compares in
    constant time.
    """

    def __init__(self, app: ASGIApp, *, admin_key: str, service_key: str) -> None:
        self._app = app
        self._keys = ((Right.ADMIN, admin_key.encode()), (Right.SERVICE, service_key.encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """401 without a known key, 403 with a key that has not this right."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        app: FastAPI = scope["app"]
        needed = right_for(app, scope)
        presented = _bearer(Headers(scope=scope))
        role = self._role(presented)
        if needed is Right.PUBLIC or role is Right.ADMIN or role is needed:
            scope.setdefault("state", {})["role"] = role
            await self._app(scope, receive, send)
        elif role is Right.SERVICE:
            message = (
                "The service key reads receipts, what came of contracts and scrape targets, nothing "
                "else; this takes the admin key."
            )
            await error_response(403, message, code="admin_key_required")(scope, receive, send)
        elif presented.startswith(SECRET_PREFIX.encode()):
            # The same text for every such key, so that it reveals nothing about this one.
            message = "A tenant's API key has no rights here; this takes the admin key."
            await error_response(403, message, code="admin_key_required")(scope, receive, send)
        else:
            message = "Give the admin key as `Authorization: Bearer …`."
            await error_response(401, message, code="invalid_admin_key", headers=_CHALLENGE)(
                scope, receive, send
            )

    def _role(self, presented: bytes) -> Right:
        """`public` for a caller without one of our keys. An unset key matches nobody."""
        found = Right.PUBLIC
        for role, key in self._keys:
            if hmac.compare_digest(presented, key) and key and found is Right.PUBLIC:
                found = role
        return found


def _bearer(headers: Headers) -> bytes:
    given = headers.getlist("authorization")
    if len(given) != 1 or given[0][:7].lower() != "bearer ":
        return b""
    return given[0][7:].strip().encode("latin-1")
