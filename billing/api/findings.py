"""Routes of findings: what audits found, who looks at it, and what came of it."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field, model_validator

from billing.accounts import audit_log
from billing.api.answer import Listing
from billing.api.control import Control
from billing.api.fields import Body, IdPath
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.api.usage_answers import FindingRowAnswer
from billing.audit import finding_rows
from billing.audit.finding_rows import State
from billing.findings import FindingKind

router = APIRouter(prefix="/admin/v1/findings", tags=["findings"], dependencies=[KNOWN_QUERY])

Said = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]


class FindingChange(Body):
    """`owner`: who looks at it. `resolve`: why it needs nobody any more. One of them at least."""

    owner: Said | None = None
    resolve: Said | None = None

    @model_validator(mode="after")
    def _something(self) -> "FindingChange":
        if self.owner is None and self.resolve is None:
            raise ValueError("give `owner` or `resolve`")
        return self


@router.get("", response_model=Listing[FindingRowAnswer], response_model_exclude_unset=True)
def list_all(
    control: Control,
    page: PageQuery,
    state: State | None = None,
    kind: FindingKind | None = None,
    gone: Annotated[bool, Query(description="Also those that no audit sees any more.")] = False,
) -> dict[str, Any]:
    """What audits found, newest first."""
    with control.reading() as connection:
        return listing(finding_rows.list_page(connection, page, state=state, kind=kind, gone=gone), asdict)


@router.patch("/{finding_id}", response_model=FindingRowAnswer, response_model_exclude_unset=True)
def change(finding_id: IdPath, body: FindingChange, control: Control, response: Response) -> dict[str, Any]:
    """Give a finding an owner, or resolve it. 409 for one that is gone. A resolved one is opened again if
    there is more of it.
    """
    with control.changing(response) as connection:
        row = finding_rows.change(connection, finding_id, owner=body.owner, resolve=body.resolve)
        said = {"state": row.state.value, "owner": row.owner, "reason": row.reason}
        audit_log.append(connection, "finding", finding_id, said, tenant_id=None)
    return asdict(row)
