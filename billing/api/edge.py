"""What every request passes before its body is read: it gets a request id, and its caller's rights are
checked. Pure ASGI.

It knows the rights of keys, not what the routes do.
"""

import asyncio
import hmac
import re
import secrets
from typing import Final

from fastapi import FastAPI, Request
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from billing.accounts import admin_keys
from billing.accounts.roles import NOBODY, Caller, Role
from billing.api.errors import REQUEST_ID_HEADER, answer_to, error_response
from billing.api.rights import RIGHTS, entry_of, may_call
from billing.wire.secret_forms import ADMIN_KEY_REQUIRED, API_KEY_PREFIX

_CHALLENGE: Final = {"www-authenticate": "Bearer"}
_ADMIN_KEY: Final = re.compile(admin_keys.SECRET_FORM.encode())


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
    """Lets a request through if the role of its bearer key may call the route (`rights.RIGHTS`). The keys of
    the settings are compared in constant time, admin keys are looked up by their hash.
    """

    def __init__(self, app: ASGIApp, *, admin_key: str, service_key: str, engine: Engine) -> None:
        self._app = app
        self._keys = ((Role.ROOT, admin_key.encode()), (Role.SERVICE, service_key.encode()))
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """401 without a known key, 403 with a key whose role must not do this; in the state of what is passed
        on: `caller`, and `entry`, the route's key in the table of rights.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        app: FastAPI = scope["app"]
        entry = entry_of(app, scope)
        presented = _bearer(Headers(scope=scope))
        caller = self._known(presented)
        if caller is NOBODY and not may_call(Role.NOBODY, entry) and _ADMIN_KEY.fullmatch(presented):
            try:
                caller = await asyncio.to_thread(self._find, presented.decode())
            except OperationalError as exc:
                await answer_to(Request(scope), exc)(scope, receive, send)
                return
        if may_call(caller.role, entry):
            scope.setdefault("state", {}).update(caller=caller, entry=entry)
            await self._app(scope, receive, send)
        elif caller is not NOBODY:
            await error_response(403, _not_allowed(caller.role, entry), code="role_not_allowed")(
                scope, receive, send
            )
        elif presented.startswith(API_KEY_PREFIX.encode()) and not _ADMIN_KEY.fullmatch(presented):
            await error_response(403, ADMIN_KEY_REQUIRED, code="admin_key_required")(scope, receive, send)
        else:
            message = "Give an admin key as `Authorization: Bearer …`."
            await error_response(401, message, code="invalid_admin_key", headers=_CHALLENGE)(
                scope, receive, send
            )

    def _known(self, presented: bytes) -> Caller:
        """Whose key of the settings it is. An unset key matches nobody."""
        found = NOBODY
        for role, key in self._keys:
            if hmac.compare_digest(presented, key) and key and found is NOBODY:
                found = Caller(role.value, role)
        return found

    def _find(self, secret: str) -> Caller:
        with self._engine.begin() as connection:
            return admin_keys.caller_with(connection, secret) or NOBODY


def _not_allowed(role: Role, entry: str | None) -> str:
    """What may be told: the table is in the API's document, which anybody may read."""
    if entry is None or not (others := RIGHTS.get(entry)):
        return f"The role `{role}` may not do this."
    return f"The role `{role}` may not do this; these may: {', '.join(sorted(others))}."


def _bearer(headers: Headers) -> bytes:
    given = headers.getlist("authorization")
    if len(given) != 1 or given[0][:7].lower() != "bearer ":
        return b""
    return given[0][7:].strip().encode("latin-1")
