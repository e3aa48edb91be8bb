"""The `x-ratelimit-*` headers, as OpenAI's clients read them, from how full the tightest bucket is. Pure.

`requests` counts requests a minute, `tokens` work units a minute. A bucket without a limit has no headers.
"""

import math

from billing.cell.replies import Levels
from billing.cell.scripts import Limits
from gateway.catalogue_entries import MILLIUNITS


def limit_headers(tenant: Limits, key: Limits, tenant_levels: Levels, key_levels: Levels) -> list[tuple[bytes, bytes]]:
    """Limit, remaining and time to a full bucket; of tenant and key whichever has less left."""
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
            headers += [
                (b"x-ratelimit-limit-" + name, b"%d" % limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % max(0, math.floor(limit - level + 1e-6))),
                (b"x-ratelimit-reset-" + name, b"%dms" % math.ceil(reset_s * 1000)),
            ]
    return headers
