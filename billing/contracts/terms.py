"""The terms of a contract, and the rules that need only the contract and the time. Pure: it knows no table
and no pool.

Rates are milliunits per second (mu_s), times are ms since the epoch; a span includes its start and not its
end.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Final, Literal, Self

from billing.moments import DAY_MS, MINUTE_MS, utc
from billing.refusals import Conflict, Invalid

State = Literal["draft", "signed", "active", "notice_given", "ended"]
Side = Literal["tenant", "operator"]
Overflow = Literal["reject", "spill", "queue"]

# Tolerance for the caller's clock, and for the time that a form is open.
PAST_SLACK_MS: Final = 5 * MINUTE_MS
# 10^12 units a second: exact in a Lua number, and more than any pool does.
RATE_MU_S_MAX: Final = 10**15
TERM_MS_MAX: Final = 100 * 366 * DAY_MS
NOTICE_DAYS_MAX: Final = 3_660
# A burst as the time in which the rate would do it.
BURST_MS: Final = 1_000
BURST_MS_MAX: Final = MINUTE_MS
STEPS_MAX: Final = 1_000
MS_MAX: Final = 253_402_300_799_999  # the end of the year 9999
_OVERFLOWS: Final = ("reject", "spill", "queue")


@dataclass(frozen=True, slots=True)
class Step:
    """The rate from this moment until the next step."""

    from_ms: int
    mu_s: int


@dataclass(frozen=True, slots=True)
class Clause:
    """What holds from this moment until the next clause: what happens beyond the contract (`spill_mu_s` None:
    no cap), and the notice of each side.
    """

    from_ms: int
    overflow: Overflow
    spill_mu_s: int | None
    tenant_notice_days: int
    operator_notice_days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What both sides sign. `headroom_permille`: kept free beside it, if it is more than the pool's.
    `spill_mu_s` None: no cap. `burst_ms`: how much time's worth of the rate may come at once. `later`:
    overflow, cap and notice as amended, by time.
    """

    tenant_id: str
    pool: str
    steps: tuple[Step, ...]
    starts_ms: int
    ends_ms: int
    minimum_until_ms: int
    tenant_notice_days: int
    operator_notice_days: int
    overflow: Overflow = "reject"
    spill_mu_s: int | None = None
    headroom_permille: int = 0
    price_reference: str | None = None
    burst_ms: int = BURST_MS
    later: tuple[Clause, ...] = ()

    def clause_at(self, moment_ms: int) -> Clause:
        """What holds then; before the start what was signed."""
        index = bisect_right(self.later, moment_ms, key=lambda clause: clause.from_ms)
        if index:
            return self.later[index - 1]
        return Clause(
            self.starts_ms, self.overflow, self.spill_mu_s, self.tenant_notice_days, self.operator_notice_days
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """A contract as it is now."""

    contract_id: str
    terms: Terms
    state: State
    notice_by: Side | None
    notice_given_ms: int | None
    effective_end_ms: int
    created_ms: int

    def to_record(self) -> dict[str, Any]:
        """All of it, exact, as the history keeps it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """What `to_record` wrote, through JSON."""
        terms = dict(record["terms"])
        terms["steps"] = tuple(Step(**step) for step in terms["steps"])
        # Older records have no such amendments.
        terms["later"] = tuple(Clause(**clause) for clause in terms.get("later", ()))
        rest = {field.name: record[field.name] for field in fields(cls) if field.name != "terms"}
        return cls(terms=Terms(**terms), **rest)

    def mu_s_at(self, moment_ms: int) -> int:
        """What it is worth then; 0 outside its term and while nobody has signed."""
        within = self.terms.starts_ms <= moment_ms < self.effective_end_ms
        return rate_at(self.terms.steps, moment_ms) if within and self.state not in {"draft", "ended"} else 0

    def over(self, now_ms: int) -> bool:
        """Whether its end has passed, whatever its state says."""
        return self.state == "ended" or (self.state != "draft" and self.effective_end_ms <= now_ms)


def rate_at(steps: Sequence[Step], moment_ms: int) -> int:
    """The rate at a moment; 0 before the first step."""
    index = bisect_right(steps, moment_ms, key=lambda step: step.from_ms)
    return steps[index - 1].mu_s if index else 0


def start_now(terms: Terms, now_ms: int) -> Terms:
    """The same, starting now if its start was a moment ago. Raises Invalid if it was longer ago."""
    if terms.starts_ms >= now_ms:
        return terms
    if terms.starts_ms < now_ms - PAST_SLACK_MS:
        raise Invalid(f"It would start at {utc(terms.starts_ms)}, which is in the past.", param="from")
    later = tuple(step for step in terms.steps if step.from_ms > now_ms)
    return replace(
        terms,
        starts_ms=now_ms,
        minimum_until_ms=max(terms.minimum_until_ms, now_ms),
        steps=(Step(now_ms, rate_at(terms.steps, now_ms)), *later),
    )


def check(terms: Terms) -> None:
    """Raises Invalid, naming the field, for terms that contradict themselves or make no sense."""
    _check_span(terms)
    check_steps(terms.steps, terms.starts_ms, terms.ends_ms)
    for clause in (replace(terms, later=()).clause_at(terms.starts_ms), *terms.later):
        _check_clause(clause)
    if len(terms.later) > STEPS_MAX:
        raise Invalid(f"Overflow and notice change at most {STEPS_MAX} times.", param="from")
    check_burst(terms.burst_ms)
    if not 0 <= terms.headroom_permille <= 999:
        raise Invalid("Headroom is a part of the capacity: 0 or more, less than 1.", param="headroom")


def check_burst(burst_ms: int) -> None:
    """Raises Invalid for a burst that no contract may have."""
    if not BURST_MS <= burst_ms <= BURST_MS_MAX:
        message = f"A burst is {BURST_MS // 1000} to {BURST_MS_MAX // 1000} seconds of the rate."
        raise Invalid(message, param="burst_seconds")


def burst_mu(mu_s: int, burst_ms: int) -> int:
    """How much may come at once under a contract with this rate; rounded up."""
    return -(-mu_s * burst_ms // 1000)


def _check_clause(clause: Clause) -> None:
    for side, days in (("tenant", clause.tenant_notice_days), ("operator", clause.operator_notice_days)):
        if not 0 <= days <= NOTICE_DAYS_MAX:
            raise Invalid(f"The {side}'s notice is 0 to {NOTICE_DAYS_MAX} days.", param=f"{side}_notice_days")
    if clause.overflow not in _OVERFLOWS:
        raise Invalid("What is asked over the contract: `reject`, `spill` or `queue`.", param="overflow")
    if clause.spill_mu_s is not None and clause.overflow != "spill":
        raise Invalid("A cap on what spills goes with the overflow `spill` only.", param="spill_units")
    if clause.spill_mu_s is not None and not 0 < clause.spill_mu_s <= RATE_MU_S_MAX:
        raise Invalid("The cap on what spills is above 0; without any, leave it out.", param="spill_units")


def _check_span(terms: Terms) -> None:
    if not 0 <= terms.starts_ms <= MS_MAX:
        raise Invalid("The start is not a moment before the year 10000.", param="from")
    if terms.ends_ms <= terms.starts_ms:
        raise Invalid(
            f"It would end at {utc(terms.ends_ms)}, and start only at {utc(terms.starts_ms)}.", param="until"
        )
    if terms.ends_ms > MS_MAX or terms.ends_ms - terms.starts_ms > TERM_MS_MAX:
        raise Invalid("A term is at most 100 years.", param="until")
    if terms.minimum_until_ms > terms.ends_ms:
        raise Invalid(
            f"The minimum term would last until {utc(terms.minimum_until_ms)}, beyond the end at "
            f"{utc(terms.ends_ms)}.",
            param="minimum_until",
        )
    if terms.minimum_until_ms < terms.starts_ms:
        raise Invalid("The minimum term would be over before the start.", param="minimum_until")


def check_steps(steps: Sequence[Step], starts_ms: int, ends_ms: int) -> None:
    """Raises Invalid unless the steps give exactly one sensible rate for each moment of [starts, ends)."""
    if not steps:
        raise Invalid("How many units per second? A contract needs at least one rate.", param="units")
    if len(steps) > STEPS_MAX:
        raise Invalid(f"A ramp has at most {STEPS_MAX} steps.", param="ramp")
    for index, step in enumerate(steps):
        if not 0 < step.mu_s <= RATE_MU_S_MAX:
            message = (
                f"Units per second are above 0 and at most {RATE_MU_S_MAX // 1000}; from "
                f"{utc(step.from_ms)} they are not."
            )
            raise Invalid(message, param="ramp" if index else "units")
    for before, after in pairwise(steps):
        if after.from_ms == before.from_ms:
            raise Invalid(f"The ramp has two steps at {utc(after.from_ms)}.", param="ramp")
        if after.from_ms < before.from_ms:
            message = f"The ramp is not in order: {utc(after.from_ms)} comes after {utc(before.from_ms)}."
            raise Invalid(message, param="ramp")
    if steps[0].from_ms > starts_ms:
        message = (
            f"The ramp has a gap: from the start at {utc(starts_ms)} until {utc(steps[0].from_ms)} "
            "it says no rate."
        )
        raise Invalid(message, param="ramp")
    if steps[0].from_ms < starts_ms:
        raise Invalid(f"The ramp begins at {utc(steps[0].from_ms)}, before the start.", param="ramp")
    if steps[-1].from_ms >= ends_ms:
        raise Invalid(
            f"A step at {utc(steps[-1].from_ms)} would be beyond the end at {utc(ends_ms)}.", param="ramp"
        )


def end_by_notice(terms: Terms, side: Side, given_ms: int) -> int:
    """When it ends if this side gives notice then: after its notice, not within the minimum term, and no
    later than its end.
    """
    clause = terms.clause_at(given_ms)
    days = clause.tenant_notice_days if side == "tenant" else clause.operator_notice_days
    return min(terms.ends_ms, max(terms.minimum_until_ms, given_ms + days * DAY_MS))


def amended(contract: Contract, steps: Sequence[Step], ends_ms: int | None, now_ms: int) -> Contract:
    """The contract with these rates from the first of them on, in place of all later ones, and this end. The
    past stays. Raises Invalid for rates in the past, out of order or beyond the end; Conflict if a notice
    that was given rules it out.
    """
    terms = contract.terms
    if ends_ms is not None and ends_ms <= terms.ends_ms:
        raise Invalid(
            f"It ends at {utc(terms.ends_ms)}; an earlier end takes a notice, not an amendment.",
            param="until",
        )
    if ends_ms is not None and contract.state == "notice_given":
        message = (
            f"Notice has been given: it ends at {utc(contract.effective_end_ms)}. Sign a new one from there."
        )
        raise Conflict(message, param="until", code="notice_given")
    effective_end_ms = ends_ms or contract.effective_end_ms
    kept = terms.steps
    if steps:
        kept = _spliced(terms, steps, effective_end_ms, now_ms)
    changed = replace(terms, steps=kept, ends_ms=ends_ms or terms.ends_ms)
    check(changed)
    return replace(contract, terms=changed, effective_end_ms=effective_end_ms)


def _spliced(terms: Terms, steps: Sequence[Step], effective_end_ms: int, now_ms: int) -> tuple[Step, ...]:
    if steps[0].from_ms < now_ms - PAST_SLACK_MS:
        raise Invalid(f"{utc(steps[0].from_ms)} is in the past, and the past does not change.", param="from")
    check_steps(steps, steps[0].from_ms, effective_end_ms)
    from_ms = max(steps[0].from_ms, now_ms, terms.starts_ms)
    new = (Step(from_ms, rate_at(steps, from_ms)), *(step for step in steps if step.from_ms > from_ms))
    return (*(step for step in terms.steps if step.from_ms < from_ms), *new)
