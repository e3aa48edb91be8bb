"""Findings of audits that are not resolved when a period is closed, as its invoice lists them. It says what a
tenant may see of them: nothing of other tenants, and no names of machines.
"""

from typing import Any, Final

from sqlalchemy import Connection, func, select

from billing.findings import FindingKind
from billing.ledger.event_days import are_those, recorded
from billing.moments import HOUR_MS, MINUTE_MS
from billing.schema.findings import engine_balance, finding
from billing.schema.ledger import usage_event, usage_hour

_OPEN: Final = ("open", "acknowledged")
# What bears on recorded usage, in words for the one who pays. What is not here is told elsewhere
# (`not_billed`), or no matter of an invoice.
_WHAT: Final = {
    FindingKind.RESIDUAL: "an engine counted other tokens than are billed, absorbed and open",
    FindingKind.REQUEST_UNKNOWN: "an engine counted tokens of requests that are not recorded",
    FindingKind.REQUEST_DIFFERS: "an engine counted other tokens for requests than are recorded",
    FindingKind.COUNTER_LOST: "an engine ended before its last counters were read",
    FindingKind.UNREACHABLE: "an engine did not tell its counters",
    FindingKind.UNREADABLE: "what an engine or a request in flight said could not be read",
    FindingKind.USAGE_REJECTED: "usage that could not be read was set aside; nobody is billed for it",
    FindingKind.USAGE_CONFLICT: "requests were recorded a second time with other figures; the first count",
    FindingKind.LEDGER_UNBALANCED: "entries of the ledger do not sum to zero",
    FindingKind.LEDGER_INCOMPLETE: "requests have no entry in the ledger",
    FindingKind.LEDGER_MISPRICED: "amounts of requests are not their tokens at their price",
    FindingKind.TOTALS_DIFFER: "sums of usage are not those of the requests",
    FindingKind.CHAIN_BROKEN: "the chain of recorded usage is not as it was written",
    FindingKind.INVOICE_DIFFERS: "invoices are not as they were issued",
    FindingKind.AUDIT_LOG_DIFFERS: "the log of changes is not as it was written",
    FindingKind.CLOCKS_DIFFER: "clocks of the system differ",
}


def open_findings(connection: Connection, tenant_id: str, from_ms: int, until_ms: int) -> dict[str, Any]:
    """As the document has them: `audited_ms`, up to when counters of engines were compared (None: never), and
    `findings`, oldest first. One of an engine is there if the tenant used that in the period; `requests` are
    those of the tenant, of the examples that the finding names.
    """
    of = finding.c
    query = (
        select(of.finding_id, of.kind, of.state, of.said, of.opened_ms)
        .where(of.gone_ms.is_(None), of.state.in_(_OPEN), of.kind.in_([kind.value for kind in _WHAT]))
        .order_by(of.opened_ms, of.finding_id)
    )
    used = _used(connection, tenant_id, from_ms, until_ms)
    rows = [row for row in connection.execute(query) if row.said.get("instance") in (None, *used)]
    own = _own(connection, tenant_id, {name for row in rows for name in row.said.get("ids", ())})
    audited = connection.execute(select(func.max(engine_balance.c.until))).scalar_one()
    return {
        "audited_ms": None if audited is None else (int(audited) + 1) * MINUTE_MS,
        "findings": [
            {
                "finding": row.finding_id, "kind": row.kind, "what": _WHAT[FindingKind(row.kind)],
                "state": row.state, "since_ms": row.opened_ms,
                "requests": sorted(own.intersection(row.said.get("ids", ()))),
            }
            for row in rows
        ],
    }  # fmt: skip


def _used(connection: Connection, tenant_id: str, from_ms: int, until_ms: int) -> set[str]:
    """The instances that the tenant used in these hours."""
    of = usage_hour.c
    query = select(of.instance).distinct()
    query = query.where(of.tenant == tenant_id, of.hour >= from_ms // HOUR_MS, of.hour * HOUR_MS < until_ms)
    return set(connection.execute(query).scalars())


def _own(connection: Connection, tenant_id: str, ids: set[str]) -> set[str]:
    of = usage_event.c
    query = select(of.request_id).where(are_those(recorded(connection, ids)), of.tenant == tenant_id)
    return set(connection.execute(query).scalars()) if ids else set()
