"""The figures of a line for people and programs: decimals, and what follows from sums by division. Pure.

Money is exact. Hours, kWh and what was divided are rounded to six decimals, percent to two, half to even.
"""

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from typing import Any, Final

from billing.catalogue.money import PICOUSD_PER_USD, Money
from billing.economics.figures import Figures
from billing.moments import HOUR_MS

ROUNDING: Final = (
    "half to even. The cost of each pool's machines is rounded to pico-dollars once a month, and divided so "
    "that the parts add up. Hours, kWh and quotients have six decimals, percent has two."
)
_UNIT_HOUR: Final = 1000 * HOUR_MS
_MILLIWATT_MS_PER_KWH: Final = 10**6 * HOUR_MS
# A MW-year is 365 days of a megawatt.
_KWH_PER_MW_YEAR: Final = 1000 * 365 * 24
_DECIMALS: Final = 6
_EXACT: Final = Context(prec=60, rounding=ROUND_HALF_EVEN)


def rounded(value: Fraction | int, decimals: int = _DECIMALS) -> str:
    """A decimal with at most so many places."""
    scaled = Decimal(round(Fraction(value) * 10**decimals)).scaleb(-decimals, _EXACT)
    text = f"{scaled:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def quotient(part: int | None, whole: int | None, decimals: int = _DECIMALS, times: int = 1) -> str | None:
    """None where one is not known or nothing is divided by."""
    return None if part is None or not whole else rounded(Fraction(part * times, whole), decimals)


def shown(figures: Figures) -> dict[str, Any]:
    """All of a line but its names."""
    cost, used_mu = figures.cost, figures.commitment_used_mu
    used = None if used_mu is None else used_mu * 1000
    total = figures.commitment_total
    return {
        "revenue": shown_usd(figures.revenue),
        "revenue_tokens": shown_usd(figures.revenue_tokens),
        "revenue_capacity": shown_usd(figures.revenue_capacity),
        "revenue_terms": shown_usd(figures.revenue_terms),
        "credits": shown_usd(figures.credits),
        "cost": shown_usd(cost),
        "cost_machines": shown_usd(figures.cost_machines),
        "cost_providers": shown_usd(figures.cost_providers),
        "cost_makers": shown_usd(figures.cost_makers),
        "margin": None if cost is None else shown_usd(figures.revenue - cost),
        "machine_hours": _hours(figures.machine_ms),
        "gpu_hours": _hours(figures.gpu_ms),
        "kwh": quotient(figures.milliwatt_ms, _MILLIWATT_MS_PER_KWH),
        "unit_hours": {
            "calibrated": shown_hours(figures.calibrated),
            "sold": shown_hours(figures.sold),
            "lent": shown_hours(figures.lent),
            "idle": shown_hours(figures.idle),
            "other": shown_hours(figures.other),
            "used": shown_hours(figures.used_mu * 1000),
        },
        "commitment": {
            "total_commitment": shown_hours(total),
            "used_commitment": shown_hours(used),
            "unused_commitment": None if total is None or used is None else shown_hours(total - used),
            "short_commitment": shown_hours(_mu_ms(figures.commitment_short_mu)),
            "utilization_percentage": quotient(used, total, 2, 100),
        },
        "economic_utilization_percentage": quotient(
            figures.revenue - figures.revenue_providers, figures.list_picousd, 2, 100
        ),
        "per_gpu_hour": _per(figures, figures.gpu_ms, HOUR_MS, figures.gpus_unknown_ms),
        "per_kwh": _per(figures, figures.milliwatt_ms, _MILLIWATT_MS_PER_KWH, figures.power_unknown_ms),
        "per_mw_year": _per(
            figures, figures.milliwatt_ms, _MILLIWATT_MS_PER_KWH * _KWH_PER_MW_YEAR, figures.power_unknown_ms
        ),
        "unknown": {
            "cost_machine_hours": _hours(figures.cost_unknown_ms),
            "gpus_machine_hours": _hours(figures.gpus_unknown_ms),
            "power_machine_hours": _hours(figures.power_unknown_ms),
            "capacity_machine_hours": _hours(figures.capacity_unknown_ms),
            "cost_requests": figures.cost_unknown_requests,
            "price_requests": figures.price_unknown_requests,
        },
    }


def _per(figures: Figures, amount: int | None, unit: int, unknown_ms: int) -> dict[str, str | None]:
    """What our own machines earn and cost for each of it; nothing while a part of it is not known."""
    if unknown_ms:
        amount = None
    revenue = figures.revenue - figures.revenue_providers
    cost = figures.cost_machines
    if cost is None or figures.cost_unknown_ms:
        cost = None
    else:
        cost += figures.cost_makers
    times, whole = unit, None if amount is None else amount * PICOUSD_PER_USD
    return {
        "revenue": quotient(revenue, whole, times=times),
        "cost": quotient(cost, whole, times=times),
        "margin": quotient(None if cost is None else revenue - cost, whole, times=times),
    }


def shown_usd(picousd: int | None) -> str | None:
    """Exact, in USD."""
    return None if picousd is None else str(Money(picousd))


def _hours(ms: int | None) -> str | None:
    return quotient(ms, HOUR_MS)


def shown_hours(mu_ms: int | None) -> str | None:
    """In unit-hours."""
    return quotient(mu_ms, _UNIT_HOUR)


def _mu_ms(mu: int | None) -> int | None:
    return None if mu is None else mu * 1000


def shown_difference(before: Figures, after: Figures) -> dict[str, Any]:
    """By how much each is more after than before."""
    costs = before.cost, after.cost
    cost = None if None in costs else (costs[1] or 0) - (costs[0] or 0)
    revenue = after.revenue - before.revenue
    return {
        "revenue": shown_usd(revenue),
        "credits": shown_usd(after.credits - before.credits),
        "cost": shown_usd(cost),
        "margin": None if cost is None else shown_usd(revenue - cost),
        "unit_hours": {
            name: shown_hours(getattr(after, name) - getattr(before, name))
            for name in ("calibrated", "sold", "lent", "idle", "other")
        }
        | {"used": shown_hours((after.used_mu - before.used_mu) * 1000)},
        "short_commitment": shown_hours(
            _mu_ms((after.commitment_short_mu or 0) - (before.commitment_short_mu or 0))
        ),
    }


def shown_loss(before: Figures, after: Figures) -> dict[str, Any]:
    """What is earned less, what is given back, and by how much contracts are short because of it."""
    short = (after.commitment_short_mu or 0) - (before.commitment_short_mu or 0)
    lost = before.revenue_tokens + before.revenue_capacity - after.revenue_tokens - after.revenue_capacity
    return {
        "lost_revenue": shown_usd(lost),
        "credits": shown_usd(after.credits - before.credits),
        "short_unit_hours": shown_hours(short * 1000),
    }
