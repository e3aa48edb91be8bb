"""Whether this process can serve requests, and why not: the answer of `/readyz`, and a log line when it
changes.

It owns the reasons and their texts. They are read without a key, so they name settings and states, never an
address or a tenant.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Final

from gateway.catalogue.feed import Catalogue
from gateway.lifecycle import Lifecycle
from gateway.redis.journal import Journal
from gateway.redis.pipe import RedisPipe
from gateway.redis.unsynced import UnsyncedSettles
from gateway.waiting.outage import OutageLeases

log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
# Failures of a server that may recover by itself. Any other failure needs an operator.
_AWAY: Final = (
    "busy", "cannot connect", "closed", "clusterdown", "connection lost", "loading", "masterdown", "misconf",
    "noreplicas", "oom", "protocol", "readonly", "timeout", "tryagain",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is wrong: a code for programs, a sentence for people."""

    code: str
    message: str

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message}


STOPPING: Final = Reason("stopping", "The process has been told to stop.")
STARTING: Final = Reason("starting", "The catalogue has not been read from Redis yet.")
NOT_PROJECTED: Final = Reason("no_catalogue", "Redis holds no catalogue: billing has not written it yet.")
REDIS_AWAY: Final = Reason("redis_unavailable", "Redis does not answer.")
REDIS_REFUSES: Final = Reason(
    "redis_refused", "Redis cannot be used as TAAS_REDIS_URL says: the gateway's log has the reason."
)
JOURNAL_FULL: Final = Reason(
    "journal_full",
    "The journal takes no more settles (its disk may be full), so that nothing may be admitted.",
)

NOT_DURABLE: Final = Reason(
    "not_durable",
    "A crash of Redis's machine may lose the last seconds of usage: Redis does not confirm what is on its "
    "disk (Redis or Valkey 7.2 with appendonly yes) or in a replica.",
)


@dataclass(frozen=True, slots=True)
class Report:
    """`reasons`: why no request should be sent here. `degraded`: what is wrong although requests are
    served.
    """

    reasons: tuple[Reason, ...]
    degraded: tuple[Reason, ...]

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """The body of `/readyz`."""
        return {
            "ready": self.ready,
            "reasons": [reason.to_json() for reason in self.reasons],
            "degraded": [reason.to_json() for reason in self.degraded],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Reads the parts of one process; it changes none."""

    lifecycle: Lifecycle
    catalogue: Catalogue
    redis: RedisPipe
    journal: Journal
    outage: OutageLeases
    unsynced: UnsyncedSettles

    def report(self) -> Report:
        """The current state."""
        reasons: list[Reason] = []
        degraded: list[Reason] = []
        if self.lifecycle.draining:
            reasons.append(STOPPING)
        if self.journal.full:
            reasons.append(JOURNAL_FULL)
        redis = self._redis_trouble()
        if redis is REDIS_AWAY and any(map(self.outage.may_serve, self.catalogue.tenants_seen())):
            degraded.append(redis)
        elif redis is not None:
            reasons.append(redis)
        if not self.unsynced.promised:
            degraded.append(NOT_DURABLE)
        return Report(tuple(reasons), tuple(degraded))

    async def watch(self) -> None:
        """Log the state, and each change; until cancelled."""
        told: tuple[list[str], list[str]] | None = None
        while True:
            report = self.report()
            codes = [reason.code for reason in report.reasons], [reason.code for reason in report.degraded]
            if codes != told:
                told = codes
                self._tell(report)
            await asyncio.sleep(LOOK_S)

    def _tell(self, report: Report) -> None:
        said = " ".join(reason.message for reason in (*report.reasons, *report.degraded))
        redis = {} if self.redis.failure is None else {"redis": self.redis.failure}
        if not report.ready:
            log.warning("not ready", extra={"reason": said, **redis})
        elif report.degraded:
            log.warning("ready, degraded", extra={"reason": said, **redis})
        else:
            log.info("ready")

    def _redis_trouble(self) -> Reason | None:
        """Why the catalogue is missing or out of date."""
        if self.catalogue.loaded and self.catalogue.fresh:
            return None
        failure = self.redis.failure
        if failure is not None:
            return REDIS_AWAY if failure.startswith(_AWAY) else REDIS_REFUSES
        if self.catalogue.not_projected:
            return NOT_PROJECTED
        return REDIS_AWAY if self.catalogue.loaded else STARTING
