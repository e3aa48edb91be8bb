"""A pool that has something to sell, and short words for what is sold of it. Times are relative to `T0`,
rates in whole units.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert

from billing.catalogue import models, tenants
from billing.contracts import position
from billing.contracts.commitments import read_position
from billing.contracts.terms import Step, Terms
from billing.contracts.timeline import FOREVER_MS, Span
from billing.schema.capacity import calibration, pool, reclaim

POOL = "llama"
T0 = 1_800_000_000_000  # 2027-01-15T08:00:00Z
DAY = 86_400_000
UNIT = 1000


@dataclass(frozen=True)
class Shop:
    """Ids of the tenants by name."""

    tenants: dict[str, str]


def furnish(
    connection: Connection, *, instances: int = 2, capacity: int = 1000, headroom_permille: int = 0
) -> Shop:
    """A model with its pool, calibrated, and the tenants acme, bolt and core."""
    models.create(connection, models.ModelSpec(name=POOL, context_tokens=4096))
    connection.execute(
        insert(pool).values(pool=POOL, instances=instances, headroom_permille=headroom_permille)
    )
    calibrate(connection, capacity)
    return Shop({name: tenants.create(connection, name).tenant_id for name in ("acme", "bolt", "core")})


def calibrate(
    connection: Connection,
    capacity: int,
    *,
    at_ms: int = T0,
    number: int = 0,
    calibration_id: str | None = None,
) -> None:
    """A measurement of so many units per second an instance."""
    connection.execute(
        insert(calibration).values(
            calibration_id=calibration_id or f"cal_{at_ms}_{number}", pool=POOL, model=POOL,
            weights_version=1, capacity_mu_s=capacity * UNIT, sequences=16, tpot_target_ms=50,
            ttft_target_ms=1000, hardware="cpu", engine_version="0.32", error_permille=30, report={},
            created_ms=at_ms,
        )
    )  # fmt: skip


def take(
    connection: Connection, instances: int, by_ms: int, until_ms: int | None = None, **fields: Any
) -> None:
    """A reclaim of machines."""
    values = {
        "reclaim_id": f"rec_{by_ms}_{instances}", "pool": POOL, "instances": instances, "use": "research",
        "state": "planned", "breaks": False, "chosen": [], "by_ms": by_ms, "released_ms": until_ms,
    }  # fmt: skip
    connection.execute(insert(reclaim).values({**values, **fields}))


def terms(
    tenant_id: str,
    units: int | list[tuple[int, int]],
    from_ms: int = T0,
    until_ms: int = T0 + 100 * DAY,
    **fields: Any,
) -> Terms:
    """At a flat rate, or by `(moment, units)`; ended by 30 days' notice of each side."""
    steps = [(from_ms, units)] if isinstance(units, int) else units
    base: dict[str, Any] = {"minimum_until_ms": from_ms, "tenant_notice_days": 30, "operator_notice_days": 30}
    return Terms(
        tenant_id=tenant_id,
        pool=POOL,
        steps=tuple(Step(at_ms, rate * UNIT) for at_ms, rate in steps),
        starts_ms=from_ms,
        ends_ms=until_ms,
        **{**base, **fields},
    )


def capacity_over_time(
    connection: Connection, pool: str, from_ms: int, until_ms: int = FOREVER_MS
) -> list[Span]:
    """What may be sold in [from, until), less headroom and what is set aside."""
    return list(read_position(connection, pool, from_ms).capacity().spans(from_ms, until_ms))


def reserved_over_time(
    connection: Connection, pool: str, from_ms: int, until_ms: int = FOREVER_MS
) -> list[Span]:
    """What is sold in [from, until)."""
    return list(read_position(connection, pool, from_ms).reserved().spans(from_ms, until_ms))


def shortfalls(connection: Connection, pool: str, from_ms: int) -> list[Span]:
    """When, and by how much, more is sold than there is. Empty unless machines were taken against what is
    signed.
    """
    return position.shortfalls(read_position(connection, pool, from_ms), from_ms)
