"""The `x-ratelimit-*` headers, as OpenAI's clients read them, from the level of the tightest bucket. Pure.

Anthropic's routes have `anthropic-ratelimit-*`, too. `requests`, `tokens` and `units` (work units) each count
what their name says. What is not limited has no headers.
"""

import math
from datetime import UTC, datetime
from typing import Final

from billing.cell.replies import Levels
from billing.wire.limits import MU_PER_UNIT, LimitKind, Limits
from gateway.request import Dialect

_SHOWN: Final = tuple(
    (kind.value.encode(), kind) for kind in (LimitKind.REQUESTS, LimitKind.TOKENS, LimitKind.UNITS)
)


def limit_headers(
    tenant: Limits, key: Limits, tenant_levels: Levels, key_levels: Levels, dialect: Dialect, now_ms: int
) -> list[tuple[bytes, bytes]]:
    """Limit, remaining and when the bucket is full again; of tenant and key, minute and day, whichever has
    least left.
    """
    headers: list[tuple[bytes, bytes]] = []
    found = [
        *zip(tenant.all, tenant_levels.levels, strict=False),
        *zip(key.all, key_levels.levels, strict=False),
    ]
    for name, kind in _SHOWN:
        scale = MU_PER_UNIT if kind is LimitKind.UNITS else 1
        buckets = [
            (each.amount / scale, level / scale, each.window_s) for each, level in found if each.kind is kind
        ]
        if buckets:
            limit, level, window_s = min(buckets, key=lambda bucket: bucket[0] - bucket[1])
            reset_s = window_s * level / limit if limit else window_s
            reset_ms = math.ceil(reset_s * 1000)
            allowed, left = b"%d" % limit, b"%d" % max(0, math.floor(limit - level + 1e-6))
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
    """The whole second at or after a moment: never before the bucket is full."""
    return datetime.fromtimestamp(-(-moment_ms // 1000), UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
