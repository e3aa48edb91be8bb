"""`Idempotency-Key` on what creates a file or a batch: of all requests of a project under one key one creates
something, and the others get its answer. Both are in one transaction, so an answer cannot be lost.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeVar

import orjson
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from billing.batch.refusals import KeyInUse, KeyReused, Refused
from billing.batch.service import Service
from billing.idempotency import (
    PARAM,
    IdempotencyClaim,
    StoredAnswer,
    carry_out,
    find_answer,
    keep_answer,
)
from billing.refusals import Conflict, Invalid
from billing.wire.batch_caller import BatchCaller

T = TypeVar("T")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


class Once:
    """One request that creates something. What makes it what it is goes through `tell` or `told` first."""

    def __init__(self, request: Request, service: Service, caller: BatchCaller) -> None:
        """Raises Refused for a key that is none."""
        self._service = service
        self._caller = f"tenant:{caller.tenant}/{caller.project}"
        keys = request.headers.getlist(PARAM)
        if keys and (len(keys) > 1 or _KEY.fullmatch(keys[0]) is None):
            raise Refused(f"{PARAM} is 1 to 255 visible ASCII characters, given once.", PARAM)
        self._key = keys[0] if keys else None
        self._digest = hashlib.sha256(request.url.path.encode())

    def tell(self, part: bytes) -> None:
        """A part of the request, whose length is a part, too."""
        if self._key is not None:
            self._digest.update(len(part).to_bytes(8, "big") + part)

    async def told(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The pieces of a body, as they come."""
        async for piece in pieces:
            if self._key is not None:
                self._digest.update(piece)
            yield piece

    async def answer(self) -> JSONResponse | None:
        """The answer of the first request under the key; None if this is the first. Raises KeyReused,
        KeyInUse.
        """
        claim = self._claim()
        if claim is None:
            return None

        def find() -> StoredAnswer | None:
            with self._service.engine.connect() as connection:
                return find_answer(connection, claim)

        found = await run_in_threadpool(_translated, find)
        if found is None:
            return None
        return JSONResponse(orjson.loads(found.body), found.status, {"idempotent-replayed": "true"})

    def create(self, connection: Connection, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Make it in this transaction, and keep the answer. Raises KeyInUse."""
        claim = self._claim()
        if claim is None:
            return make()
        _translated(lambda: carry_out(connection, claim))
        made = make()
        keep_answer(connection, claim, StoredAnswer(200, orjson.dumps(made)))
        return made

    def _claim(self) -> IdempotencyClaim | None:
        if self._key is None:
            return None
        return IdempotencyClaim.of(self._caller, self._key, self._digest.digest())


def _translated(ask: Callable[[], T]) -> T:
    try:
        return ask()
    except Invalid as exc:
        raise KeyReused(exc.message, PARAM, exc.code) from exc
    except Conflict as exc:
        raise KeyInUse(exc.message, PARAM, exc.code) from exc
