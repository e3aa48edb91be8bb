"""Routes of economics to come: what is expected, what would be otherwise, and what can be taken back."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from pydantic import BeforeValidator, Field, WithJsonSchema
from sqlalchemy import Connection

from billing.api.contract_shapes import thousandths
from billing.api.control import Control
from billing.api.economics_answers import EconomicPlan, WhatIfAnswer
from billing.api.fields import Body, Label, Moment, Name
from billing.api.query import KNOWN_QUERY
from billing.catalogue import pools, tenants
from billing.contracts import store
from billing.contracts.terms import Contract, end_by_notice
from billing.contracts.timeline import FOREVER_MS
from billing.economics.expected import Demand, PoolOutlook
from billing.economics.figures import Figures
from billing.economics.lately import BASIS_DAYS, read_outlooks
from billing.economics.shown import shown, shown_difference, shown_hours, shown_loss, shown_usd
from billing.economics.takeback import TakeBack, assured, take_backs
from billing.economics.whatif import Changes, Ending, Move, Outcome, by, outcome
from billing.moments import utc
from billing.reclaims.outlook import quarter_of, quarter_starts
from billing.reclaims.plan import ReclaimOrder
from billing.reclaims.store import Use
from billing.refusals import Conflict, Invalid

router = APIRouter(prefix="/admin/v1/economics", tags=["economics"], dependencies=[KNOWN_QUERY])

QUARTERS: Final = 8
_QUARTERS_MAX: Final = 40
_BASIS_DAYS_MAX: Final = 366
_CHANGES_MAX: Final = 1000
_TEXT: Final = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,3})?$", "maxLength": 24}
# In permille.
Change = Annotated[
    int,
    BeforeValidator(thousandths),
    Field(ge=-1000, le=100_000),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": -1, "maximum": 100}, _TEXT]}),
]
Whole = Annotated[
    int,
    BeforeValidator(thousandths),
    Field(ge=0, le=1000),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, _TEXT]}),
]
Quarters = Annotated[int, Field(ge=1, le=_QUARTERS_MAX)]
BasisDays = Annotated[int, Field(ge=1, le=_BASIS_DAYS_MAX)]


class MoveBody(Body):
    """So many machines of a pool get another use in [from, until) (default: from now on). `from_use`: those
    that a reclaim has for this use; null: those of the pool's own use. `to_use`: null: back to that.
    """

    pool: Name
    instances: Annotated[int, Field(ge=1, le=1_000_000)]
    from_use: Use | None = None
    to_use: Use | None = None
    from_ms: Annotated[Moment | None, Field(alias="from")] = None
    until: Moment | None = None


class NoticeBody(Body):
    """Notice of a contract by one side, at this moment (default: now)."""

    contract: Label
    by: Literal["tenant", "operator"]
    at: Moment | None = None


class WhatIf(Body):
    """What would be otherwise: prices and work by a part of what they are, such as -0.1; or the part of what
    the machines can do that is used; machines that move; contracts that get notice.
    """

    pool: Name | None = None
    quarters: Quarters = QUARTERS
    basis_days: BasisDays = BASIS_DAYS
    price_change: Change = 0
    work_change: Change = 0
    utilization: Whole | None = None
    moves: Annotated[tuple[MoveBody, ...], Field(max_length=_CHANGES_MAX, strict=False)] = ()
    notices: Annotated[tuple[NoticeBody, ...], Field(max_length=_CHANGES_MAX, strict=False)] = ()


@router.post("/what-if", response_model=WhatIfAnswer, response_model_exclude_unset=True)
def what_if(body: WhatIf, control: Control) -> dict[str, Any]:
    """What is expected of the quarters to come, this one included, as it is and with changes. It changes
    nothing. 409 `not_so_many`: there are no such machines to move.
    """
    with control.reading() as connection:
        pools.require_named(connection, body.pool)
        for move in body.moves:
            pools.find(connection, move.pool)
        at_ms = store.now_ms(connection)
        outlooks = read_outlooks(connection, at_ms, body.basis_days, body.pool)
        changes = _changes(connection, body, at_ms)
    edges = _edges(at_ms, body.quarters)
    before, after = outcome(outlooks, edges), outcome(outlooks, edges, changes)
    return {
        "from": utc(edges[0]),
        "until": utc(edges[-1]),
        "basis_days": body.basis_days,
        "currency": "USD",
        "by_quarter": _compared(before, after, "quarter"),
        "by_use": _compared(before, after, "use"),
        "total": _pair(Figures.total(before.values()), Figures.total(after.values())),
    }


@router.get("/plan", response_model=EconomicPlan, response_model_exclude_unset=True)
def plan(
    control: Control,
    pool: Annotated[Name | None, Query(description="Of this pool only.")] = None,
    quarters: Annotated[Quarters, Query()] = QUARTERS,
    basis_days: Annotated[BasisDays, Query()] = BASIS_DAYS,
) -> dict[str, Any]:
    """What is expected of the quarters to come, this one included; how many machines can be taken back at the
    start of each, without a notice and with notice given now, and for how much; and what contracts bring for
    sure.
    """
    with control.reading() as connection:
        pools.require_named(connection, pool)
        at_ms = store.now_ms(connection)
        outlooks = read_outlooks(connection, at_ms, basis_days, pool)
        signed = {
            name: store.list_all(connection, pool=name, states=store.BINDING, ends_after_ms=at_ms)
            for name in outlooks
        }
        names = tenants.names(connection, {each.terms.tenant_id for some in signed.values() for each in some})
    edges = _edges(at_ms, quarters)
    return {
        "from": utc(edges[0]),
        "until": utc(edges[-1]),
        "quarters": quarters,
        "basis_days": basis_days,
        "currency": "USD",
        "data": [
            _shown_pool(outlook, signed[name], edges, at_ms, names) for name, outlook in outlooks.items()
        ],
    }


def reclaim_money(connection: Connection, order: ReclaimOrder, at_ms: int) -> dict[str, Any]:
    """What a reclaim costs from its deadline on, over the quarters to come."""
    outlooks = read_outlooks(connection, at_ms, only=order.pool)
    edges = _edges(at_ms, QUARTERS)
    by_ms = max(order.by_ms, at_ms)
    move = Move(pool=order.pool, instances=order.instances, from_use=None, to_use=order.use, from_ms=by_ms)
    before, after = outcome(outlooks, edges), outcome(outlooks, edges, Changes(moves=(move,)))
    nothing = Figures()
    quarters, quarters_after = by(before, "quarter", "use"), by(after, "quarter", "use")
    contracts, contracts_after = by(before, "contract"), by(after, "contract")

    def moved(names: Iterable[tuple[str, ...]]) -> str | None:
        pairs = [
            (quarters.get(name, nothing).cost_machines, quarters_after.get(name, nothing).cost_machines)
            for name in names
        ]
        known = [(was or 0, now) for was, now in pairs if now is not None]
        return shown_usd(sum(now - was for was, now in known)) if known else None

    every = [quarter_of(edge) for edge in edges[:-1]]
    per_quarter, per_quarter_after = by(before, "quarter"), by(after, "quarter")
    return {
        "quarters": QUARTERS,
        "until": utc(edges[-1]),
        "basis_days": BASIS_DAYS,
        "cost_moved": moved((quarter, order.use) for quarter in every),
        **shown_loss(Figures.total(before.values()), Figures.total(after.values())),
        "by_quarter": [
            {"quarter": quarter, "cost_moved": moved([(quarter, order.use)])}
            | shown_loss(per_quarter.get((quarter,), nothing), per_quarter_after.get((quarter,), nothing))
            for quarter in every
        ],
        "contracts": [
            {"contract": name} | shown_loss(figures, contracts_after.get((name,), nothing))
            for (name,), figures in contracts.items()
            if name and figures != contracts_after.get((name,))
        ],
    }


def _edges(at_ms: int, quarters: int) -> list[int]:
    return [at_ms, *quarter_starts(at_ms, quarters)[1:]]


def _changes(connection: Connection, body: WhatIf, at_ms: int) -> Changes:
    if body.utilization is not None and body.work_change:
        raise Invalid("Either work_change or utilization.", param="utilization")
    moves = []
    for each in body.moves:
        if each.from_use == each.to_use:
            raise Invalid("They have that use already.", param="moves")
        from_ms = at_ms if each.from_ms is None else max(at_ms, each.from_ms)
        until_ms = FOREVER_MS if each.until is None else each.until
        if until_ms <= from_ms:
            raise Invalid("It ends before it begins.", param="moves")
        moves.append(
            Move(
                pool=each.pool,
                instances=each.instances,
                from_use=each.from_use,
                to_use=each.to_use,
                from_ms=from_ms,
                until_ms=until_ms,
            )
        )
    endings = []
    for notice in body.notices:
        contract = store.find(connection, notice.contract)
        if contract.state not in store.BINDING:
            raise Conflict(
                f"Contract {notice.contract} is {contract.state}.", param="notices", code="not_binding"
            )
        given_ms = at_ms if notice.at is None else max(at_ms, notice.at)
        ends_ms = end_by_notice(contract.terms, notice.by, given_ms)
        endings.append(Ending(contract=notice.contract, ends_ms=ends_ms))
    demand = Demand(
        price=1 + Fraction(body.price_change, 1000),
        work=1 + Fraction(body.work_change, 1000),
        utilization=None if body.utilization is None else Fraction(body.utilization, 1000),
    )
    return Changes(demand=demand, moves=tuple(moves), endings=tuple(endings))


def _compared(before: Outcome, after: Outcome, word: str) -> list[dict[str, Any]]:
    was, now = by(before, word), by(after, word)
    nothing = Figures()
    return [
        {word: name[0]} | _pair(was.get(name, nothing), now.get(name, nothing))
        for name in sorted(was.keys() | now.keys())
    ]


def _pair(before: Figures, after: Figures) -> dict[str, Any]:
    return {"before": shown(before), "after": shown(after), "difference": shown_difference(before, after)}


def _shown_pool(
    outlook: PoolOutlook, signed: Sequence[Contract], edges: Sequence[int], at_ms: int, names: Any
) -> dict[str, Any]:
    name = outlook.history.pool
    found = by(outcome({name: outlook}, edges), "quarter", "use")
    return {
        "pool": name,
        "machines": outlook.position.instances,
        "expected": [
            {"quarter": quarter, "use": use} | shown(figures)
            for (quarter, use), figures in sorted(found.items())
        ],
        "take_back": [
            {
                "quarter": quarter_of(without.from_ms),
                "from": utc(without.from_ms),
                "without_notice": _shown_take_back(without),
                "with_notice": _shown_take_back(with_notice),
            }
            for without, with_notice in take_backs(outlook, signed, edges, at_ms)
        ],
        "contracts": [_shown_assured(outlook, each, at_ms, names) for each in signed],
    }


def _shown_take_back(each: TakeBack) -> dict[str, Any]:
    return {
        "machines": each.machines,
        "notices": list(each.notices),
        "lost_revenue": shown_usd(each.lost),
        "cost_moved": shown_usd(each.cost),
    }


def _shown_assured(outlook: PoolOutlook, contract: Contract, at_ms: int, names: Any) -> dict[str, Any]:
    found = assured(outlook, contract, at_ms)
    return {
        "contract": contract.contract_id,
        "tenant": contract.terms.tenant_id,
        "tenant_name": names.get(contract.terms.tenant_id),
        "ends": utc(contract.effective_end_ms),
        "assured_until": utc(found.until_ms),
        "assured_unit_hours": shown_hours(found.capacity),
        "assured_revenue": shown_usd(found.revenue),
    }
