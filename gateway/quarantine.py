"""Requests that were running on two engines when these died are not tried again for a while: one of them may
be what kills engines.

A request is known by a keyed hash of its tenant, route and body, so that neither Redis nor a log has its
content. Gateways share these hashes through Redis; each reads them once a second.
"""

import hashlib
import hmac
import logging
from collections.abc import Callable
from typing import Final

import orjson

from billing.wire import redis_keys
from gateway.errors import RequestQuarantined
from gateway.exchange import Exchange
from gateway.redis.pipe import RedisPipe
from gateway.request import ParsedRequest

log = logging.getLogger(__name__)

ENGINES_LOST_MAX: Final = 2
QUARANTINE_MS: Final = 600_000
# Of these the last ones count.
_HELD_MAX: Final = 1000


class Quarantine:
    """As one process knows it. `salt`: a tenant's, in hex. `now_ms`: by the clock of Redis."""

    def __init__(self, redis: RedisPipe, salt: Callable[[str], str], now_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._salt = salt
        self._now_ms = now_ms
        self._held: dict[str, int] = {}

    def check(self, parsed: ParsedRequest, tenant: str) -> None:
        """Raises RequestQuarantined for a request that is in it."""
        if not self._held:
            return
        left_ms = self._held.get(self._digest(parsed, tenant), 0) - self._now_ms()
        if left_ms > 0:
            raise RequestQuarantined(left_ms)

    def add(self, exchange: Exchange) -> None:
        """Put it in, for all gateways. Best effort: nothing waits for Redis."""
        first = exchange.first_part
        digest = self._digest(first.parsed, first.head.tenant)
        until_ms = self._held[digest] = self._now_ms() + QUARANTINE_MS
        log.error(
            "a request was on two engines when they died: it is not tried again for now",
            extra={"request_id": first.request_id, "for_s": QUARANTINE_MS // 1000},
        )
        self._redis.send("ZADD", redis_keys.QUARANTINE, until_ms, digest)
        self._redis.send("ZREMRANGEBYRANK", redis_keys.QUARANTINE, 0, -_HELD_MAX - 1)
        self._redis.send("PEXPIRE", redis_keys.QUARANTINE, QUARANTINE_MS)

    async def refresh(self) -> None:
        """Read what other gateways have put in. Raises RedisUnavailable."""
        raw = await self._redis.execute(
            "ZRANGE", redis_keys.QUARANTINE, self._now_ms(), "+inf", "BYSCORE", "WITHSCORES"
        )
        self._held = {digest.decode(): int(until) for digest, until in zip(raw[::2], raw[1::2], strict=True)}

    def _digest(self, parsed: ParsedRequest, tenant: str) -> str:
        said = orjson.dumps([parsed.route.name.value, parsed.model, parsed.body], option=orjson.OPT_SORT_KEYS)
        return hmac.digest(bytes.fromhex(self._salt(tenant)), said, hashlib.sha256).hex()
