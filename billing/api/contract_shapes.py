"""The form of contracts on the wire: units per second as decimals of at most three places, times as RFC 3339
in UTC. It owns no route.
"""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)

from billing.api.fields import MOMENT_FORMS, MOMENT_SCHEMAS, Moment
from billing.contracts.position import units
from billing.contracts.spans import after_ms
from billing.contracts.store import ContractEvent
from billing.contracts.terms import Clause, Contract, burst_mu
from billing.contracts.timeline import FOREVER_MS, Span
from billing.moments import utc
from billing.refusals import Invalid

# Fewer than Decimal keeps, so that nothing is rounded on the way in.
_DIGITS_MAX: Final = 24
_SPAN: Final = r"^\+[0-9]{1,6}(s|min|h|d|w|mo|y)$"


def thousandths(given: object) -> object:
    """A decimal string or a number, times 1000, as a whole number."""
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise ValueError("a decimal string or a number with at most three decimals")
    if isinstance(given, float) and not math.isfinite(given):
        raise ValueError("a number that is finite")
    text = str(given)
    if len(text) > _DIGITS_MAX or not text.isascii() or "_" in text or text != text.strip():
        raise ValueError("a plain decimal of at most 24 characters, such as 500 or 12.5")
    try:
        exact = Decimal(text) * 1000
    except ArithmeticError as exc:
        raise ValueError("a decimal, such as 500 or 12.5") from exc
    if not exact.is_finite() or abs(exact) > 10**_DIGITS_MAX or exact != exact.to_integral_value():
        raise ValueError("a decimal with at most three places")
    return int(exact)


def _either(given: object, read: ValidatorFunctionWrapHandler) -> object:
    """If the text is neither a moment nor a span, the error describes both formats."""
    try:
        return read(given)
    except ValidationError as exc:
        message = f"{MOMENT_FORMS}; a span from the start is such as +20s, +90d, +6mo or +3y"
        raise ValueError(message) from exc


# Units per second as milliunits; a part of one in permille.
_DECIMAL_TEXT: Final = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]{1,3})?$", "maxLength": _DIGITS_MAX}
_DECIMAL: Final = {"anyOf": [{"type": "number", "minimum": 0}, _DECIMAL_TEXT]}
_PART: Final = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, _DECIMAL_TEXT]}
UnitsPerSecond = Annotated[
    int,
    BeforeValidator(thousandths),
    WithJsonSchema(_DECIMAL | {"description": "Units per second, with at most three decimals."}),
]
Part = Annotated[
    int,
    BeforeValidator(thousandths),
    WithJsonSchema(_PART | {"description": "A part of one, such as 0.2, with at most three decimals."}),
]
# A pool with a headroom of 1 has nothing to sell.
_BELOW_ONE: Final = {"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, _DECIMAL_TEXT]}
Headroom = Annotated[
    int,
    BeforeValidator(thousandths),
    WithJsonSchema(_BELOW_ONE | {"description": "A part of the capacity that stays free, such as 0.1."}),
]
# As ms.
Seconds = Annotated[
    int,
    BeforeValidator(thousandths),
    WithJsonSchema(_DECIMAL | {"description": "With at most three decimals."}),
]
# A moment, or a span that counts from the start of the request's period.
When = Annotated[
    Moment | Annotated[str, Field(pattern=_SPAN, max_length=16)],
    WrapValidator(_either),
    WithJsonSchema(
        {
            "anyOf": [
                *MOMENT_SCHEMAS,
                {
                    "type": "string",
                    "pattern": _SPAN,
                    "maxLength": 16,
                    "description": "A span from the start: +90d.",
                },
            ]
        }
    ),
]


def resolved(when: int | str, starts_ms: int, param: str) -> int:
    """In ms. Raises Invalid where it ends after every calendar."""
    if isinstance(when, int):
        return when
    try:
        return after_ms(starts_ms, when)
    except (OverflowError, ValueError):
        raise Invalid(
            f"{when} after {utc(starts_ms)} is out of range: moments end with the year 9999.", param=param
        ) from None


def moment(moment_ms: int | None) -> str | None:
    """RFC 3339; null for none and for no end."""
    return None if moment_ms is None or moment_ms >= FOREVER_MS else utc(moment_ms)


def part(permille: int) -> str:
    """0.1 for 100."""
    return units(permille)


def shown(contract: Contract, tenant_names: Mapping[str, str], now_ms: int) -> dict[str, Any]:
    """A contract as JSON. `until` is the end as signed, `ends` the end after notice. `units`, overflow, cap
    and notice days are the current ones, `planned` what has been agreed for later.
    """
    terms = contract.terms
    clause = terms.clause_at(now_ms)
    return {
        "contract": contract.contract_id,
        "tenant": terms.tenant_id,
        "tenant_name": tenant_names.get(terms.tenant_id),
        "pool": terms.pool,
        "state": contract.state,
        "units": units(contract.mu_s_at(now_ms)),
        "burst_seconds": units(terms.burst_ms),
        "burst_units": units(burst_mu(contract.mu_s_at(now_ms), terms.burst_ms)),
        "steps": [{"from": utc(step.from_ms), "units": units(step.mu_s)} for step in terms.steps],
        "from": utc(terms.starts_ms),
        "until": utc(terms.ends_ms),
        "ends": utc(contract.effective_end_ms),
        "minimum_until": utc(terms.minimum_until_ms),
        "tenant_notice_days": clause.tenant_notice_days,
        "operator_notice_days": clause.operator_notice_days,
        "notice_by": contract.notice_by,
        "notice_given": moment(contract.notice_given_ms),
        "overflow": clause.overflow,
        "spill_units": _cap(clause),
        "planned": [
            {
                "from": utc(each.from_ms),
                "overflow": each.overflow,
                "spill_units": _cap(each),
                "tenant_notice_days": each.tenant_notice_days,
                "operator_notice_days": each.operator_notice_days,
            }
            for each in terms.later
            if now_ms < each.from_ms
        ],
        "headroom": part(terms.headroom_permille),
        "price_reference": terms.price_reference,
        "created": utc(contract.created_ms),
    }


def _cap(clause: Clause) -> str | None:
    return None if clause.spill_mu_s is None else units(clause.spill_mu_s)


def shown_entry(entry: ContractEvent, tenant_names: Mapping[str, str]) -> dict[str, Any]:
    """An entry of the history, with the contract after it. `detail`: what the contract does not show: null,
    or the weights of a `reweighed` one.
    """
    return {
        "at": utc(entry.at_ms),
        "change": entry.change,
        "by": entry.by,
        "after": shown(entry.after, tenant_names, entry.at_ms),
        "detail": entry.detail,
    }


def shown_span(span: Span) -> dict[str, Any]:
    """A rate over a time; `until` null: without an end."""
    return {"from": utc(span.from_ms), "until": moment(span.until_ms), "units": units(span.value)}
