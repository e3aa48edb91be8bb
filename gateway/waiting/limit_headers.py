"""The `x-ratelimit-*` headers, as OpenAI's clients read them, from the level of the tightest bucket. Pure.

Anthropic's routes have `anthropic-ratelimit-*`, too. `requests`, `tokens` and `units` (work units) each count
what their name says. What is not limited has no headers.
"""

import math
from datetime import UTC, datetime
from typing import Final

from billing.cell.replies import Levels
from billing.wire.limits import MU_PER_UNIT, Limit, LimitKind, Limits
from gateway.request import Dialect

# Each with its name in headers and its scale: work is counted in milliunits.
_SHOWN: Final = (
    (LimitKind.REQUESTS, b"requests", 1),
    (LimitKind.TOKENS, b"tokens", 1),
    (LimitKind.UNITS, b"units", MU_PER_UNIT),
)


def limit_headers(
    tenant: Limits, key: Limits, tenant_levels: Levels, key_levels: Levels, dialect: Dialect, now_ms: int
) -> list[tuple[bytes, bytes]]:
    """Limit, remaining, and when the bucket is full again, from the limit of tenant or key, minute or day,
    with the least remaining.
    """
    tightest: dict[LimitKind, tuple[float, Limit]] = {}
    for limits, levels in ((tenant, tenant_levels), (key, key_levels)):
        for limit, level in zip(limits.all, levels.levels, strict=False):
            known = tightest.get(limit.kind)
            if known is None or limit.amount - level < known[1].amount - known[0]:
                tightest[limit.kind] = (level, limit)
    headers: list[tuple[bytes, bytes]] = []
    for kind, name, scale in _SHOWN:
        if kind in tightest:
            level, limit = tightest[kind]
            reset_s = limit.window_s * level / limit.amount if limit.amount else limit.window_s
            reset_ms = math.ceil(reset_s * 1000)
            allowed = b"%d" % (limit.amount // scale)
            left = b"%d" % max(0, math.floor((limit.amount - level) / scale + 1e-6))
            headers += [
                (b"x-ratelimit-limit-" + name, allowed),
                (b"x-ratelimit-remaining-" + name, left),
                (b"x-ratelimit-reset-" + name, b"%dms" % reset_ms),
            ]
            if dialect is Dialect.ANTHROPIC:
                prefix = b"anthropic-ratelimit-" + name
                headers += [
                    (prefix + b"-limit", allowed),
                    (prefix + b"-remaining", left),
                    (prefix + b"-reset", _rfc_3339(now_ms + reset_ms)),
                ]
    return headers


def _rfc_3339(moment_ms: int) -> bytes:
    """The full second at or after a moment, so that it is never before the bucket is full."""
    return datetime.fromtimestamp(-(-moment_ms // 1000), UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
