"""A contract's life by hand: drafted, withdrawn, signed, amended, given notice of. `clock` does what happens
by time.

Signing and amending lock the pool, so that of two at once the second counts the first. A refused call changes
nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection

from billing.catalogue import models, pools, tenants
from billing.contracts import store
from billing.contracts.clauses import ClauseChange, with_change
from billing.contracts.commitments import lock_for_sale, require_calibration
from billing.contracts.position import Holding, Position, overlapping, refuse_worse
from billing.contracts.terms import Contract, Side, Step, Terms, amended, check, end_by_notice, start_now
from billing.moments import utc
from billing.refusals import Conflict, Invalid

OPERATOR: Final = "operator"


def draft(connection: Connection, terms: Terms, *, now_ms: int, by: str = OPERATOR) -> Contract:
    """Store what might be signed; it holds nothing. The tenant exists; raises Invalid, NotFound for the
    pool, Conflict for a pool of another tenant's private models.
    """
    check(terms)
    pools.find(connection, terms.pool)
    _refuse_private(connection, terms)
    begun = start_now(terms, now_ms)
    check(begun)
    return store.insert_draft(connection, begun, by=by, now_ms=now_ms)


def sign(connection: Connection, contract_id: str, *, now_ms: int, by: str = OPERATOR) -> Contract:
    """Make a draft binding, if it fits at every instant of its term. Raises Conflict, with when and by how
    much it does not fit.
    """
    position = lock_for_sale(connection, store.find(connection, contract_id).terms.pool, now_ms)
    contract = store.lock(connection, contract_id)
    _require_draft(contract)
    _refuse_private(connection, contract.terms)
    tenant = tenants.find(connection, contract.terms.tenant_id)
    if tenant.status != "active":
        message = (
            f"Tenant {tenant.name} is {tenant.status}: resume it first (`taas tenant resume {tenant.name}`)."
        )
        raise Conflict(message, param="tenant", code="tenant_not_active")
    terms = start_now(contract.terms, now_ms)
    check(terms)
    signed = replace(contract, terms=terms, state="signed", effective_end_ms=terms.ends_ms)
    _refuse_unfit(position, signed, now_ms)
    return store.save(connection, signed, "signed", by=by, now_ms=now_ms)


def withdraw(connection: Connection, contract_id: str, *, now_ms: int, by: str = OPERATOR) -> Contract:
    """End a draft: it will not be signed and has never held anything. Raises Conflict for a signed
    contract.
    """
    contract = store.lock(connection, contract_id)
    _require_draft(contract)
    # No later than its start, so that it has held at no instant of its term.
    ended = replace(contract, state="ended", effective_end_ms=min(now_ms, contract.terms.starts_ms))
    return store.save(connection, ended, "withdrawn", by=by, now_ms=now_ms)


def give_notice(connection: Connection, contract_id: str, side: Side, *, now_ms: int) -> Contract:
    """End it as early as its terms let this side. A second notice holds only if it brings the end forward.
    Raises Conflict.
    """
    contract = _lock_binding(connection, contract_id, now_ms)
    end_ms = end_by_notice(contract.terms, side, now_ms)
    if contract.state == "notice_given" and end_ms >= contract.effective_end_ms:
        message = f"Notice has been given already: it ends at {utc(contract.effective_end_ms)}."
        raise Conflict(message, param="contract", code="notice_given")
    changed = replace(
        contract, state="notice_given", notice_by=side, notice_given_ms=now_ms, effective_end_ms=end_ms
    )
    return store.save(connection, changed, "notice_given", by=side, now_ms=now_ms)


def amend(
    connection: Connection,
    contract_id: str,
    *,
    steps: Sequence[Step] = (),
    ends_ms: int | None = None,
    change: ClauseChange = ClauseChange(),  # noqa: B008 - it is frozen
    burst_ms: int | None = None,
    from_ms: int | None = None,
    now_ms: int,
    by: str = OPERATOR,
) -> Contract:
    """Set other rates from the first of `steps` on, in place of all later ones; a later end; another overflow
    or notice from `from_ms` (now) on; another burst from now on. All of it or nothing, checked like signing.
    """
    if not steps and ends_ms is None and not change and burst_ms is None:
        message = "Nothing to amend: give new units, a later end, another burst, overflow or notice."
        raise Invalid(message, param="units")
    position = lock_for_sale(connection, store.find(connection, contract_id).terms.pool, now_ms)
    contract = _lock_binding(connection, contract_id, now_ms)
    changed = amended(contract, steps, ends_ms, now_ms)
    if change:
        changed = with_change(changed, change, now_ms if from_ms is None else from_ms, now_ms)
    if burst_ms is not None:
        changed = replace(changed, terms=replace(changed.terms, burst_ms=burst_ms))
        check(changed.terms)
    _refuse_unfit(position, changed, now_ms)
    return store.save(connection, changed, "amended", by=by, now_ms=now_ms)


def _refuse_unfit(position: Position, contract: Contract, now_ms: int) -> None:
    require_calibration(position)
    wanted = Holding.of(contract)
    other = overlapping(position.holdings, wanted)
    if other is not None:
        raise Conflict(
            f"The tenant has contract {other.contract_id} in pool {position.pool!r} from "
            f"{utc(other.starts_ms)} "
            f"until {utc(other.ends_ms)}: amend that one, or begin when it ends.",
            param="tenant",
            code="contract_overlaps",
        )
    refuse_worse(position, position.with_holding(wanted), now_ms, what="It", param="units")


def _refuse_private(connection: Connection, terms: Terms) -> None:
    owners = models.owners_of_pool(connection, terms.pool)
    if owners and not owners & {None, terms.tenant_id}:
        raise Conflict(
            f"The models of pool {terms.pool!r} are another tenant's own: this tenant could not use them.",
            param="tenant",
            code="pool_not_usable",
        )


def _require_draft(contract: Contract) -> None:
    if contract.state == "draft":
        return
    what = "has ended" if contract.state == "ended" else "is signed already; what ends it is a notice"
    raise Conflict(f"Contract {contract.contract_id} {what}.", param="contract", code="not_a_draft")


def _lock_binding(connection: Connection, contract_id: str, now_ms: int) -> Contract:
    contract = store.lock(connection, contract_id)
    if contract.state == "draft":
        raise Conflict(
            f"Contract {contract_id} is a draft; sign it first.", param="contract", code="not_signed"
        )
    if contract.over(now_ms):
        message = f"Contract {contract_id} has ended, at {utc(contract.effective_end_ms)}."
        raise Conflict(message, param="contract", code="contract_ended")
    return contract
