"""Routes of what was used, and of the proof that it is all of it."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from billing import projects, tenants
from billing.api.control import Control
from billing.api.fields import Moment, TenantQuery
from billing.api.usage_answers import AuditAnswer, UsageAnswer
from billing.audit import Auditor
from billing.refusals import Invalid
from billing.usage_report import Dimension, parse_dimensions, report_usage

router = APIRouter(prefix="/admin/v1", tags=["usage"])


@router.get("/usage", response_model=UsageAnswer, response_model_exclude_unset=True)
def usage(
    control: Control,
    tenant: TenantQuery = None,
    by: Annotated[str, Query(max_length=200, description="Such as `model,hour`.")] = "",
    since: Annotated[Moment | None, Query(alias="from")] = None,
    until: Annotated[Moment | None, Query()] = None,
) -> dict[str, Any]:
    """Tokens and money of the requests that ended in [from, until), of one tenant or of all."""
    try:
        dimensions = parse_dimensions(by)
    except ValueError as exc:
        words = ", ".join(dimension.value for dimension in Dimension)
        raise Invalid(f"Usage is grouped by some of {words}, each once, with commas between.", param="by") from exc
    with control.reading() as connection:
        found = None if tenant is None else tenants.find(connection, tenant)
        tenant_id = None if found is None else found.tenant_id
        report = report_usage(connection, tenant=tenant_id, by=dimensions, from_ms=since, until_ms=until).to_json()
        if Dimension.TENANT in dimensions:
            names = tenants.names(connection, [line["tenant"] for line in report["lines"]])
            report["lines"] = [line | {"tenant_name": names.get(line["tenant"])} for line in report["lines"]]
        if Dimension.PROJECT in dimensions:
            project_names = projects.names(connection, [line["project"] for line in report["lines"]])
            report["lines"] = [line | {"project_name": project_names.get(line["project"])} for line in report["lines"]]
    return report | {"tenant_name": None if found is None else found.name}


@router.get("/audit", response_model=AuditAnswer, response_model_exclude_unset=True)
def audit(request: Request) -> dict[str, Any]:
    """Per instance: what its engine counted, what is billed, absorbed and open, and what is left over."""
    auditor: Auditor = request.app.state.auditor
    return auditor.audit().to_json()
