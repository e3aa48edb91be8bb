"""A loop that survives failures: it repeats a step, backs off while the step fails, logs that, and stops when
it is told to.

It owns time and failure; it does not know what the step does.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import redis
from sqlalchemy.exc import SQLAlchemyError

from billing.metrics import BillingMetrics
from billing.wire.redis_server import login_refused

_log = logging.getLogger(__name__)

_BACKOFF_FIRST_S: Final = 0.1
# The return of Redis or PostgreSQL is noticed within this time.
_BACKOFF_MAX_S: Final = 5.0


class Loop:
    """Calls `step` once per `interval_ms`, and at once again if it returns true: there is more to do.

    Steps begin when the clock is a multiple of the interval, so that loops wake together: several share one
    reading, and a busy processor runs the next step for less. After a step it rests for at least `rest_ms`,
    so that small pieces are collected.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], bool],
        *,
        interval_ms: int,
        metrics: BillingMetrics,
        rest_ms: int = 0,
    ) -> None:
        self.name = name
        self._step = step
        self._interval_s = interval_ms / 1000
        self._rest_s = rest_ms / 1000
        self._degraded = metrics.degraded.labels(name)
        self._degraded.set(0)

    def run(self, stop: threading.Event) -> None:
        """Runs until stopped; a step that has begun is finished."""
        backoff_s = 0.0
        while not stop.is_set():
            try:
                more = self._step()
            except (redis.RedisError, SQLAlchemyError, OSError) as exc:
                backoff_s = self._failed(backoff_s)
                # A refused login to Redis stops every loop: `redis_watch` logs it once for all.
                _log.log(
                    logging.DEBUG if login_refused(exc) else logging.ERROR,
                    "%s cannot work, again in %.1f s: %s: %s",
                    self.name,
                    backoff_s,
                    type(exc).__name__,
                    _first_line(exc),
                )
            except Exception:
                # A bug, or something unforeseen. This loop and the others continue: a billing process that
                # silently stands still would be worse.
                backoff_s = self._failed(backoff_s)
                _log.exception("%s failed, again in %.1f s", self.name, backoff_s)
            else:
                if backoff_s:
                    _log.warning("%s works again", self.name)
                    self._degraded.set(0)
                    backoff_s = 0.0
                if more:
                    continue
            stop.wait(backoff_s or max(self._rest_s, self._until_next_s()))

    def _until_next_s(self) -> float:
        return self._interval_s - time.monotonic() % self._interval_s if self._interval_s else 0.0

    def _failed(self, backoff_s: float) -> float:
        self._degraded.set(1)
        return min(_BACKOFF_MAX_S, backoff_s * 2 or _BACKOFF_FIRST_S)


class Seldom:
    """A rhythm for a step that finds something new only after something has happened: each time while it does
    and once after that, then every `every`-th time.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._calm = 0

    def is_due(self, *, calm: bool) -> bool:
        """Whether the step is to be done this time."""
        self._calm = self._calm + 1 if calm else 0
        return self._calm <= 1 or self._calm % self._every == 0


def _first_line(exc: Exception) -> str:
    """Without the parameters of a statement, which SQLAlchemy writes on further lines."""
    return (str(exc).splitlines() or [""])[0]
