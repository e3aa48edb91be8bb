"""Routes of machines: what those of a pool cost, draw and are for, from a moment on."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from billing.api.amounts import Amount
from billing.api.answer import Listing
from billing.api.contract_shapes import part, thousandths
from billing.api.control import Control
from billing.api.economics_answers import MachineTermsAnswer
from billing.api.fields import Body, Moment, Name
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.catalogue import pools
from billing.catalogue.money import Money
from billing.contracts.position import units
from billing.contracts.store import now_ms
from billing.economics import machines
from billing.economics.machines import MachineTerms
from billing.moments import utc
from billing.reclaims.store import Use

router = APIRouter(prefix="/admin/v1/machines", tags=["machines"], dependencies=[KNOWN_QUERY])

_KW_MAX: Final = 10**6
_OVERHEAD_MAX: Final = 10
_TEXT: Final = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]{1,3})?$", "maxLength": 24}


def _factor(permille: int) -> int:
    if not 1000 <= permille <= _OVERHEAD_MAX * 1000:
        raise ValueError(f"a factor from 1 to {_OVERHEAD_MAX}, such as 1.25")
    return permille


Kilowatts = Annotated[
    int,
    BeforeValidator(thousandths),
    Field(ge=0, le=_KW_MAX * 1000),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "maximum": _KW_MAX}, _TEXT]}),
]
Overhead = Annotated[
    int,
    BeforeValidator(thousandths),
    AfterValidator(_factor),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 1, "maximum": _OVERHEAD_MAX}, _TEXT]}),
]


class NewMachineTerms(Body):
    """From `from` (default: now) on, of each machine of the pool: what an hour costs, all in; the power that
    it draws, and the factor that its building adds (PUE); its GPUs; what it is for while no reclaim has it.
    What is not given stays.
    """

    pool: Name
    from_ms: Annotated[Moment | None, Field(alias="from")] = None
    usd_per_hour: Amount | None = None
    kw: Kilowatts | None = None
    overhead: Overhead | None = None
    gpus: Annotated[int | None, Field(ge=0, le=10**6)] = None
    use: Use | None = None


@router.post("", status_code=201, response_model=MachineTermsAnswer)
def create(body: NewMachineTerms, control: Control, response: Response) -> dict[str, Any]:
    """Append a version. Earlier ones stay; of two from the same moment the later one holds."""
    cost = None if body.usd_per_hour is None else Money.parse(body.usd_per_hour).picousd
    given = {
        "cost_picousd_hour": cost, "watts": body.kw, "overhead_permille": body.overhead, "gpus": body.gpus,
        "use": body.use,
    }  # fmt: skip
    with control.changing(response) as connection:
        from_ms = now_ms(connection) if body.from_ms is None else body.from_ms
        known = {name: value for name, value in given.items() if value is not None}
        return _shown(machines.add(connection, body.pool, from_ms, **known))


@router.get("", response_model=Listing[MachineTermsAnswer])
def list_all(
    control: Control, asked: PageQuery, pool: Annotated[Name | None, Query()] = None
) -> dict[str, Any]:
    """All versions by pool and moment, past and future ones."""
    with control.reading() as connection:
        pools.require_named(connection, pool)
        return listing(machines.list_page(connection, asked, pool), _shown)


def _shown(terms: MachineTerms) -> dict[str, Any]:
    cost = terms.cost_picousd_hour
    return {
        "entry": terms.entry,
        "pool": terms.pool,
        "from": utc(terms.from_ms),
        "usd_per_hour": None if cost is None else str(Money(cost)),
        "kw": None if terms.watts is None else units(terms.watts),
        "overhead": part(terms.overhead_permille),
        "gpus": terms.gpus,
        "use": terms.use,
        "created": utc(terms.created_ms),
    }
