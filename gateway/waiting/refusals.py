"""What the reserve script refuses, in words, and when to come back. Owns the texts; errors.py owns their
form.
"""

from secrets import randbelow
from typing import Final

from billing.cell.replies import LimitScope, NoContract, NoRight, Refused, ReserveReply
from billing.wire.limits import FIELDS, LimitKind, Limits
from gateway.errors import GatewayError, NoContractHere, PermissionDenied, QuotaExceeded
from gateway.request import Dialect
from gateway.waiting.limit_headers import limit_headers

# All who are refused at one moment wait for the same one: told just that, a crowd would come back as one.
SPREAD_MS_MIN: Final = 250
_MESSAGES: Final = {
    LimitKind.CANCELS: "Too many requests were left before their first token.",
    LimitKind.CONTRACT: "The contract's capacity is in use.",
    LimitKind.ROOM: "There is no room now, and too many requests wait already.",
}
_CROWDS: Final = (LimitKind.CONTRACT, LimitKind.ROOM)


def refusal(
    reply: ReserveReply, tenant_limits: Limits, key_limits: Limits, dialect: Dialect, now_ms: int
) -> GatewayError:
    """What a request that is not admitted is told; the limits are those that it was held against."""
    match reply:
        case Refused():
            error = quota_exceeded(reply, tenant_limits if reply.scope is LimitScope.TENANT else key_limits)
            error.limit_headers = limit_headers(
                tenant_limits, key_limits, reply.tenant, reply.key, dialect, now_ms
            )
            return error
        case NoContract():
            return NoContractHere()
        case NoRight():
            return PermissionDenied("This account has no on-demand right, and no contract for this model.")
    raise AssertionError("request ids are ours and new")


def quota_exceeded(reply: Refused, limits: Limits) -> QuotaExceeded:
    """Which limit, and when it has room again."""
    message = _MESSAGES.get(reply.limit) or _limit_reached(reply, limits)
    retry_ms = reply.retry_after_ms
    if retry_ms is not None and reply.limit in _CROWDS:
        retry_ms = spread(retry_ms)
    return QuotaExceeded(reply.limit.value, message, retry_ms)


def _limit_reached(reply: Refused, limits: Limits) -> str:
    limit = next(each for each in FIELDS if (each.kind, each.window_s) == (reply.limit, reply.window_s))
    amount = (limits.amount(limit.kind, limit.window_s) or 0) // limit.scale
    return f"Limit of this {reply.scope.value} reached: {amount} {limit.words}."


def spread(retry_ms: int) -> int:
    """Not before it helps, and not all at once."""
    return retry_ms + randbelow(max(SPREAD_MS_MIN, retry_ms // 4) + 1)
