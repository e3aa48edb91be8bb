"""Routes of reclaims: taking machines of a pool for another use, and giving them back."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy import Connection

from billing.api.answer import Listing
from billing.api.contract_shapes import UnitsPerSecond, moment, shown_span
from billing.api.control import Control
from billing.api.economics_ahead import reclaim_money
from billing.api.fields import Body, IdPath, Label, Moment, Name
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.api.reclaim_answers import ReclaimAnswer, ReclaimOrdered, ReclaimPreview, ReclaimShown
from billing.catalogue import pools, tenants
from billing.contracts.position import Holding, units
from billing.contracts.store import now_ms
from billing.contracts.terms import rate_at
from billing.contracts.timeline import FOREVER_MS, Span
from billing.moments import utc
from billing.reclaims import orders, store
from billing.reclaims.cuts import Cut
from billing.reclaims.occupancy import OccupiedInstance, RunningRequest
from billing.reclaims.plan import ReclaimOrder, ReclaimPlan, RemainingCapacity
from billing.reclaims.store import Reclaim, State, Use

router = APIRouter(prefix="/admin/v1/reclaims", tags=["reclaims"], dependencies=[KNOWN_QUERY])

# A plan lists at most this many open requests and steps of remaining capacity; its counts include all of
# them.
_SHOWN_MAX: Final = 500
_CHOSEN_MAX: Final = 10_000


class ShownSpan(Body):
    """One entry of a plan's `broken`."""

    from_ms: Annotated[Moment, Field(alias="from")]
    until: Moment | None
    units: UnitsPerSecond


class NewReclaim(Body):
    """Takes `instances` machines of a pool for another use, from `by` on (default: now). `break`: even if it
    breaks signed contracts. `dry_run`: only show what it would do, in `refusal` why it would be refused, and
    in `money` what it costs. `chosen`, `broken`: the leaving instances and the broken contracts of a plan
    that was shown; if they have changed, the answer is 409 `plan_changed`. Without them the current plan is
    carried out.
    """

    pool: Name
    instances: int = Field(ge=1, le=1_000_000)
    use: Use
    by: Moment | None = None
    breaks: Annotated[bool, Field(alias="break")] = False
    dry_run: bool = False
    chosen: Annotated[tuple[Label, ...] | None, Field(max_length=_CHOSEN_MAX, strict=False)] = None
    broken: Annotated[tuple[ShownSpan, ...] | None, Field(max_length=_CHOSEN_MAX, strict=False)] = None


@router.post("", status_code=201, response_model=ReclaimOrdered, responses={200: {"model": ReclaimPreview}})
def create(body: NewReclaim, control: Control, response: Response) -> dict[str, Any] | JSONResponse:
    """Take machines, or show what that would do. It is refused, and changes nothing, if it would break what
    is signed or is not what was shown.
    """
    if body.dry_run:
        with control.reading() as connection:
            at_ms = now_ms(connection)
            planned = orders.plan(connection, control.redis, _order(body, at_ms), at_ms)
            preview = ReclaimPreview.model_validate(
                {
                    "reclaim": None,
                    "plan": _shown_plan(connection, planned),
                    "money": reclaim_money(connection, planned.order, at_ms),
                }
            )
        return JSONResponse(preview.model_dump(mode="json", by_alias=True))
    with control.changing(response) as connection:
        at_ms = now_ms(connection)
        made, planned = orders.order(connection, control.redis, _order(body, at_ms), at_ms)
        return {**_shown(made), "plan": _shown_plan(connection, planned)}


@router.get("", response_model=Listing[ReclaimAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    pool: Annotated[Name | None, Query(description="Of this pool only.")] = None,
    state: Annotated[State | None, Query()] = None,
) -> dict[str, Any]:
    """Reclaims, by deadline; of a pool, in a state."""
    with control.reading() as connection:
        pools.require_named(connection, pool)
        return listing(store.list_page(connection, asked, pool=pool, state=state), _shown)


@router.get("/{reclaim_id}", response_model=ReclaimShown)
def show(reclaim_id: IdPath, control: Control) -> dict[str, Any]:
    """One reclaim, with each step of it."""
    with control.reading() as connection:
        found = store.find(connection, reclaim_id)
        steps = store.history(connection, reclaim_id)
    history = [{"at": utc(each.at_ms), "change": each.change, "detail": each.detail} for each in steps]
    return {**_shown(found), "history": history}


@router.post("/{reclaim_id}/release", response_model=ReclaimAnswer)
def release(reclaim_id: IdPath, control: Control, response: Response) -> dict[str, Any]:
    """Give the machines back. A reclaim that has not begun is cancelled."""
    with control.changing(response) as connection:
        return _shown(orders.release(connection, control.redis, reclaim_id, now_ms(connection)))


@router.post("/{reclaim_id}/cancel", response_model=ReclaimAnswer)
def cancel(reclaim_id: IdPath, control: Control, response: Response) -> dict[str, Any]:
    """Cancel it before its deadline."""
    with control.changing(response) as connection:
        return _shown(orders.cancel(connection, control.redis, reclaim_id, now_ms(connection)))


def _order(body: NewReclaim, at_ms: int) -> ReclaimOrder:
    broken = None
    if body.broken is not None:
        broken = tuple(
            Span(each.from_ms, FOREVER_MS if each.until is None else each.until, each.units)
            for each in body.broken
        )
    by_ms = at_ms if body.by is None else body.by
    return ReclaimOrder(
        pool=body.pool,
        instances=body.instances,
        use=body.use,
        by_ms=by_ms,
        breaks=body.breaks,
        chosen=body.chosen,
        broken=broken,
    )


def _shown(reclaim: Reclaim) -> dict[str, Any]:
    return {
        "reclaim": reclaim.reclaim_id,
        "pool": reclaim.pool,
        "instances": reclaim.instances,
        "use": reclaim.use,
        "state": reclaim.state,
        "break": reclaim.breaks,
        "chosen": list(reclaim.chosen),
        "by": utc(reclaim.by_ms),
        "released": moment(reclaim.released_ms),
        "created": utc(reclaim.created_ms),
    }


def _shown_plan(connection: Connection, plan: ReclaimPlan) -> dict[str, Any]:
    order = plan.order
    wanted = {each.tenant_id for each in (*plan.holding, *plan.run_out)} | {
        each.tenant for each in plan.requests
    }
    names = tenants.names(connection, wanted)
    return {
        "pool": order.pool,
        "instances": order.instances,
        "use": order.use,
        "by": utc(order.by_ms),
        "break": order.breaks,
        "refusal": plan.refusal,
        "broken": [shown_span(span) for span in plan.broken],
        "drain_from": utc(plan.drain_from_ms),
        "drains_now": plan.drains_now,
        "leaving": [_shown_instance(each) for each in plan.leaving],
        "not_running": plan.not_running,
        "left": [_shown_left(each) for each in plan.left[:_SHOWN_MAX]],
        "contracts": [
            *(
                _shown_holding(each, names, order.by_ms, plan.cuts.get(each.contract_id))
                for each in plan.holding
            ),
            *(_shown_run_out(each, names) for each in plan.run_out),
        ],
        "others": {
            "units_before": units(plan.others_before_mu_s),
            "units_after": units(plan.others_after_mu_s),
        },
        "open": plan.open_by_class,
        "streams": [_shown_request(each, names, plan) for each in plan.requests[:_SHOWN_MAX]],
    }


def _shown_instance(occupied: OccupiedInstance) -> dict[str, Any]:
    return {
        "instance": occupied.instance,
        "ready": occupied.ready,
        "load": occupied.load,
        "open": occupied.by_class(),
    }


def _shown_left(left: RemainingCapacity) -> dict[str, Any]:
    return {
        "from": utc(left.from_ms),
        "until": moment(left.until_ms),
        "machines": left.machines,
        "capacity": units(left.capacity_mu_s),
        "reserved": units(left.reserved_mu_s),
        "free": units(left.free_mu_s),
        "short": units(left.short_mu_s),
    }


def _shown_holding(held: Holding, names: Mapping[str, str], by_ms: int, cut: Cut | None) -> dict[str, Any]:
    """`units` at the deadline, or at its start; of one that is cut, when that is worst, with what it is
    then left with.
    """
    signed_mu_s = rate_at(held.steps, max(by_ms, held.starts_ms)) if cut is None else cut.signed_mu_s
    return {
        **_shown_contract(held, names),
        "holds": cut is None,
        "units": units(signed_mu_s),
        "units_then": units(signed_mu_s if cut is None else cut.left_mu_s),
        "least_from": None if cut is None else utc(cut.from_ms),
    }


def _shown_run_out(held: Holding, names: Mapping[str, str]) -> dict[str, Any]:
    """`units`: its last."""
    last = units(rate_at(held.steps, held.ends_ms))
    gone = {"run_out": True, "holds": False, "units_then": "0", "least_from": None}
    return {**_shown_contract(held, names), **gone, "units": last}


def _shown_contract(held: Holding, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "contract": held.contract_id,
        "tenant": held.tenant_id,
        "tenant_name": names.get(held.tenant_id),
        "from": utc(held.starts_ms),
        "ends": utc(held.ends_ms),
        "run_out": False,
    }


def _shown_request(request: RunningRequest, names: Mapping[str, str], plan: ReclaimPlan) -> dict[str, Any]:
    """`resumes`: it is preempted and resumes on another instance; else it ends by `end_by`."""
    return {
        "request": request.request_id,
        "tenant": request.tenant,
        "tenant_name": names.get(request.tenant),
        "class": request.class_,
        "instance": request.instance,
        "started": utc(request.started_ms),
        "resumes": plan.resumes(request),
        "end_by": utc(plan.order.by_ms),
    }
