"""Turns the running totals of a contract into minutes. Pure: the arithmetic of the evidence, and its state.

The state is the last reading and the current minute so far, never a difference that is still to be written.
So each minute is written as a whole. Writing it again, or continuing from an older state, leads to the same
rows. The sum of the minutes is the total.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from typing import Any, Self

from billing.moments import MINUTE_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What the scripts have counted for a contract since its hash was made: mu, and refused requests.
    `limited_…`: requests that the contract had room for and that this limit of its tenant or key refused.
    """

    used_mu: int = 0
    borrowed_mu: int = 0
    refused: int = 0
    limited_requests: int = 0
    limited_concurrency: int = 0
    limited_cancels: int = 0

    def since(self, before: "Totals") -> "Totals":
        """The difference; below 0 where a request gave back what it had been charged."""
        return Totals.of([now - was for now, was in zip(astuple(self), astuple(before), strict=True)])

    @classmethod
    def of(cls, counted: Iterable[int]) -> "Totals":
        """From figures in the order of the fields."""
        return cls(**dict(zip((each.name for each in fields(cls)), counted, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """One minute of a contract so far. `assigned_mu_ms`: rate × time, in mu/s × ms, so that nothing is
    rounded between two readings. `missing_mu_ms`: the part of it that the ready instances could not have
    done.
    """

    minute_ms: int
    assigned_mu_ms: int = 0
    used_mu: int = 0
    lent_mu: int = 0
    borrowed_mu: int = 0
    refused: int = 0
    missing_mu_ms: int = 0
    limited_requests: int = 0
    limited_concurrency: int = 0
    limited_cancels: int = 0

    @property
    def assigned_mu(self) -> int:
        """Whole mu."""
        return self.assigned_mu_ms // 1000

    @property
    def missing_mu(self) -> int:
        """Whole mu."""
        return self.missing_mu_ms // 1000

    @property
    def empty(self) -> bool:
        """Nothing was assigned and nothing happened."""
        return self == Minute(minute_ms=self.minute_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The state of a contract's evidence: the last reading, its time, and its minute. `rate_mu_s` (as signed)
    and `missing_mu_s` (for lack of ready instances) are in force since then.
    """

    contract_id: str
    at_ms: int
    rate_mu_s: int
    minute: Minute
    totals: Totals = field(default_factory=Totals)
    missing_mu_s: int = 0

    def to_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """What `to_record` wrote. Raises KeyError, TypeError for anything else."""
        return cls(**{**record, "minute": Minute(**record["minute"]), "totals": Totals(**record["totals"])})


def minute_of(moment_ms: int) -> int:
    """The start of its minute."""
    return moment_ms - moment_ms % MINUTE_MS


def opened(contract_id: str, now_ms: int, totals: Totals, *, minute: Minute | None = None) -> Account:
    """The first reading of a contract, at no rate yet. It may have a row for this minute already; `totals`
    are not its own.
    """
    return Account(
        contract_id=contract_id,
        at_ms=now_ms,
        rate_mu_s=0,
        minute=minute or Minute(minute_ms=minute_of(now_ms)),
        totals=totals,
    )


def advance(
    account: Account, now_ms: int, totals: Totals, *, end_ms: int, lent_mu: int
) -> tuple[list[Minute], Account]:
    """The minutes that this reading touches, oldest first, and the account after it.

    What happened since the last reading is divided over the minutes in proportion to time. That is exact when
    the last reading is a second old, and an estimate after a pause.
    """
    spans = list(_spans(account.at_ms, max(now_ms, account.at_ms)))
    change = totals.since(account.totals)
    parts = zip(*(_divided(amount, spans) for amount in (lent_mu, *astuple(change))), strict=True)
    current, minutes = account.minute, []
    for (start_ms, until_ms), (lent_part, *counted) in zip(spans, parts, strict=True):
        more = Totals.of(counted)
        if minute_of(start_ms) != current.minute_ms:
            minutes.append(current)
            current = Minute(minute_ms=minute_of(start_ms))
        held_ms = max(0, min(until_ms, end_ms) - start_ms)
        current = Minute(
            minute_ms=current.minute_ms,
            assigned_mu_ms=current.assigned_mu_ms + account.rate_mu_s * held_ms,
            used_mu=current.used_mu + more.used_mu,
            lent_mu=current.lent_mu + lent_part,
            borrowed_mu=current.borrowed_mu + more.borrowed_mu,
            refused=current.refused + more.refused,
            missing_mu_ms=current.missing_mu_ms + account.missing_mu_s * held_ms,
            limited_requests=current.limited_requests + more.limited_requests,
            limited_concurrency=current.limited_concurrency + more.limited_concurrency,
            limited_cancels=current.limited_cancels + more.limited_cancels,
        )
    return [*minutes, current], replace(
        account, at_ms=max(now_ms, account.at_ms), minute=current, totals=totals
    )


def _spans(start_ms: int, until_ms: int) -> Iterator[tuple[int, int]]:
    """Split [start, until) at full minutes; one empty span if no time has passed."""
    while minute_of(start_ms) + MINUTE_MS < until_ms:
        yield start_ms, minute_of(start_ms) + MINUTE_MS
        start_ms = minute_of(start_ms) + MINUTE_MS
    yield start_ms, until_ms


def _divided(amount: int, spans: list[tuple[int, int]]) -> list[int]:
    """Divide the amount in proportion to length, in whole numbers that add up to it."""
    start_ms, length_ms = spans[0][0], spans[-1][1] - spans[0][0]
    upto = [amount * (until_ms - start_ms) // length_ms if length_ms else amount for _, until_ms in spans]
    return [after - before for before, after in zip([0, *upto], upto, strict=False)]
