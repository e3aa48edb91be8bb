"""One request as the scripts see it, for the tests of a cell: its keys, its event, and a call for each
step of its life.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from msgspec.structs import asdict, replace

from billing.cell import replies, scripts
from billing.cell.execute import execute
from billing.wire import redis_keys
from billing.wire.attribution import attribute
from billing.wire.ending import Ending
from billing.wire.limits import MINUTE_S, WHILE_OPEN, Limit, LimitKind, Limits
from billing.wire.tokens import Delivered, Tokens, Weights
from billing.wire.usage_event import CapacityClass, EventHead, UsageEvent, UsageSource

CELL = "pool-1"
LEASE_MS = 10_000
WEIGHTS = Weights(version=1, w_in_mu=1000, w_cached_mu=100, w_out_mu=4000)


class Drained:
    """A figure from which so much drains each millisecond, since this was made: however long the machine
    took for the steps of a test.
    """

    def __init__(self, per_ms: float) -> None:
        self._per_ms = per_ms
        self._began_s = time.monotonic()

    def __call__(self, figure: float) -> Any:
        """What is left of it now, for a comparison."""
        half = self._per_ms * (1 + (time.monotonic() - self._began_s) * 500)
        return pytest.approx(figure - half, abs=half + self._per_ms)


def empty(client: redis.Redis) -> None:
    """The cell as it is before anybody has asked it for anything."""
    client.flushdb()
    client.set(redis_keys.intact(CELL), "a test")


def limits_of(
    requests: int | None = None, units_mu: int | None = None, concurrency: int | None = None
) -> Limits:
    """Limits of a minute, and of what is open at once; None or less than 0 for no limit."""
    given = (
        (LimitKind.REQUESTS, MINUTE_S, requests),
        (LimitKind.UNITS, MINUTE_S, units_mu),
        (LimitKind.CONCURRENCY, WHILE_OPEN, concurrency),
    )
    return Limits(
        tuple(
            Limit(kind, window_s, amount)
            for kind, window_s, amount in given
            if amount is not None and amount >= 0
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRequest:
    """A request of a tenant and key for a model; every step runs against real Redis."""

    client: redis.Redis
    request_id: str
    tenant: str = "acme"
    key_id: str = "key-1"
    model: str = "org/m:1"
    tenant_limits: Limits = field(default_factory=Limits)
    key_limits: Limits = field(default_factory=Limits)
    asked: scripts.Tier = scripts.Tier.AUTO
    on_demand: bool = True
    weight: int = 1
    sequences: int = 1
    gateway: str = "gw-1"
    wait_max: int = 0
    cancels_per_minute: int = -1
    tokens: int = 0
    prompt_mu: int = 0
    prefers: str = ""
    cached_mu: int = 0
    candidates: tuple[tuple[str, str], ...] = (("i-1", "e-1"),)

    @property
    def claim(self) -> scripts.Claim:
        return scripts.Claim(
            tenant=self.tenant,
            candidates=self.candidates,
            asked=self.asked,
            on_demand=self.on_demand,
            weight=self.weight,
            sequences=self.sequences,
            gateway=self.gateway,
            wait_max=self.wait_max,
            cancels_per_minute=self.cancels_per_minute,
            tokens=self.tokens,
            prompt_mu=self.prompt_mu,
            prefers=self.prefers,
            cached_mu=self.cached_mu,
        )

    @property
    def reservation(self) -> str:
        """The key of its reservation."""
        return redis_keys.reservation(CELL, self.request_id)

    @property
    def usage_stream(self) -> str:
        """The key of its cell's usage events."""
        return redis_keys.usage_stream(CELL)

    @property
    def keys(self) -> scripts.CellKeys:
        return scripts.CellKeys.of(
            CELL, request_id=self.request_id, tenant=self.tenant, key_id=self.key_id, model=self.model
        )

    @property
    def head(self) -> EventHead:
        return EventHead(
            request_id=self.request_id,
            tenant=self.tenant,
            project="p",
            key_id=self.key_id,
            model=self.model,
            pool=CELL,
            cell=CELL,
            instance="i-1",
            epoch="e-1",
            route="chat",
            stream=True,
            class_=CapacityClass.ON_DEMAND,
            contract=None,
            weights=WEIGHTS,
            samples=1,
            started_ms=1_780_000_000_000,
            gateway=self.gateway,
        )

    def event(self, ending: Ending, usage: Tokens, units_mu: int) -> UsageEvent:
        share = attribute(ending, usage)
        return UsageEvent(
            **asdict(self.head),
            ending=ending,
            usage_source=UsageSource.ENGINE,
            produced=share.produced,
            billed=share.billed,
            absorbed=share.absorbed,
            units_mu=units_mu,
            http_status=200,
            ended_ms=1_780_000_001_000,
            first_token_ms=None,
            waited_ms=0,
            delivered=Delivered(0),
            anomaly=None,
        )

    def reserve_command(self, cost_mu: int = 0) -> scripts.Command:
        crash_event = self.event(Ending.GATEWAY_DIED, Tokens(0, 0, 0), 0).crash_event_json()
        return scripts.reserve_call(
            self.keys, lease_ms=LEASE_MS, cost_mu=cost_mu, tenant=self.tenant_limits, key=self.key_limits,
            claim=self.claim, head=self.head.admission_json(), crash_event=crash_event,
        )  # fmt: skip

    def restore_command(self, cost_mu: int) -> scripts.Command:
        """What a gateway asks whose running request Redis has lost."""
        crash_event = self.event(Ending.GATEWAY_DIED, Tokens(0, 0, 0), 0).crash_event_json()
        return scripts.reserve_call(
            self.keys, lease_ms=LEASE_MS, cost_mu=cost_mu, tenant=self.tenant_limits, key=self.key_limits,
            claim=replace(self.claim, restored=True), head=self.head.to_json(), crash_event=crash_event,
        )  # fmt: skip

    def settle_command(
        self,
        cost_mu: int = 0,
        usage: Tokens | None = None,
        *,
        cancelled: bool = False,
        ending: Ending = Ending.COMPLETE,
    ) -> scripts.Command:
        event = self.event(ending, usage or Tokens(3, 0, 2), cost_mu)
        return scripts.settle_call(
            self.keys,
            cost_mu=cost_mu,
            tokens=event.charged_tokens,
            event=event.to_json(),
            cancelled=cancelled,
        )

    def reserve(self, cost_mu: int = 0) -> replies.ReserveReply:
        return replies.parse_reserve(execute(self.client, self.reserve_command(cost_mu)))

    def settle(
        self, cost_mu: int = 0, usage: Tokens | None = None, *, cancelled: bool = False
    ) -> replies.SettleReply:
        return replies.parse_settle(
            execute(self.client, self.settle_command(cost_mu, usage, cancelled=cancelled))
        )

    def leave(self, *, refused: bool = False, withdrawn: bool = False) -> replies.LeftQueue:
        call = scripts.leave_call(self.keys, refused=refused, withdrawn=withdrawn)
        return replies.parse_leave(execute(self.client, call))

    def checkpoint(
        self,
        usage: Tokens,
        cost_mu: int,
        head: bytes = b"",
        moved_to: tuple[str, str] = ("", ""),
        *,
        pauses: bool = False,
    ) -> replies.CheckpointReply:
        command = scripts.checkpoint_call(
            self.keys, lease_ms=LEASE_MS, cost_mu=cost_mu, produced=usage, delivered_output=usage.output,
            crash_event=self.event(Ending.GATEWAY_DIED, usage, 0).crash_event_json(), head=head,
            moved_to=moved_to, pauses=pauses,
        )  # fmt: skip
        return replies.parse_checkpoint(execute(self.client, command))

    def reap(self, watched_lease_ms: int = 0) -> replies.ReapReply:
        return replies.parse_reap(
            execute(self.client, scripts.reap_call(CELL, self.request_id, watched_lease_ms))
        )

    def let_lease_pass(self) -> None:
        """Age the state instead of waiting."""
        self.client.hset(self.reservation, "lease", 1_780_000_000_000)
        self.client.zadd(self.keys.open_requests, {self.request_id: 1_780_000_000_000})

    def tenant_level(self, name: str) -> float:
        return float(self.client.hget(self.keys.tenant_bucket, name) or 0)

    def key_level(self, name: str) -> float:
        return float(self.client.hget(self.keys.key_bucket, name) or 0)


def age_bucket(client: redis.Redis, key: str, seconds: float) -> None:
    """Make a bucket's last drain lie further back, as if so much time had passed."""
    client.hset(key, "t", int(float(client.hget(key, "t") or 0) - seconds * 1_000_000))


def usage_events(client: redis.Redis) -> list[dict[str, Any]]:
    """What is in the usage stream, oldest first."""
    entries: list[tuple[str, dict[str, str]]] = client.xrange(redis_keys.usage_stream(CELL))  # type: ignore[assignment]
    return [json.loads(fields[redis_keys.USAGE_FIELD]) for _, fields in entries]


def charged_by_events(client: redis.Redis) -> int:
    """What the ledger will say was charged. An orphan had no reservation to say what it was charged to."""
    return sum(event["units_mu"] for event in usage_events(client) if not event.get("orphan"))
