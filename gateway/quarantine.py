"""A request with which two engines died is not tried again for a while, as it may be what kills them.

A request is known by a keyed hash of its tenant, route and body, so that neither Redis nor a log has its
content. Gateways share through Redis which engines died with it; each reads that once a second. A request
that an engine answers to its end kills none, and is forgotten.
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
        # By request, the engines that died with it, and until when that counts.
        self._died: dict[str, dict[str, int]] = {}

    def check(self, parsed: ParsedRequest, tenant: str) -> None:
        """Raises RequestQuarantined for a request that is in it."""
        if not self._died:
            return
        died = self._died.get(self._digest(parsed, tenant), {})
        if len(died) >= ENGINES_LOST_MAX:
            left_ms = sorted(died.values())[-ENGINES_LOST_MAX] - self._now_ms()
            if left_ms > 0:
                raise RequestQuarantined(left_ms)

    def died_with(self, exchange: Exchange) -> None:
        """Note, for all gateways, that its engine died. Best effort: nothing waits for Redis."""
        first, instance = exchange.first_part, exchange.attempt.instance
        digest, engine = (
            self._digest(first.parsed, first.head.tenant),
            f"{instance.instance}/{instance.epoch}",
        )
        until_ms = self._now_ms() + QUARANTINE_MS
        died = self._died.setdefault(digest, {})
        died[engine] = until_ms
        if len(died) >= ENGINES_LOST_MAX:
            log.error(
                "two engines died with a request: it is not tried again for now",
                extra={"request_id": first.request_id, "for_s": QUARANTINE_MS // 1000},
            )
        self._redis.send("ZADD", redis_keys.QUARANTINE, until_ms, f"{digest} {engine}")
        self._redis.send("ZREMRANGEBYRANK", redis_keys.QUARANTINE, 0, -_HELD_MAX - 1)
        self._redis.send("PEXPIRE", redis_keys.QUARANTINE, QUARANTINE_MS)

    def answered(self, exchange: Exchange) -> None:
        """Forget it: an engine has answered it to its end."""
        if not self._died:
            return
        first = exchange.first_part
        digest = self._digest(first.parsed, first.head.tenant)
        if died := self._died.pop(digest, None):
            self._redis.send("ZREM", redis_keys.QUARANTINE, *(f"{digest} {engine}" for engine in died))

    async def refresh(self) -> None:
        """Read what other gateways have noted. Raises RedisUnavailable."""
        raw = await self._redis.execute(
            "ZRANGE", redis_keys.QUARANTINE, self._now_ms(), "+inf", "BYSCORE", "WITHSCORES"
        )
        died: dict[str, dict[str, int]] = {}
        for noted, until_ms in zip(raw[::2], raw[1::2], strict=True):
            digest, _, engine = noted.decode().partition(" ")
            died.setdefault(digest, {})[engine] = int(until_ms)
        self._died = died

    def _digest(self, parsed: ParsedRequest, tenant: str) -> str:
        said = orjson.dumps([parsed.route.name.value, parsed.model, parsed.body], option=orjson.OPT_SORT_KEYS)
        return hmac.digest(bytes.fromhex(self._salt(tenant)), said, hashlib.sha256).hex()
