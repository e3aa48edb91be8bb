"""`Idempotency-Key` on POST: a repeated request gets the first answer and changes nothing. Pure ASGI; answers
are stored in SQL.

It runs behind `BufferedBody`. Only successes are stored: a refused request has changed nothing and may be
repeated under its key.
"""

import asyncio
import logging
import re
from typing import Final

from fastapi import Request
from fastapi.responses import Response
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from billing.accounts import admin_keys
from billing.accounts.roles import Caller, Role
from billing.api.control import CLAIM
from billing.api.errors import answer_to, error_response
from billing.catalogue import api_keys
from billing.idempotency import PARAM, IdempotencyClaim, StoredAnswer, find_answer, keep_answer
from billing.refusals import RequestRefused

_log = logging.getLogger(__name__)

HEADER: Final = "idempotency-key"
REPLAYED_HEADER: Final = "idempotent-replayed"
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
# A key is shown once, and is only in that answer.
_SECRET: Final = re.compile(f'"({api_keys.SECRET_FORM}|{admin_keys.SECRET_FORM})"'.encode())


class Idempotency:
    """Answers a POST that was carried out before with the stored answer."""

    def __init__(self, app: ASGIApp, *, engine: Engine) -> None:
        self._app = app
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """400 for a key that is malformed or belongs to another request, 409 while the first request runs."""
        keys = (
            Headers(scope=scope).getlist(HEADER)
            if scope["type"] == "http" and scope["method"] == "POST"
            else []
        )
        if not keys:
            await self._app(scope, receive, send)
            return
        if len(keys) > 1 or _KEY.fullmatch(keys[0]) is None:
            message = f"{PARAM} is 1 to 255 visible ASCII characters, given once."
            await error_response(400, message, code="invalid_value", param=PARAM)(scope, receive, send)
            return
        whole = await receive()
        body = whole.get("body", b"")
        caller: Caller = scope["state"]["caller"]
        # Root is called as earlier versions called it, so that what they did is not done again.
        name = "admin" if caller.role is Role.ROOT else caller.actor
        claim = IdempotencyClaim.of(name, keys[0], scope["path"].encode(), scope["query_string"], body)
        try:
            answer = await asyncio.to_thread(self._find, claim)
        except (RequestRefused, OperationalError) as exc:
            await answer_to(Request(scope), exc)(scope, receive, send)
            return
        if answer is not None:
            headers = {REPLAYED_HEADER: "true", "cache-control": "no-store"}
            await Response(answer.body, answer.status, headers, "application/json")(scope, receive, send)
            return
        scope["state"][CLAIM] = claim
        await self._app(scope, _once(whole, receive), _Keeping(self._engine, claim, send))

    def _find(self, claim: IdempotencyClaim) -> StoredAnswer | None:
        with self._engine.connect() as connection:
            return find_answer(connection, claim)


class _Keeping:
    """Sends an answer on once it is stored."""

    def __init__(self, engine: Engine, claim: IdempotencyClaim, send: Send) -> None:
        self._engine = engine
        self._claim = claim
        self._send = send
        self._start: Message = {}
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        if 200 <= self._start["status"] < 300:
            await asyncio.to_thread(self._keep, self._start["status"])
        await self._send(self._start)
        await self._send({**message, "body": self._body})

    def _keep(self, status: int) -> None:
        answer = StoredAnswer(status, _SECRET.sub(b"null", self._body))
        with self._engine.begin() as connection:
            keep_answer(connection, self._claim, answer)


def _once(whole: Message, receive: Receive) -> Receive:
    messages = [whole]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
