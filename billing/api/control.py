"""What the routes work with: the database, Redis, and the rule that a change is sent to Redis right after its
commit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import httpx
import redis
from fastapi import Depends, Request, Response
from sqlalchemy import Connection, Engine

from billing.catalogue.projection import Projector
from billing.idempotency import IdempotencyClaim, carry_out

# `now`: the change is in Redis. `pending`: it is saved, and is written to Redis when that is back.
EFFECT_HEADER: Final = "x-taas-effect"
# The name under which a request's state holds its claim.
CLAIM: Final = "claim"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """One per app; many threads use it."""

    engine: Engine
    redis: redis.Redis
    projector: Projector
    http: httpx.Client
    evidence_key_file: Path | None = None
    # The request, if it has an `Idempotency-Key`.
    claim: IdempotencyClaim | None = None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def changing(self, response: Response, *, dry_run: bool = False) -> Iterator[Connection]:
        """A transaction. Once it is committed the change is written to Redis, and the answer says whether
        that was possible. A dry run is rolled back.
        """
        if dry_run:
            with self.engine.connect() as connection:
                yield connection
            return
        with self.engine.begin() as connection:
            if self.claim is not None:
                carry_out(connection, self.claim)
            yield connection
        response.headers[EFFECT_HEADER] = "now" if self.projector.deliver() else "pending"


def _control(request: Request) -> ControlPlane:
    control: ControlPlane = request.app.state.control
    claim: IdempotencyClaim | None = request.scope["state"].get(CLAIM)
    return control if claim is None else replace(control, claim=claim)


Control = Annotated[ControlPlane, Depends(_control)]
