"""What a pool has and owes over time, and whether that fits. Pure: others read the position from SQL or make
it up.

For every instant t, with the headroom of the pool or of a contract in force at t, whichever is greater: Σ
held(t) ≤ ⌊(instances − taken(t)) · capacity · (1 − headroom(t))⌋ − set aside. A contract holds what its burst
asks of the pool within a second: its rate times the seconds of its burst, which are at least one. So the
bursts of all contracts at once are no more than the pool can do in a second, and the sum of the rates is no
more than it can sustain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

from billing.contracts.terms import BURST_MS, Contract, Step, burst_mu
from billing.contracts.timeline import FOREVER_MS, Span, Timeline
from billing.moments import utc
from billing.refusals import Conflict

# Nobody reads more than a few lines.
_DESCRIBED_MAX: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one signed contract holds, until its effective end."""

    contract_id: str
    tenant_id: str
    steps: tuple[Step, ...]
    starts_ms: int
    ends_ms: int
    headroom_permille: int
    burst_ms: int = BURST_MS

    @classmethod
    def of(cls, contract: Contract) -> Self:
        """As the contract stands."""
        terms = contract.terms
        return cls(
            contract_id=contract.contract_id,
            tenant_id=terms.tenant_id,
            steps=terms.steps,
            starts_ms=terms.starts_ms,
            ends_ms=contract.effective_end_ms,
            headroom_permille=terms.headroom_permille,
            burst_ms=terms.burst_ms,
        )

    def held(self) -> list[Span]:
        """What it holds of the pool, one rate after the other."""
        return [replace(span, value=burst_mu(span.value, self.burst_ms)) for span in self.spans()]

    def spans(self) -> list[Span]:
        """Its rates, one after the other."""
        ends = [step.from_ms for step in self.steps[1:]] + [self.ends_ms]
        return [
            Span(step.from_ms, min(end_ms, self.ends_ms), step.mu_s)
            for step, end_ms in zip(self.steps, ends, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Taken:
    """Machines that another use has in [from, until). `drains`: they already take nothing new before that;
    this does not count as another use.
    """

    instances: int
    from_ms: int
    until_ms: int = FOREVER_MS
    drains: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """One pool. `capacity_mu_s`: of one instance, by the newest calibration; None before the first."""

    pool: str
    instances: int
    headroom_permille: int
    set_aside_mu_s: int
    capacity_mu_s: int | None
    holdings: tuple[Holding, ...] = ()
    taken: tuple[Taken, ...] = ()

    def with_holding(self, holding: Holding) -> "Position":
        """With this one, in place of what its contract held before."""
        return replace(self, holdings=(*self.without(holding.contract_id).holdings, holding))

    def without(self, contract_id: str) -> "Position":
        """As if that contract were not."""
        return replace(
            self, holdings=tuple(held for held in self.holdings if held.contract_id != contract_id)
        )

    def serving(self, now_ms: int) -> "Position":
        """The position without the machines that drain."""
        taken = (
            replace(each, from_ms=min(each.from_ms, now_ms)) if each.drains else each for each in self.taken
        )
        return replace(self, taken=tuple(taken))

    def capacity(self, *, headroom_permille: int = 0) -> Timeline:
        """What may be sold at each moment from 1970 on: at least 0, and 0 without a calibration."""
        return self._ceiling(headroom_permille).with_other(Timeline(), lambda ceiling, _: max(0, ceiling))

    def reserved(self) -> Timeline:
        """What is sold at each moment."""
        return Timeline.total(span for held in self.holdings for span in held.spans())

    def held(self) -> Timeline:
        """What cannot be sold to anybody else at each moment: what is sold, and more for bursts longer than a
        second.
        """
        return Timeline.total(span for held in self.holdings for span in held.held())

    def free(self, *, headroom_permille: int = 0) -> Timeline:
        """What could still be sold at each moment with this headroom."""
        capacity = self.capacity(headroom_permille=headroom_permille)
        return capacity.with_other(self.held(), lambda has, owes: max(0, has - owes))

    def shortage(self) -> Timeline:
        """By how much more is sold than there is; 0 if it fits."""
        return self.reserved().with_other(self.capacity(), lambda owes, has: max(0, owes - has))

    def overheld(self) -> Timeline:
        """By how much more is held than there is, bursts included; 0 if it fits."""
        return self.held().with_other(self.capacity(), lambda owes, has: max(0, owes - has))

    def _ceiling(self, headroom_permille: int) -> Timeline:
        taken = [Span(each.from_ms, each.until_ms, -each.instances) for each in self.taken]
        there = Timeline.total([Span(0, FOREVER_MS, self.instances), *taken])
        asked = [Span(held.starts_ms, held.ends_ms, held.headroom_permille) for held in self.holdings]
        kept = Timeline.greatest(
            [Span(0, FOREVER_MS, max(headroom_permille, self.headroom_permille)), *asked]
        )
        capacity_mu_s, set_aside_mu_s = self.capacity_mu_s or 0, self.set_aside_mu_s
        return there.with_other(
            kept, lambda count, permille: count * capacity_mu_s * (1000 - permille) // 1000 - set_aside_mu_s
        )


def shortfalls(position: Position, from_ms: int, until_ms: int = FOREVER_MS) -> list[Span]:
    """When, and by how much, more is held than there is: a span for each amount."""
    return _above_0(position.overheld(), from_ms, until_ms)


def worsened(before: Position, after: Position, from_ms: int, until_ms: int = FOREVER_MS) -> list[Span]:
    """When contracts do not fit after the change because of the change, and by how much: a span for each
    amount.
    """
    worse = after.overheld().with_other(before.overheld(), lambda now, was: now if now > was else 0)
    return _above_0(worse, from_ms, until_ms)


def refuse_worse(
    before: Position, after: Position, from_ms: int, *, what: str, param: str | None = None
) -> None:
    """Raises Conflict, with when and by how much, if the change breaks what is signed or makes it worse."""
    found = worsened(before, after, from_ms)
    if not found:
        return
    raise Conflict(
        f"{what} does not fit in pool {before.pool!r}: {describe_all(found)}.",
        param=param,
        code="capacity_short",
    )


def describe_all(spans: Sequence[Span]) -> str:
    """For people: the first few spans with their amounts, how many more there are, and the worst."""
    said = "; ".join(describe(span) for span in spans[:_DESCRIBED_MAX])
    if len(spans) <= _DESCRIBED_MAX:
        return said
    worst = max(spans, key=lambda span: span.value)
    return f"{said}; and {len(spans) - _DESCRIBED_MAX} more, the worst of all {describe(worst)}"


def describe(span: Span) -> str:
    """For people: from when until when, and by how many units per second."""
    until = "without an end" if span.until_ms >= FOREVER_MS else f"until {utc(span.until_ms)}"
    return f"from {utc(span.from_ms)} {until} by {units(span.value)} units per second"


def units(mu: int) -> str:
    """Milliunits as a decimal of units, exact."""
    whole, thousandths = divmod(abs(mu), 1000)
    fraction = f".{thousandths:03d}".rstrip("0") if thousandths else ""
    return f"{'-' if mu < 0 else ''}{whole}{fraction}"


def _above_0(timeline: Timeline, from_ms: int, until_ms: int) -> list[Span]:
    return [span for span in timeline.spans(from_ms, until_ms) if span.value > 0]


def overlapping(holdings: Sequence[Holding], wanted: Holding) -> Holding | None:
    """Another contract of the same tenant that holds at some instant of this one's term."""
    for held in holdings:
        other = held.tenant_id == wanted.tenant_id and held.contract_id != wanted.contract_id
        if other and max(held.starts_ms, wanted.starts_ms) < min(held.ends_ms, wanted.ends_ms):
            return held
    return None
