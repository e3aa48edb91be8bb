"""The route of the evidence: what came of contracts, minute by minute. The gateway calls it on behalf of
tenants.
"""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from billing.accounts.roles import Role
from billing.allocator import capacity_usage
from billing.allocator.capacity_usage import Figures
from billing.api.capacity_answers import CapacityAnswer
from billing.api.control import Control
from billing.api.fields import MS_MAX, Moment, Name, TenantQuery
from billing.api.query import KNOWN_QUERY
from billing.catalogue import tenants
from billing.contracts import store
from billing.contracts.position import units
from billing.moments import MINUTE_MS, utc
from billing.refusals import Invalid

router = APIRouter(prefix="/admin/v1", tags=["capacity"], dependencies=[KNOWN_QUERY])

_HOUR_MS: Final = 60 * MINUTE_MS
# A week of one contract.
_MINUTES_MAX: Final = 7 * 24 * 60


@router.get("/capacity", response_model=CapacityAnswer)
def capacity(
    control: Control,
    tenant: TenantQuery = None,
    contract: Annotated[Name | None, Query()] = None,
    since: Annotated[Moment | None, Query(alias="from")] = None,
    until: Annotated[Moment | None, Query()] = None,
) -> dict[str, Any]:
    """The evidence per contract and minute that began in [from, until): assigned, used, lent, borrowed,
    refused, shortfall, and the part of it that was missing; and the sums. Work is in units. `until` is now
    and `from` is an hour before it, unless given. With `tenant`, only of that tenant.
    """
    if tenant is None and control.caller.role is Role.SERVICE:
        raise Invalid("Say whose capacity it is: the service key reads no others.", param="tenant")
    with control.reading() as connection:
        tenant_id = None if tenant is None else tenants.find(connection, tenant).tenant_id
        if contract is not None:
            store.find(connection, contract, tenant_id=tenant_id)
        until_ms = min(store.now_ms(connection) + 1 if until is None else until, MS_MAX)
        # Including the current minute.
        from_ms = max(0, until_ms - _HOUR_MS - until_ms % MINUTE_MS) if since is None else since
        if until_ms <= from_ms:
            raise Invalid(
                f"It would end at {utc(until_ms)}, and begin only at {utc(from_ms)}.", param="until"
            )
        among: dict[str, Any] = {
            "tenant_id": tenant_id,
            "contract_id": contract,
            "from_ms": from_ms,
            "until_ms": until_ms,
        }
        found = capacity_usage.list_minutes(connection, **among, most=_MINUTES_MAX)
        if len(found) > _MINUTES_MAX:
            raise Invalid(
                f"That is more than {_MINUTES_MAX} minutes, a week of one contract; ask for less at once.",
                param="from",
            )
        sums = capacity_usage.sum_minutes(connection, **among)
        names = tenants.names(connection, {each.tenant_id for each in sums})
    return {
        "from": utc(from_ms),
        "until": utc(until_ms),
        "data": [_shown(each, names) for each in found],
        "total": [_shown(each, names) for each in sums],
    }


def _shown(figures: Figures, names: dict[str, str]) -> dict[str, Any]:
    owner = {
        "contract": figures.contract_id,
        "tenant": figures.tenant_id,
        "tenant_name": names.get(figures.tenant_id),
        "pool": figures.pool,
    }
    work = {
        "assigned": units(figures.assigned_mu),
        "used": units(figures.used_mu),
        "lent": units(figures.lent_mu),
        "borrowed": units(figures.borrowed_mu),
        "refused": figures.refused,
        "limited": {
            "requests": figures.limited_requests,
            "concurrency": figures.limited_concurrency,
            "cancels": figures.limited_cancels,
        },
        "shortfall": units(figures.shortfall_mu),
        "missing": units(figures.missing_mu),
    }
    minute = {} if figures.minute_ms is None else {"minute": utc(figures.minute_ms)}
    return {**owner, **minute, **work}
