"""The two clocks of the installation: Redis's, for requests and prices, and PostgreSQL's, for the rest of the
catalogue.
"""

import time
from typing import Final

import redis
from sqlalchemy import Connection

from billing.findings import Finding, FindingKind
from billing.schema.clock import database_now_ms
from billing.wire import redis_clock

# More than the two queries take, and less than would matter on a bill.
DIFFERENCE_MS_MAX: Final = 1_000


def difference_ms(connection: Connection, client: redis.Redis) -> int:
    """By how much, at least, PostgreSQL's clock is ahead of Redis's; the time of the queries counts for
    neither. Raises redis.RedisError.
    """
    began = time.monotonic()
    database_ms = database_now_ms(connection)
    ahead_ms = database_ms - redis_clock.now_ms(client)
    asked_ms = int((time.monotonic() - began) * 1000) + 1
    return max(0, ahead_ms) if ahead_ms >= 0 else min(0, ahead_ms + asked_ms)


def check_clocks(ahead_ms: int) -> list[Finding]:
    """A finding if they are too far apart."""
    if abs(ahead_ms) <= DIFFERENCE_MS_MAX:
        return []
    word = "ahead of" if ahead_ms > 0 else "behind"
    message = (
        f"PostgreSQL's clock is {abs(ahead_ms) / 1000:.1f} s {word} Redis's; set the clocks of both machines"
    )
    return [Finding(kind=FindingKind.CLOCKS_DIFFER, message=message)]
