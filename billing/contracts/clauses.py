"""Amendments of a contract apart from its rate and its end: the overflow, the cap on spilling, the notice of
each side.

Pure: it computes which clause holds when. `lifecycle` decides who may amend, and stores it.
"""

from dataclasses import dataclass, replace

from billing.contracts.terms import PAST_SLACK_MS, Clause, Contract, Overflow, check
from billing.moments import utc
from billing.refusals import Conflict, Invalid


@dataclass(frozen=True, slots=True)
class ClauseChange:
    """What is to hold from a moment on; None leaves a field. `lift_cap`: spilling gets no cap."""

    overflow: Overflow | None = None
    spill_mu_s: int | None = None
    lift_cap: bool = False
    tenant_notice_days: int | None = None
    operator_notice_days: int | None = None

    def __bool__(self) -> bool:
        return self != ClauseChange()


def with_change(contract: Contract, change: ClauseChange, from_ms: int, now_ms: int) -> Contract:
    """The contract with this change from that moment on. It replaces what was agreed of these fields for
    later; other fields stay.

    Raises Invalid for a moment that has passed or comes after the end, and for values that make no sense;
    Conflict for changing a notice that has been given: the end has been computed by then.
    """
    if from_ms < now_ms - PAST_SLACK_MS:
        raise Invalid(f"{utc(from_ms)} is in the past, and the past does not change.", param="from")
    from_ms = max(from_ms, now_ms)
    if from_ms >= contract.effective_end_ms:
        message = f"{utc(from_ms)} would be beyond the end at {utc(contract.effective_end_ms)}."
        raise Invalid(message, param="from")
    notice = "tenant" if change.tenant_notice_days is not None else "operator"
    if contract.state == "notice_given" and (change.tenant_notice_days, change.operator_notice_days) != (
        None,
        None,
    ):
        message = (
            f"Notice has been given: it ends at {utc(contract.effective_end_ms)}, whatever the notice is now."
        )
        raise Conflict(message, param=f"{notice}_notice_days", code="notice_given")
    terms = contract.terms
    first = _changed(replace(terms.clause_at(from_ms), from_ms=from_ms), change)
    if first.overflow != "spill" and (change.lift_cap or change.spill_mu_s is not None):
        raise Invalid("A cap on what spills goes with the overflow `spill` only.", param="spill_units")
    before = [clause for clause in terms.later if clause.from_ms < from_ms]
    after = [_changed(clause, change) for clause in terms.later if clause.from_ms > from_ms]
    signed = replace(terms, later=()).clause_at(terms.starts_ms)
    amended = replace(terms, later=tuple(_without_repeats(signed, [*before, first, *after])))
    check(amended)
    return replace(contract, terms=amended)


def _changed(clause: Clause, change: ClauseChange) -> Clause:
    overflow = change.overflow or clause.overflow
    # A cap only belongs to the overflow for which it was agreed.
    spill_mu_s = clause.spill_mu_s if overflow == "spill" and not change.lift_cap else None
    if change.spill_mu_s is not None and overflow == "spill":
        spill_mu_s = change.spill_mu_s
    return replace(
        clause,
        overflow=overflow,
        spill_mu_s=spill_mu_s,
        tenant_notice_days=_given(change.tenant_notice_days, clause.tenant_notice_days),
        operator_notice_days=_given(change.operator_notice_days, clause.operator_notice_days),
    )


def _given(days: int | None, otherwise: int) -> int:
    return otherwise if days is None else days


def _without_repeats(signed: Clause, clauses: list[Clause]) -> list[Clause]:
    """The clauses without those that change nothing."""
    kept: list[Clause] = []
    for clause in clauses:
        if replace(clause, from_ms=0) != replace(kept[-1] if kept else signed, from_ms=0):
            kept.append(clause)
    return kept
