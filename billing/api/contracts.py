"""Routes of contracts."""

from collections.abc import Iterable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from pydantic import Field, WithJsonSchema
from sqlalchemy import Connection

from billing.api.answer import Listing
from billing.api.contract_answers import ContractAnswer, ContractHistory, ContractSigned, QuoteAnswer
from billing.api.contract_shapes import (
    Headroom,
    Part,
    Seconds,
    UnitsPerSecond,
    When,
    moment,
    resolved,
    shown,
    shown_entry,
    shown_span,
)
from billing.api.control import Control
from billing.api.fields import COUNT_MAX, Body, IdPath, Label, Moment, Name, TenantQuery
from billing.api.paging import PageQuery
from billing.api.query import KNOWN_QUERY
from billing.catalogue import models, pools, tenants
from billing.catalogue.models import Weights
from billing.contracts import lifecycle, store
from billing.contracts.clauses import ClauseChange
from billing.contracts.commitments import read_for_sale, require_calibration
from billing.contracts.for_sale import require_for_sale
from billing.contracts.limits_beside import undercutting
from billing.contracts.position import units
from billing.contracts.quote import Quote, quote
from billing.contracts.terms import (
    BURST_MS,
    NOTICE_DAYS_MAX,
    PAST_SLACK_MS,
    STEPS_MAX,
    Contract,
    Overflow,
    Side,
    State,
    Step,
    Terms,
    burst_mu,
    check_burst,
)
from billing.contracts.timeline import FOREVER_MS
from billing.invoices import prepaid
from billing.moments import utc
from billing.refusals import Invalid

router = APIRouter(prefix="/admin/v1/contracts", tags=["contracts"], dependencies=[KNOWN_QUERY])


# The rule is in `billing.contracts.terms`.
NoticeDays = Annotated[
    int,
    WithJsonSchema(
        {"type": "integer", "minimum": 0, "maximum": NOTICE_DAYS_MAX, "description": "Whole days."}
    ),
]


class RampStep(Body):
    """The rate from this moment on."""

    from_ms: Annotated[When, Field(alias="from")]
    units: UnitsPerSecond


Ramp = Annotated[tuple[RampStep, ...], Field(max_length=STEPS_MAX, strict=False)]


class NewContract(Body):
    """`units` is the rate from the start, which is now unless `from` says otherwise; `ramp` holds later
    steps. `burst_seconds`: how many seconds' worth of the rate may come at once, 1 (the default) to 60.
    Notice is in days, for both sides or for each. Notice may be given from `minimum_until` on, or from the
    start if that is missing or not after the start. Spans such as `+1y` count from the start. `draft`: only
    store it, do not sign it.
    """

    tenant: Name
    pool: Name
    units: UnitsPerSecond | None = None
    from_ms: Annotated[Moment | None, Field(alias="from")] = None
    until: When
    ramp: Ramp = ()
    minimum_until: When | None = None
    notice_days: NoticeDays | None = None
    tenant_notice_days: NoticeDays | None = None
    operator_notice_days: NoticeDays | None = None
    overflow: Overflow = "reject"
    spill_units: UnitsPerSecond | None = None
    burst_seconds: Seconds = Field(BURST_MS, json_schema_extra={"default": BURST_MS // 1000})
    headroom: Headroom = 0
    price_reference: Label | None = None
    draft: bool = False

    def terms(self, tenant_id: str, now_ms: int) -> Terms:
        """As the rules know them. Raises Invalid where a notice is missing."""
        starts_ms = now_ms if self.from_ms is None else self.from_ms
        minimum = self.minimum_until
        return Terms(
            tenant_id=tenant_id,
            pool=self.pool,
            steps=_steps(starts_ms, self.units, self.ramp),
            starts_ms=starts_ms,
            ends_ms=resolved(self.until, starts_ms, "until"),
            minimum_until_ms=starts_ms
            if minimum is None
            else max(starts_ms, resolved(minimum, starts_ms, "minimum_until")),
            tenant_notice_days=self._notice_days("tenant", self.tenant_notice_days),
            operator_notice_days=self._notice_days("operator", self.operator_notice_days),
            overflow=self.overflow,
            spill_mu_s=self.spill_units,
            headroom_permille=self.headroom,
            price_reference=self.price_reference,
            burst_ms=self.burst_seconds,
        )

    def _notice_days(self, side: Side, own: int | None) -> int:
        days = self.notice_days if own is None else own
        if days is None:
            raise Invalid(
                f"Within how many days may the {side} end it? Give notice_days.", param="notice_days"
            )
        return days


class Notice(Body):
    """Which side gives notice, as of now. `dry_run`: only show what it would do to the contract."""

    by: Side
    dry_run: bool = False


class Amendment(Body):
    """`units` is the rate from `from` on (default: now), `ramp` the later steps; together they replace all
    later steps. Overflow, its cap (null: no cap) and notice days replace what was agreed of each for later.
    `until`: a later end. `burst_seconds` takes effect now. `dry_run`: only show what it would do to the
    contract.
    """

    units: UnitsPerSecond | None = None
    from_ms: Annotated[Moment | None, Field(alias="from")] = None
    ramp: Ramp = ()
    until: When | None = None
    burst_seconds: Seconds | None = None
    overflow: Overflow | None = None
    spill_units: UnitsPerSecond | None = None
    notice_days: NoticeDays | None = None
    tenant_notice_days: NoticeDays | None = None
    operator_notice_days: NoticeDays | None = None
    dry_run: bool = False

    def change(self) -> ClauseChange:
        """What is to hold besides the rates."""
        return ClauseChange(
            self.overflow,
            self.spill_units,
            self.spill_units is None and "spill_units" in self.model_fields_set,
            self.notice_days if self.tenant_notice_days is None else self.tenant_notice_days,
            self.notice_days if self.operator_notice_days is None else self.operator_notice_days,
        )

    def ends_ms(self, now_ms: int) -> int | None:
        """The later end, if there is one; a span counts from `from`."""
        starts_ms = now_ms if self.from_ms is None else self.from_ms
        return None if self.until is None else resolved(self.until, starts_ms, "until")

    def steps(self, now_ms: int) -> tuple[Step, ...]:
        """The new rates. Raises Invalid for an instant without one."""
        if self.units is None and self.from_ms is not None and not self.change():
            message = (
                "From then on what? Give units, another overflow or notice; a later end alone takes "
                "no `from`."
            )
            raise Invalid(message, param="units")
        return _steps(now_ms if self.from_ms is None else self.from_ms, self.units, self.ramp)


class ExpectedLoad(Body):
    """Requests of one size: the tokens in each. `cached`: the part of the input that comes from the prefix
    cache.
    """

    requests_per_minute: Annotated[int, Field(ge=1, le=COUNT_MAX)]
    input: Annotated[int, Field(ge=0, le=COUNT_MAX)]
    cached: Part = 0
    output: Annotated[int, Field(ge=0, le=COUNT_MAX)]

    def mu_s(self, weights: Weights) -> int:
        """What that takes, rounded up; `cached` is in permille. Raises Invalid for a part that is none."""
        if not 0 <= self.cached <= 1000:
            raise Invalid("The cached part is 0 to 1.", param="load.cached")
        a_request = self.input * ((1000 - self.cached) * weights.w_in_mu + self.cached * weights.w_cached_mu)
        return -(-self.requests_per_minute * (a_request + 1000 * self.output * weights.w_out_mu) // 60_000)


class QuoteAsked(Body):
    """How much fits between `from` (default: now) and `until` (default: for good). With `units`, also from
    when on and until when that rate fits. `load` in place of `units`: the rate that this load needs, by the
    weights of the pool's model (`model` names it if the pool has several).
    """

    pool: Name
    units: UnitsPerSecond | None = None
    load: ExpectedLoad | None = None
    model: Name | None = None
    from_ms: Annotated[Moment | None, Field(alias="from")] = None
    until: When | None = None
    headroom: Headroom = 0
    burst_seconds: Seconds = Field(BURST_MS, json_schema_extra={"default": BURST_MS // 1000})


@router.post("", status_code=201, response_model=ContractSigned)
def create(body: NewContract, control: Control, response: Response) -> dict[str, Any]:
    """Sign a contract, or store a draft. Signing is refused, and changes nothing, unless the contract fits at
    every instant of its term.
    """
    with control.changing(response) as connection:
        now_ms = store.now_ms(connection)
        terms = body.terms(tenants.find(connection, body.tenant).tenant_id, now_ms)
        made = lifecycle.draft(connection, terms, now_ms=now_ms)
        if not body.draft:
            made = _signed(connection, made.contract_id, now_ms)
        return _with_warnings(connection, made)


@router.post("/quote", response_model=QuoteAnswer, response_model_exclude_unset=True)
def ask(body: QuoteAsked, control: Control) -> dict[str, Any]:
    """How much would fit, from when, until when. It holds nothing."""
    with control.reading() as connection:
        now_ms = store.now_ms(connection)
        from_ms = now_ms if body.from_ms is None else body.from_ms
        if from_ms < now_ms - PAST_SLACK_MS:
            raise Invalid(f"{utc(from_ms)} is in the past.", param="from")
        from_ms = max(from_ms, now_ms)
        until_ms = FOREVER_MS if body.until is None else resolved(body.until, from_ms, "until")
        if until_ms <= from_ms:
            raise Invalid(f"The period would end at {utc(until_ms)}, before it begins.", param="until")
        if body.units is not None and body.units <= 0:
            raise Invalid("Units per second are above 0.", param="units")
        if not 0 <= body.headroom <= 999:
            raise Invalid("Headroom is a part of the capacity: 0 or more, less than 1.", param="headroom")
        check_burst(body.burst_seconds)
        position = read_for_sale(connection, body.pool, now_ms)
        wanted = body.units
        if body.load is not None:
            wanted = max(1, body.load.mu_s(_weights_of(connection, body)))
            if position.capacity_mu_s is None:
                # How many units it takes is known even if it is unknown how many there are.
                return {"pool": body.pool, "units": units(wanted), "fits": None}
        require_calibration(position)
        found = quote(
            position,
            from_ms,
            until_ms,
            mu_s=wanted,
            headroom_permille=body.headroom,
            burst_ms=body.burst_seconds,
        )
        return _quoted(found)


@router.get("", response_model=Listing[ContractAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    tenant: TenantQuery = None,
    pool: Annotated[Name | None, Query(description="Of this pool only.")] = None,
    state: Annotated[State | None, Query()] = None,
    since: Annotated[
        Moment | None, Query(alias="from", description="Those that end after this moment.")
    ] = None,
    until: Annotated[Moment | None, Query(description="Those that begin before this moment.")] = None,
) -> dict[str, Any]:
    """Contracts, including drafts and ended ones, by start; of a tenant, of a pool, in a state, or running
    within a time.
    """
    with control.reading() as connection:
        tenant_id = control.tenant_asked(connection, tenant)
        pools.require_named(connection, pool)
        states = () if state is None else (state,)
        found = store.list_page(
            connection, asked, tenant_id=tenant_id, pool=pool, states=states, within=(since, until)
        )
        return {"data": _shown(connection, found.rows), "next": found.next}


@router.get("/{contract_id}", response_model=ContractAnswer)
def show(contract_id: IdPath, control: Control) -> dict[str, Any]:
    """One contract."""
    with control.reading() as connection:
        return _shown(connection, [store.find(connection, contract_id, tenant_id=control.tenant_id)])[0]


@router.post("/{contract_id}/sign", response_model=ContractSigned)
def sign(contract_id: IdPath, control: Control, response: Response) -> dict[str, Any]:
    """Sign a draft. 409 `not_for_sale`: its tenant is external, and no model of the pool has a price."""
    with control.changing(response) as connection:
        return _with_warnings(connection, _signed(connection, contract_id, store.now_ms(connection)))


def _signed(connection: Connection, contract_id: str, now_ms: int) -> Contract:
    signed = lifecycle.sign(connection, contract_id, now_ms=now_ms)
    require_for_sale(connection, contract_id)
    prepaid.renew(connection, signed.terms.tenant_id, now_ms)
    return signed


@router.post("/{contract_id}/withdraw", response_model=ContractAnswer)
def withdraw(contract_id: IdPath, control: Control, response: Response) -> dict[str, Any]:
    """End a draft without signing it."""
    with control.changing(response) as connection:
        return _shown(
            connection, [lifecycle.withdraw(connection, contract_id, now_ms=store.now_ms(connection))]
        )[0]


@router.post("/{contract_id}/notice", response_model=ContractAnswer)
def notice(contract_id: IdPath, body: Notice, control: Control, response: Response) -> dict[str, Any]:
    """Give notice for one side. The answer says when the contract ends."""
    with control.changing(response, dry_run=body.dry_run) as connection:
        now_ms = store.now_ms(connection)
        noticed = lifecycle.give_notice(connection, contract_id, body.by, now_ms=now_ms)
        prepaid.renew(connection, noticed.terms.tenant_id, now_ms)
        return _shown(connection, [noticed])[0]


@router.post("/{contract_id}/amend", response_model=ContractSigned)
def amend(contract_id: IdPath, body: Amendment, control: Control, response: Response) -> dict[str, Any]:
    """Increase, decrease or extend the contract, or agree on another overflow or notice. It is checked like
    signing. The past stays as it was.
    """
    with control.changing(response, dry_run=body.dry_run) as connection:
        now_ms = store.now_ms(connection)
        amended = lifecycle.amend(
            connection,
            contract_id,
            steps=body.steps(now_ms),
            ends_ms=body.ends_ms(now_ms),
            change=body.change(),
            burst_ms=body.burst_seconds,
            from_ms=body.from_ms,
            now_ms=now_ms,
        )
        prepaid.renew(connection, amended.terms.tenant_id, now_ms)
        return _with_warnings(connection, amended)


@router.get("/{contract_id}/history", response_model=ContractHistory)
def history(contract_id: IdPath, control: Control) -> dict[str, Any]:
    """Every change, oldest first, with the whole contract after it."""
    with control.reading() as connection:
        store.find(connection, contract_id, tenant_id=control.tenant_id)
        entries = store.history(connection, contract_id)
        names = tenants.names(connection, {entry.after.terms.tenant_id for entry in entries})
        return {"data": [shown_entry(entry, names) for entry in entries]}


def _weights_of(connection: Connection, asked: QuoteAsked) -> Weights:
    if asked.units is not None:
        raise Invalid("Give `units` or `load`, not both.", param="load")
    found = [
        each for each in models.list_all(connection) if each.pool == asked.pool and each.status == "active"
    ]
    named = [each for each in found if asked.model in {None, each.name}]
    if len({each.weights for each in named}) != 1:
        which = ", ".join(each.name for each in found) or "none"
        raise Invalid(f"Whose weights? Give `model`: one of those of the pool ({which}).", param="model")
    return named[0].weights


def _with_warnings(connection: Connection, contract: Contract) -> dict[str, Any]:
    """The contract as JSON, with the limits of its tenant that could undercut it."""
    warnings = undercutting(connection, contract, store.now_ms(connection))
    return {**_shown(connection, [contract])[0], "warnings": warnings}


def _steps(from_ms: int, units_mu_s: int | None, ramp: Iterable[RampStep]) -> tuple[Step, ...]:
    first = () if units_mu_s is None else (Step(from_ms, units_mu_s),)
    return (*first, *(Step(resolved(step.from_ms, from_ms, "ramp"), step.units) for step in ramp))


def _shown(connection: Connection, contracts: list[Contract]) -> list[dict[str, Any]]:
    now_ms = store.now_ms(connection)
    names = tenants.names(connection, {contract.terms.tenant_id for contract in contracts})
    return [shown(contract, names, now_ms) for contract in contracts]


# A quote lists at most this many steps of free and missing capacity; its figures include all of them.
_FREE_SHOWN_MAX: Final = 500


def _quoted(found: Quote) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "pool": found.pool,
        "from": utc(found.from_ms),
        "until": moment(found.until_ms),
        "at_most": units(found.at_most_mu_s),
        "burst_seconds": units(found.burst_ms),
        "burst_units": units(
            burst_mu(found.at_most_mu_s if found.mu_s is None else found.mu_s, found.burst_ms)
        ),
        "free": [shown_span(span) for span in found.free[:_FREE_SHOWN_MAX]],
    }
    if found.mu_s is not None:
        answer |= {
            "units": units(found.mu_s),
            "fits": found.fits,
            "fits_from": moment(found.fits_from_ms),
            "fits_until": moment(found.fits_until_ms),
            "short": [shown_span(span) for span in found.short[:_FREE_SHOWN_MAX]],
        }
    return answer
