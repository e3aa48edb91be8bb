"""Limits of a tenant that could undercut its contract, because request and concurrency limits count reserved
requests, too. Texts for people, with both figures.
"""

from sqlalchemy import Connection

from billing.catalogue import limits, models
from billing.contracts.position import units
from billing.contracts.store import list_all
from billing.contracts.terms import Contract, rate_at
from billing.wire.limits import MINUTE_S, WHILE_OPEN, LimitKind, Limits

# Requests this small would be needed to use the contract up with; a limit that allows them does not undercut
# it.
_UNITS_A_REQUEST_MIN_MU = 100_000
_UNITS_A_STREAM_MIN_MU_S = 1_000


def undercutting(connection: Connection, contract: Contract, now_ms: int) -> list[str]:
    """The warnings for an operator who signs, amends, or sets a limit, for each model of the contract's pool;
    none if no limit is below its greatest rate from now on.
    """
    steps = contract.terms.steps
    mu_s = max([rate_at(steps, now_ms)] + [step.mu_s for step in steps if step.from_ms > now_ms])
    tenant_id, pool = contract.terms.tenant_id, contract.terms.pool
    table = limits.table_of(connection, {tenant_id})
    said = []
    for model in models.list_all(connection):
        if model.pool == pool and model.status == "active":
            said += _of_model(model.name, table.for_model(tenant_id, None, model.name), mu_s)
    return said


def undercut_by_limits(connection: Connection, tenant_id: str, now_ms: int) -> list[str]:
    """The same for all contracts of the tenant."""
    signed = list_all(
        connection, tenant_id=tenant_id, states=("signed", "active", "notice_given"), ends_after_ms=now_ms
    )
    return [
        f"{contract.contract_id}: {line}"
        for contract in signed
        for line in undercutting(connection, contract, now_ms)
    ]


def _of_model(model: str, limits_: Limits, mu_s: int) -> list[str]:
    said = []
    rate = f"{units(mu_s)} units a second"
    requests = limits_.amount(LimitKind.REQUESTS, MINUTE_S)
    concurrency = limits_.amount(LimitKind.CONCURRENCY, WHILE_OPEN)
    if requests == 0 or (requests is not None and mu_s * 60 > requests * _UNITS_A_REQUEST_MIN_MU):
        least = (
            "none is served"
            if not requests
            else f"each must take {mu_s * 60 // requests // 1000} units on average to use it up"
        )
        said.append(f"{model} is limited to {_requests(requests)} a minute beside {rate}: {least}")
    if concurrency == 0 or (concurrency is not None and mu_s > concurrency * _UNITS_A_STREAM_MIN_MU_S):
        least = (
            "none is served"
            if not concurrency
            else f"each must do {mu_s // concurrency // 1000} units a second on average to use it up"
        )
        said.append(f"{model} is limited to {_requests(concurrency)} at once beside {rate}: {least}")
    return said


def _requests(count: int | None) -> str:
    return "1 request" if count == 1 else f"{count} requests"
