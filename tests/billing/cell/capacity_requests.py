"""The requests of the capacity machine: tenant, gateway and whether it can go on follow from its number,
so that a step needs to name no more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis
from msgspec.structs import replace

from billing.cell.replies import AlreadySettled, LimitReached, Replayed, Reserved, Waiting
from billing.cell.scripts import Claim, Tier
from tests.billing.cell import plan
from tests.billing.cell.capacity_model import TenantLimits
from tests.billing.cell.requests import CellRequest, limits_of

# The third has a contract: less work a minute than the contract alone may take in a burst.
LIMITS = {
    "a": TenantLimits(cancels=2),
    "b": TenantLimits(concurrency=2),
    "c": TenantLimits(concurrency=4, units_mu=45_000),
}

# What the model says, as replies.
KINDS: dict[str, type[Any]] = {
    "settled": AlreadySettled, "replayed": Replayed, "open": Reserved, "waiting": Waiting,
    "concurrency": LimitReached, "cancels": LimitReached, "units": LimitReached, "room": LimitReached,
}  # fmt: skip


def number_of(request_id: str) -> int:
    return int(request_id[1:].partition("-")[0])


def gateway_of(request_id: str) -> str:
    return {3: "gw-2", 4: "gw-2", 5: "gw-2", 11: "gw-dead"}.get(number_of(request_id) % 12, "gw-1")


def next_part(request_id: str) -> str:
    first, _, part = request_id.partition("-")
    return f"{first}-{int(part or 1) + 1}"


@dataclass(frozen=True)
class MachineRequest(CellRequest):
    """A request with all that its claim may say."""

    resumed: bool = False
    can_resume: bool = False

    @property
    def claim(self) -> Claim:
        return replace(super().claim, resumed=self.resumed, can_resume=self.can_resume)


def request_of(
    client: redis.Redis,
    request_id: str,
    weights: Mapping[str, int],
    asked: Tier,
    sequences: int,
    wait_max: int,
    prompt_mu: int,
) -> MachineRequest:
    """`r7`, or a later part of it, `r7-2`."""
    number = number_of(request_id)
    tenant = "abc"[number % 3]
    limits = LIMITS[tenant]
    return MachineRequest(
        client=client, request_id=request_id, tenant=tenant, key_id=tenant, asked=asked,
        weight=weights[tenant], sequences=sequences, wait_max=wait_max,
        tenant_limits=limits_of(units_mu=limits.units_mu, concurrency=limits.concurrency),
        # One that refuses nothing: a key without limits has no bucket, and the machine looks at its count.
        key_limits=limits_of(concurrency=1_000),
        candidates=plan.TWO, gateway=gateway_of(request_id), cancels_per_minute=limits.cancels,
        resumed="-" in request_id, can_resume=asked is Tier.FLEX and sequences == 1 and number % 4 > 0,
        prompt_mu=prompt_mu,
    )  # fmt: skip
