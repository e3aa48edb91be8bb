"""Routes of usage, and of the audit that proves it complete."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request

from billing.api.answer import Listing
from billing.api.control import Control
from billing.api.fields import Moment, Name, TenantQuery
from billing.api.paging import After, PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.api.usage_answers import AuditAnswer, EngineBalance, UsageAnswer
from billing.audit import balance_rows
from billing.audit.balance_rows import BalanceRow
from billing.audit.run import Auditor, Facts
from billing.catalogue import projects, tenants
from billing.contracts.store import now_ms
from billing.findings import pair_json
from billing.ledger.usage_report import UsageLine, parse_dimensions, report_usage
from billing.moments import MINUTE_MS, month_begins_ms
from billing.page import Order, PageRequest, page_of
from billing.refusals import Invalid
from billing.wire.dimensions import Dimension

router = APIRouter(prefix="/admin/v1", tags=["usage"], dependencies=[KNOWN_QUERY])

# Each page computes the whole period again, so pages are longer than those of other lists.
_LINES_DEFAULT: Final = 1_000
_LINES_MAX: Final = 10_000
# Of a group's figures: not for tenants.
_COSTS: Final = ("uncosted", "untold", "cost", "cost_makers", "margin")


@router.get("/usage", response_model=UsageAnswer, response_model_exclude_unset=True)
def usage(
    control: Control,
    tenant: TenantQuery = None,
    by: Annotated[str, Query(max_length=200, description="Such as `model,hour`.")] = "",
    since: Annotated[
        Moment | None,
        Query(
            alias="from",
            description="Default: the start of the month, in UTC, of `until`. 0: from the beginning.",
        ),
    ] = None,
    until: Annotated[
        Moment | None, Query(description="Default: now, and whatever has ended by then.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=_LINES_MAX, description="At most so many lines.")] = _LINES_DEFAULT,
    after: After = None,
) -> dict[str, Any]:
    """Tokens and money of the requests that ended in [from, until), of one tenant or of all. `lines` come
    by pages. A tenant's key sees that tenant, and nothing of what providers charge and makers get.
    """
    try:
        dimensions = parse_dimensions(by)
    except ValueError as exc:
        words = ", ".join(dimension.value for dimension in Dimension)
        raise Invalid(
            f"Usage is grouped by some of {words}, each once, with commas between.", param="by"
        ) from exc
    with control.reading() as connection:
        asked = tenant or control.tenant_id
        named = None if asked is None else control.tenant_named(connection, asked)
        tenant_id = None if named is None else named.tenant_id
        until_ms = now_ms(connection) if until is None else until
        from_ms = _month_ms(until_ms) if since is None else since
        if from_ms > until_ms:
            raise Invalid("The period begins after it ends.", param="from")
        found = report_usage(connection, tenant=tenant_id, by=dimensions, from_ms=from_ms, until_ms=until)
        page = page_of(found.lines, _by(dimensions), PageRequest(limit, after))
        report = replace(found, lines=tuple(page.rows)).to_json()
        if Dimension.TENANT in dimensions:
            names = tenants.names(connection, [line["tenant"] for line in report["lines"]])
            report["lines"] = [line | {"tenant_name": names.get(line["tenant"])} for line in report["lines"]]
        if Dimension.PROJECT in dimensions:
            project_names = projects.names(connection, [line["project"] for line in report["lines"]])
            report["lines"] = [
                line | {"project_name": project_names.get(line["project"])} for line in report["lines"]
            ]
    if control.tenant_id is not None:
        del report["cost_items"]
        for shown in (report["total"], *report["lines"]):
            for name in _COSTS:
                del shown[name]
    return report | {"tenant_name": None if named is None else named.name, "next": page.next}


def _by(dimensions: tuple[Dimension, ...]) -> Order[UsageLine]:
    """Lines in the order of their groups."""
    name = "usage:" + ",".join(dimensions)
    return Order(name, lambda line: tuple(line.group.values()), (str,) * len(dimensions))


def _month_ms(moment_ms: int) -> int:
    """The start of the month of this moment, in UTC."""
    moment = datetime.fromtimestamp(moment_ms // 1000, UTC)
    return month_begins_ms(moment.year, moment.month)


@router.get("/reconciliation", response_model=Listing[EngineBalance])
def reconciliation(
    control: Control,
    asked: PageQuery,
    instance: Annotated[Name | None, Query(description="Of this one only.")] = None,
    since: Annotated[Moment | None, Query(alias="from")] = None,
    until: Moment | None = None,
    residual: Annotated[bool, Query(description="Only those with a residual.")] = False,
) -> dict[str, Any]:
    """The balance of each engine by minute, the newest first: in [from, until)."""
    with control.reading() as connection:
        page = balance_rows.list_page(
            connection, asked, instance=instance, from_ms=since, until_ms=until, residual=residual
        )
    return listing(page, _balance)


def _balance(row: BalanceRow) -> dict[str, Any]:
    sums = {
        "produced": row.produced, "billed": row.metered.billed, "absorbed": row.metered.absorbed,
        "open": row.metered.open, "residual": row.residual,
    }  # fmt: skip
    return {
        "instance": row.instance,
        "epoch": row.epoch,
        "from_ms": row.minute * MINUTE_MS,
        "until_ms": (row.until + 1) * MINUTE_MS,
        **{name: pair_json(pair) for name, pair in sums.items()},
        "added": {name: pair_json(pair) for name, pair in row.added.items()},
        "run": row.state.run,
        "counters": row.state.counters,
        "running": row.state.running,
        "waiting": row.state.waiting,
        "lag_ms": row.state.lag_ms,
    }


@router.get("/audit", response_model=AuditAnswer, response_model_exclude_unset=True)
def audit(
    request: Request,
    full: Annotated[bool, Query(description="Read back all that was ever recorded.")] = False,
) -> dict[str, Any]:
    """Per instance: what its engine counted, what is billed, absorbed and open, and the residual."""
    auditor: Auditor = request.app.state.auditor
    return auditor.audit(facts=Facts.ALL if full else Facts.SINCE_CHECKPOINT).to_json()
