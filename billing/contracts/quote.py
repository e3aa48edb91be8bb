"""What could be signed: how much over a period, from when, until when. Pure. It promises nothing: only
signing holds capacity.
"""

from dataclasses import dataclass, replace

from billing.contracts.position import Holding, Position, worsened
from billing.contracts.terms import BURST_MS, Step
from billing.contracts.timeline import FOREVER_MS, Span, Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """`at_most_mu_s` fits over the whole period, with a burst of `burst_ms`. If a rate was asked about:
    `fits`, over the whole period; `fits_from_ms`, the first start from which it fits for the length of the
    period (None: never); `fits_until_ms`, until when it fits from the period's start (equal to the start: not
    at all); `short`, when and by how much it does not fit within the period, worded as a refusal.
    """

    pool: str
    from_ms: int
    until_ms: int
    free: tuple[Span, ...]
    at_most_mu_s: int
    burst_ms: int
    mu_s: int | None = None
    fits: bool | None = None
    fits_from_ms: int | None = None
    fits_until_ms: int | None = None
    short: tuple[Span, ...] = ()


def quote(
    position: Position,
    from_ms: int,
    until_ms: int = FOREVER_MS,
    *,
    mu_s: int | None = None,
    headroom_permille: int = 0,
    burst_ms: int = BURST_MS,
) -> Quote:
    """For a period that is not empty; without an end it is for good. `free`: what could be sold with this
    burst over that period, step by step.
    """
    left = position.free(headroom_permille=headroom_permille)
    free = left.with_other(Timeline(), lambda mu, _: mu * 1000 // burst_ms)
    found = tuple(free.spans(from_ms, until_ms))
    at_most_mu_s = min(span.value for span in found)
    answer = Quote(
        pool=position.pool,
        from_ms=from_ms,
        until_ms=until_ms,
        free=found,
        at_most_mu_s=at_most_mu_s,
        burst_ms=burst_ms,
    )
    if mu_s is None:
        return answer
    onwards = list(free.spans(from_ms))
    lasts_ms = FOREVER_MS if until_ms >= FOREVER_MS else until_ms - from_ms
    wanted = Holding(
        contract_id="",
        tenant_id="",
        steps=(Step(from_ms, mu_s),),
        starts_ms=from_ms,
        ends_ms=until_ms,
        headroom_permille=headroom_permille,
        burst_ms=burst_ms,
    )
    return replace(
        answer,
        mu_s=mu_s,
        fits=mu_s <= at_most_mu_s,
        fits_from_ms=_first_start(onwards, mu_s, lasts_ms),
        fits_until_ms=next((span.from_ms for span in onwards if span.value < mu_s), FOREVER_MS),
        short=tuple(worsened(position, position.with_holding(wanted), from_ms, until_ms)),
    )


def _first_start(free: list[Span], mu_s: int, lasts_ms: int) -> int | None:
    start_ms: int | None = None
    for span in free:
        if span.value < mu_s:
            start_ms = None
            continue
        start_ms = span.from_ms if start_ms is None else start_ms
        if span.until_ms >= FOREVER_MS or span.until_ms - start_ms >= lasts_ms:
            return start_ms
    return None
