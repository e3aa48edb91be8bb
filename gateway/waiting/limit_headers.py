"""The `x-ratelimit-*` headers, as OpenAI's clients read them, from how full the tightest bucket is. Pure.

On Anthropic's routes `anthropic-ratelimit-*` stand beside them.

`requests` counts requests a minute, `tokens` work units a minute. A bucket without a limit has no headers.
"""

import math
from datetime import UTC, datetime
from typing import Final

from billing.cell.replies import Levels
from billing.wire.limits import FIELDS, MINUTE_S, LimitKind, Limits
from gateway.request import Dialect

_SHOWN: Final = tuple(
    (name, field)
    for name, kind in ((b"requests", LimitKind.REQUESTS), (b"tokens", LimitKind.UNITS))
    for field in FIELDS
    if (field.kind, field.window_s) == (kind, MINUTE_S)
)


def limit_headers(
    tenant: Limits, key: Limits, tenant_levels: Levels, key_levels: Levels, dialect: Dialect, now_ms: int
) -> list[tuple[bytes, bytes]]:
    """Limit, remaining and when the bucket is full again; of tenant and key whichever has less left."""
    headers: list[tuple[bytes, bytes]] = []
    for name, field in _SHOWN:
        buckets = [
            (limit.amount / field.scale, level / field.scale)
            for limits, levels in ((tenant, tenant_levels), (key, key_levels))
            for limit, level in zip(limits.all, levels.levels, strict=False)
            if (limit.kind, limit.window_s) == (field.kind, field.window_s)
        ]
        if buckets:
            limit, level = min(buckets, key=lambda bucket: bucket[0] - bucket[1])
            reset_s = field.window_s * level / limit if limit else field.window_s
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
