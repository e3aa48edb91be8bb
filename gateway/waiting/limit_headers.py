"""The `x-ratelimit-*` headers, as OpenAI's clients read them, from how full the tightest bucket is. Pure.

On Anthropic's routes `anthropic-ratelimit-*` stand beside them.

`requests` counts requests a minute, `tokens` work units a minute. A bucket without a limit has no headers.
"""

import math
from datetime import UTC, datetime

from billing.cell.replies import Levels
from billing.cell.scripts import Limits
from gateway.catalogue.entries import MILLIUNITS
from gateway.request import Dialect


def limit_headers(
    tenant: Limits, key: Limits, tenant_levels: Levels, key_levels: Levels, dialect: Dialect, now_ms: int
) -> list[tuple[bytes, bytes]]:
    """Limit, remaining and when the bucket is full again; of tenant and key whichever has less left."""
    headers: list[tuple[bytes, bytes]] = []
    buckets_of = ((tenant, tenant_levels), (key, key_levels))
    requests = [(limits.requests, levels.requests) for limits, levels in buckets_of if limits.requests >= 0]
    units = [
        (limits.units_mu / MILLIUNITS, levels.units_mu / MILLIUNITS)
        for limits, levels in buckets_of
        if limits.units_mu >= 0
    ]
    for name, buckets in ((b"requests", requests), (b"tokens", units)):
        if buckets:
            limit, level = min(buckets, key=lambda bucket: bucket[0] - bucket[1])
            reset_s = 60 * level / limit if limit else 60.0
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
