"""What the routes work with: the database, Redis, and the rule that a change is sent to Redis right after its
commit.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import httpx
import redis
from fastapi import Depends, Request, Response
from sqlalchemy import Connection, Engine

from billing.accounts import admin_keys, audit_log
from billing.accounts.audit_log import Act
from billing.accounts.roles import NOBODY, Caller
from billing.catalogue import api_keys, tenants
from billing.catalogue.projection import Projector
from billing.catalogue.tenants import Tenant
from billing.idempotency import IdempotencyClaim, carry_out
from billing.refusals import Invalid

# `now`: the change is in Redis. `pending`: it is saved, and is written to Redis when that is back.
EFFECT_HEADER: Final = "x-taas-effect"
# The name under which a request's state holds its claim.
CLAIM: Final = "claim"
# Why a change is made, for the audit log.
REASON_HEADER: Final = "X-Reason"
REASON_CHARS_MAX: Final = 500
_SECRET: Final = re.compile(f"{admin_keys.SECRET_FORM}|{api_keys.SECRET_FORM}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """One per app; many threads use it."""

    engine: Engine
    redis: redis.Redis
    projector: Projector
    http: httpx.Client
    evidence_key_file: Path | None = None
    issuer: str = ""
    invoice_font_file: Path | None = None
    retention_days: int | None = None
    # Of this request: its `Idempotency-Key`, if it has one, who asks, and how a change is logged.
    claim: IdempotencyClaim | None = None
    caller: Caller = NOBODY
    act: Act | None = None

    @property
    def tenant_id(self) -> str | None:
        """The only tenant whose things the caller sees; None: it sees all."""
        return self.caller.tenant_id

    def tenant_named(self, connection: Connection, tenant: str) -> Tenant:
        """By id or name. Raises NotFound, also for one that the caller does not see."""
        return tenants.find(connection, tenant, only=self.tenant_id)

    def tenant_asked(self, connection: Connection, tenant: str | None) -> str | None:
        """The id of the tenant to which a list is limited, by its query or by its caller. Raises NotFound."""
        return self.tenant_id if tenant is None else self.tenant_named(connection, tenant).tenant_id

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
            if self.act is not None:
                audit_log.sign(connection, self.act)
            yield connection
        response.headers[EFFECT_HEADER] = "now" if self.projector.deliver() else "pending"


def _control(request: Request) -> ControlPlane:
    control: ControlPlane = request.app.state.control
    state = request.scope["state"]
    caller: Caller = state["caller"]
    act = None
    if request.method != "GET":
        act = Act(
            actor=caller.actor,
            role=caller.role,
            action=str(state["entry"]).replace(":path}", "}"),
            request_id=state["request_id"],
            why=_reason(request.headers),
        )
    return replace(control, claim=state.get(CLAIM), caller=caller, act=act)


def _reason(headers: Mapping[str, str]) -> str | None:
    """As UTF-8, which HTTP's headers are not by themselves. Raises Invalid."""
    given = headers.get(REASON_HEADER)
    if given is None:
        return None
    try:
        said = given.encode("latin-1").decode()
    except UnicodeDecodeError as exc:
        raise Invalid(f"{REASON_HEADER} is text in UTF-8.", param=REASON_HEADER) from exc
    if not 0 < len(said) <= REASON_CHARS_MAX or not said.isprintable():
        message = f"{REASON_HEADER} is one line of at most {REASON_CHARS_MAX} characters."
        raise Invalid(message, param=REASON_HEADER)
    if _SECRET.search(said):
        raise Invalid("A reason is kept and shown: no key must be in it.", param=REASON_HEADER)
    return said


Control = Annotated[ControlPlane, Depends(_control)]
