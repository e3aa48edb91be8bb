"""The route of the audit log."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from billing.accounts import audit_log
from billing.accounts.audit_log import Entry, Wanted
from billing.accounts.roles import OF_TENANT
from billing.api.answer import Answer, Listing, Ms
from billing.api.control import Control
from billing.api.fields import Moment, TenantQuery
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY

router = APIRouter(prefix="/admin/v1", tags=["audit_log"], dependencies=[KNOWN_QUERY])

Word = Annotated[str | None, Query(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]


class AuditEntry(Answer):
    """One changed row. `actor`: the id of an admin key, `root`, or who changed the database beside this API.
    `action`: the route. `kind` and `subject`: what was changed. `before` and `after`: what of it differs;
    null: it was not there, or is gone. `hash` is made of all of it and of `previous`, the hash of the entry
    before.
    """

    entry: int
    at_ms: Ms
    actor: str
    role: str | None
    action: str | None
    request_id: str | None
    why: str | None
    kind: str
    subject: str
    tenant: str | None
    before: dict[str, Any] | None = Field(json_schema_extra={"additionalProperties": {}})
    after: dict[str, Any] | None = Field(json_schema_extra={"additionalProperties": {}})
    previous: str
    hash: str


@router.get("/audit-log", response_model=Listing[AuditEntry])
def list_all(
    control: Control,
    asked: PageQuery,
    tenant: TenantQuery = None,
    actor: Word = None,
    action: Annotated[Word, Query(description="A part of it, in any case: `/keys`, `DELETE`.")] = None,
    kind: Word = None,
    subject: Word = None,
    since: Annotated[Moment | None, Query(alias="from")] = None,
    until: Moment | None = None,
) -> dict[str, Any]:
    """What was changed, the newest first: of a tenant, by somebody, by a route, in [from, until). A tenant's
    own admin does not see the reasons of others.
    """
    with control.reading() as connection:
        wanted = Wanted(
            tenant_id=control.tenant_asked(connection, tenant), actor=actor, action=action, kind=kind,
            subject=subject, since_ms=since, until_ms=until,
        )  # fmt: skip
        found = audit_log.list_page(connection, asked, wanted)
    return listing(found, lambda entry: _shown(entry, inside=control.tenant_id is not None))


def _shown(entry: Entry, *, inside: bool) -> dict[str, Any]:
    shown = asdict(entry)
    shown["tenant"] = shown.pop("tenant_id")
    if inside and entry.role not in OF_TENANT:
        shown["why"] = None
    return shown
