"""Warns the operator, in the log of billing, when Redis refuses the login or may lose acknowledged data. It
repairs nothing.
"""

import logging
from typing import Final

import redis

from billing.wire.redis_address import RedisAddress
from billing.wire.redis_server import WrongRedis, durability_warnings, examine, login_refused, trouble

_log = logging.getLogger(__name__)

# The first check is at the start; later ones notice a password or a setting that was changed meanwhile.
REDIS_WATCH_INTERVAL_MS: Final = 10_000


class RedisWatch:
    """One per process. It reports each problem once, and again if it returns."""

    def __init__(self, client: redis.Redis, address: RedisAddress) -> None:
        self._client = client
        self._address = address
        self._reported: list[str] = []

    def step(self) -> bool:
        """A loop's step. Raises redis.RedisError if Redis does not answer, which the loop logs."""
        try:
            examine(self._client, self._address)
            found = durability_warnings(self._client)
        except WrongRedis as exc:
            found = [str(exc)]
        except redis.RedisError as exc:
            if login_refused(exc):
                self._report([trouble(self._address, exc)])
            raise
        self._report(found)
        return False

    def _report(self, found: list[str]) -> None:
        for line in found:
            if line not in self._reported:
                _log.warning("%s", line)
        self._reported = found
