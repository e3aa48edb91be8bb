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

# The headers of each kind, and its scale: work is counted in milliunits.
_SHOWN: Final = tuple(
    (
        kind,
        scale,
        tuple(b"x-ratelimit-%b-%b" % (what, name) for what in (b"limit", b"remaining", b"reset")),
        tuple(b"anthropic-ratelimit-%b-%b" % (name, what) for what in (b"limit", b"remaining", b"reset")),
    )
    for kind, name, scale in (
        (LimitKind.REQUESTS, b"requests", 1),
        (LimitKind.TOKENS, b"tokens", 1),
        (LimitKind.UNITS, b"units", MU_PER_UNIT),
    )
)


def limit_headers(
    tenant: Limits, key: Limits, tenant_levels: Levels, key_levels: Levels, dialect: Dialect, now_ms: int
) -> list[tuple[bytes, bytes]]:
    """Limit, remaining, and when the bucket is full again, from the limit of tenant or key with the least
    remaining.
    """
    known = [*zip(tenant.all, tenant_levels.levels, strict=False)]
    known += zip(key.all, key_levels.levels, strict=False)
    headers: list[tuple[bytes, bytes]] = []
    for kind, scale, names, anthropic_names in _SHOWN:
        tightest, its_level = None, 0.0
        for limit, level in known:
            if limit.kind is kind and (
                tightest is None or limit.amount - level < tightest.amount - its_level
            ):
                tightest, its_level = limit, level
        if tightest is None:
            continue
        amount, window_s = tightest.amount, tightest.window_s
        reset_ms = math.ceil((window_s * its_level / amount if amount else window_s) * 1000)
        allowed = b"%d" % (amount // scale)
        left = b"%d" % max(0, math.floor((amount - its_level) / scale + 1e-6))
        headers += zip(names, (allowed, left, b"%dms" % reset_ms), strict=True)
        if dialect is Dialect.ANTHROPIC:
            headers += zip(anthropic_names, (allowed, left, _rfc_3339(now_ms + reset_ms)), strict=True)
    return headers


def _rfc_3339(moment_ms: int) -> bytes:
    """The full second at or after a moment, so that it is never before the bucket is full."""
    return datetime.fromtimestamp(-(-moment_ms // 1000), UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
