"""The errors for what the reserve script refuses: the text, and when to retry. errors.py owns their form."""

from secrets import randbelow
from typing import Final

from billing.cell.replies import LimitReached, LimitScope, NoContract, NoRight, ReserveReply
from billing.wire.limits import FIELDS, LimitKind, Limits
from gateway.errors import GatewayError, NoContractHere, PermissionDenied, QuotaExceeded
from gateway.request import Dialect
from gateway.waiting.limit_headers import limit_headers

# Retry-After gets jitter, so that rejected clients do not retry in lockstep.
JITTER_MS_MIN: Final = 250
_MESSAGES: Final = {
    LimitKind.CANCELS: "Too many requests were cancelled before their first token.",
    LimitKind.CONTRACT: "The contract's capacity is in use.",
    LimitKind.ROOM: "No slot is free, and too many requests of this account wait already.",
}
_CROWDS: Final = (LimitKind.CONTRACT, LimitKind.ROOM)


def refusal(
    reply: ReserveReply, tenant_limits: Limits, key_limits: Limits, dialect: Dialect, now_ms: int
) -> GatewayError:
    """The error for a request that is not admitted. The limits are those that it was checked against."""
    match reply:
        case LimitReached():
            error = quota_exceeded(reply, tenant_limits if reply.scope is LimitScope.TENANT else key_limits)
            error.limit_headers = limit_headers(
                tenant_limits, key_limits, reply.tenant, reply.key, dialect, now_ms
            )
            return error
        case NoContract():
            return NoContractHere()
        case NoRight():
            return PermissionDenied(
                "This account may not use on-demand or flex capacity, and no contract covers this request."
            )
    raise AssertionError("request ids are ours and new")


def quota_exceeded(reply: LimitReached, limits: Limits) -> QuotaExceeded:
    """Names the limit, and when it has room again."""
    message = _MESSAGES.get(reply.limit) or _limit_reached(reply, limits)
    retry_ms = reply.retry_after_ms
    if retry_ms is not None and reply.limit in _CROWDS:
        retry_ms = with_jitter(retry_ms)
    return QuotaExceeded(reply.limit.value, message, retry_ms)


def _limit_reached(reply: LimitReached, limits: Limits) -> str:
    limit = next(each for each in FIELDS if (each.kind, each.window_s) == (reply.limit, reply.window_s))
    amount = (limits.amount(limit.kind, limit.window_s) or 0) // limit.scale
    return f"Limit of this {reply.scope.value} reached: {amount} {limit.words}."


def with_jitter(retry_ms: int) -> int:
    """`retry_ms` and up to a quarter more."""
    return retry_ms + randbelow(max(JITTER_MS_MIN, retry_ms // 4) + 1)
