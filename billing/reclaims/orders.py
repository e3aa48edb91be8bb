"""Reclaims by hand: planned, ordered, cancelled, released. `carry_out` does what happens by time.

Ordering locks the pool, as signing does, so that of two at once the second sees what the first did.
"""

from dataclasses import replace
from typing import Any

import redis
from sqlalchemy import Connection

from billing.contracts.commitments import lock_position, read_position
from billing.contracts.position import Position
from billing.contracts.terms import PAST_SLACK_MS
from billing.moments import utc
from billing.reclaims import shortfall, store
from billing.reclaims.confirmed_plan import PlanChanged, choose_named, more_broken
from billing.reclaims.occupancy import OccupiedInstance, count_classes, read_occupied, read_open_on
from billing.reclaims.plan import ReclaimOrder, ReclaimPlan, choose, draw_up
from billing.reclaims.store import Reclaim
from billing.refusals import Conflict, Invalid


def plan(connection: Connection, client: redis.Redis, asked: ReclaimOrder, now_ms: int) -> ReclaimPlan:
    """The plan of a reclaim; it changes nothing. Raises Invalid, NotFound, Conflict for machines that do not
    exist.
    """
    order = _from_now(asked, now_ms)
    return _plan(connection, client, order, read_position(connection, order.pool, now_ms), now_ms)


def order(
    connection: Connection, client: redis.Redis, asked: ReclaimOrder, now_ms: int
) -> tuple[Reclaim, ReclaimPlan]:
    """Plan a reclaim and store it; it drains at once if it is time. Raises as `plan` does, and Conflict if it
    would break what is signed; PlanChanged, a Conflict, if the plan is not the one that was shown.
    """
    wanted = _from_now(asked, now_ms)
    position = lock_position(connection, wanted.pool, now_ms)
    planned = _plan(connection, client, wanted, position, now_ms)
    if planned.refusal is not None:
        raise Conflict(planned.refusal, param="instances", code="breaks_contracts")
    made = store.add(
        connection,
        wanted.pool,
        wanted.instances,
        wanted.use,
        wanted.by_ms,
        breaks=wanted.breaks,
        now_ms=now_ms,
    )
    broken = [
        {"from_ms": each.from_ms, "until_ms": each.until_ms, "mu_s": each.value} for each in planned.broken
    ]
    detail = {
        "instances": made.instances, "use": made.use, "by_ms": made.by_ms,
        "drain_from_ms": planned.drain_from_ms, "breaks": made.breaks, "broken": broken,
        "chosen": None if wanted.chosen is None else sorted(wanted.chosen),
    }  # fmt: skip
    made = store.move(connection, made, "planned", detail, now_ms=now_ms)
    if planned.drain_from_ms <= now_ms:
        made = drain(connection, made, planned.leaving, now_ms)
    return made, planned


def drain(
    connection: Connection, planned: Reclaim, leaving: tuple[OccupiedInstance, ...], now_ms: int
) -> Reclaim:
    """From now on these instances get no new requests."""
    requests = [request for each in leaving for request in each.requests]
    detail = {
        "chosen": [each.instance for each in leaving],
        "not_running": planned.instances - len(leaving),
        "open": count_classes(requests),
    }
    chosen = tuple(each.instance for each in leaving)
    return store.move(connection, planned, "draining", detail, now_ms=now_ms, chosen=chosen)


def choose_now(
    connection: Connection, client: redis.Redis, planned: Reclaim, position: Position
) -> tuple[OccupiedInstance, ...]:
    """The instances that leave: those that were ordered by name or, if none were or some are gone, those that
    fit best now.
    """
    others = _away(connection, planned.pool)
    occupied = read_occupied(client, planned.pool, store.away(connection))
    machines = position.instances - others
    wanted = store.history(connection, planned.reclaim_id)[0].detail.get("chosen")
    if wanted is not None:
        named, amiss = choose_named(occupied, planned.instances, machines, wanted)
        if amiss is None:
            return named
    leaving, _ = choose(occupied, planned.instances, machines)
    return leaving


def release(connection: Connection, client: redis.Redis, reclaim_id: str, now_ms: int) -> Reclaim:
    """Give the machines back to their pool: the instances are ready again. A reclaim that has not begun is
    cancelled. Raises NotFound, Conflict.
    """
    found = _lock(connection, reclaim_id, now_ms)
    if found.state == "planned" and found.by_ms > now_ms:
        return store.move(connection, found, "cancelled", {}, now_ms=now_ms)
    if found.state not in store.TAKING:
        raise Conflict(
            f"Reclaim {reclaim_id} is {found.state} already.", param="reclaim", code=f"reclaim_{found.state}"
        )
    return store.move(
        connection, found, "released", _still_open(client, found), now_ms=now_ms, released_ms=now_ms
    )


def cancel(connection: Connection, client: redis.Redis, reclaim_id: str, now_ms: int) -> Reclaim:
    """Cancel it before its deadline. Raises NotFound, Conflict."""
    found = _lock(connection, reclaim_id, now_ms)
    if found.state not in store.TAKING:
        raise Conflict(
            f"Reclaim {reclaim_id} is {found.state} already.", param="reclaim", code=f"reclaim_{found.state}"
        )
    if found.by_ms <= now_ms:
        message = f"The deadline of reclaim {reclaim_id}, {utc(found.by_ms)}, has passed: release it."
        raise Conflict(message, param="reclaim", code="reclaim_begun")
    return store.move(connection, found, "cancelled", _still_open(client, found), now_ms=now_ms)


def _lock(connection: Connection, reclaim_id: str, now_ms: int) -> Reclaim:
    pool = store.find(connection, reclaim_id).pool
    lock_position(connection, pool, now_ms)
    found = store.lock(connection, reclaim_id)
    if found.breaks and found.state in store.TAKING:
        # The cut ends with this transaction, so write now what has not been written of it.
        shortfall.record(connection, pool, now_ms, last=True)
    return found


def _still_open(client: redis.Redis, found: Reclaim) -> dict[str, Any]:
    return {"open": count_classes(read_open_on(client, found.pool, found.chosen))} if found.chosen else {}


def _plan(
    connection: Connection, client: redis.Redis, order: ReclaimOrder, position: Position, now_ms: int
) -> ReclaimPlan:
    """Raises PlanChanged."""
    occupied = read_occupied(client, order.pool, store.away(connection))
    breaking = [
        each.taken for each in store.list_all(connection, pool=order.pool, states=store.TAKING, breaks=True)
    ]
    away = _away(connection, order.pool)
    found = draw_up(order, position, occupied, away, now_ms, breaking)
    amiss = more_broken(order, found.broken)
    if amiss is None and order.chosen is not None:
        named, amiss = choose_named(occupied, order.instances, position.instances - away, order.chosen)
        if amiss is None:
            return replace(found, leaving=named)
    if amiss is not None:
        raise PlanChanged(amiss)
    return found


def _away(connection: Connection, pool: str) -> int:
    return sum(each.instances for each in store.list_all(connection, pool=pool, states=store.AWAY))


def _from_now(order: ReclaimOrder, now_ms: int) -> ReclaimOrder:
    if order.by_ms < now_ms - PAST_SLACK_MS:
        raise Invalid(f"{utc(order.by_ms)} is in the past.", param="by")
    return replace(order, by_ms=max(order.by_ms, now_ms))
