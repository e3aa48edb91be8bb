"""Clears the machines of a reclaim: preempts flex requests that can be resumed elsewhere, stops what is still
open past the deadline, then marks the reclaim as done.

Flex is preempted as late as possible, with just enough time to pause. A request that can finish on the
machine by then does: its prompt is not read twice and it does not wait for another slot. When it resumes does
not matter to the deadline, because it has left the machine by then.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Final

import redis
from sqlalchemy import Connection

from billing.catalogue import outbox
from billing.catalogue.outbox import ChangeKind
from billing.reclaims import store
from billing.reclaims.occupancy import RunningRequest, read_cells_ready, read_open_on
from billing.reclaims.store import Reclaim, ReclaimEvent
from billing.wire import redis_keys

_log = logging.getLogger(__name__)

# A gateway learns within half a second that an instance drains. What it had begun to send there shows in the
# cell well within this time. A request that is preempted earlier might be resumed there.
SETTLE_MS: Final = 2_000
# Flex is preempted this long before the deadline: an abort and a checkpoint take a tenth of it.
PREEMPT_LEAD_MS: Final = 1_000
# A preempted request that is still open after this is stopped.
PAUSE_MS: Final = 3_000


def clear(connection: Connection, client: redis.Redis, found: Reclaim, now_ms: int) -> None:
    """Do what is due now for a reclaim that drains. May be repeated. Raises redis.RedisError."""
    if now_ms < found.by_ms - PREEMPT_LEAD_MS:
        return
    history = store.history(connection, found.reclaim_id)
    drained_ms = max((entry.at_ms for entry in history if entry.change == "draining"), default=now_ms)
    requests = read_open_on(client, found.pool, found.chosen)
    asked_ms = _named(history, "preempted")
    cells = (
        read_cells_ready(client, found.pool)
        if any(request.resumable for request in requests)
        else frozenset()
    )
    able = [request for request in requests if request.request_id in asked_ms or request.resumes_in(cells)]
    if able and now_ms >= max(found.by_ms - PREEMPT_LEAD_MS, drained_ms + SETTLE_MS):
        _preempt(connection, client, found, able, asked_ms, now_ms)
    if now_ms < found.by_ms:
        return
    paused_by_ms = {
        request.request_id: asked_ms.get(request.request_id, now_ms) + PAUSE_MS for request in able
    }
    over = [request for request in requests if now_ms >= paused_by_ms.get(request.request_id, found.by_ms)]
    _stop(connection, found, over, _named(history, "stopped"), now_ms)
    if not requests and (now_ms >= drained_ms + SETTLE_MS or not found.chosen):
        store.move(connection, found, "done", {}, now_ms=now_ms)
        _log.info("reclaim %s is done", found.reclaim_id)


def _preempt(
    connection: Connection,
    client: redis.Redis,
    found: Reclaim,
    requests: Sequence[RunningRequest],
    asked_ms: Mapping[str, int],
    now_ms: int,
) -> None:
    """Signal the gateways to preempt these requests; again while they are open, as a message may be lost."""
    new = _write_down(connection, found, "preempted", requests, asked_ms, now_ms)
    if new:
        _log.info("reclaim %s: preempting %d flex requests", found.reclaim_id, new)
    for request in requests:
        client.publish(redis_keys.wake_channel(request.gateway), f"!{request.request_id}")


def _stop(
    connection: Connection,
    found: Reclaim,
    requests: Sequence[RunningRequest],
    stopped_ms: Mapping[str, int],
    now_ms: int,
) -> None:
    """Stop these requests; again while they are open, as a gateway may not have known them yet."""
    new = _write_down(connection, found, "stopped", requests, stopped_ms, now_ms)
    if new:
        _log.info("reclaim %s: stopping %d requests", found.reclaim_id, new)
    for request in requests:
        outbox.record(connection, ChangeKind.STOP, request.request_id)


def _write_down(
    connection: Connection,
    found: Reclaim,
    change: str,
    requests: Sequence[RunningRequest],
    before_ms: Mapping[str, int],
    now_ms: int,
) -> int:
    """Record the requests in the history, each once. Returns how many are new there."""
    new = [_recorded(request) for request in requests if request.request_id not in before_ms]
    if new:
        store.append(connection, found.reclaim_id, change, {"requests": new}, now_ms=now_ms)
    return len(new)


def _named(history: Sequence[ReclaimEvent], change: str) -> dict[str, int]:
    """The requests that entries of this change name, and when."""
    return {
        each["request"]: entry.at_ms
        for entry in history
        if entry.change == change
        for each in entry.detail["requests"]
    }


def _recorded(request: RunningRequest) -> dict[str, str | None]:
    return {
        "request": request.request_id, "tenant": request.tenant, "class": request.class_,
        "contract": request.contract, "instance": request.instance,
    }  # fmt: skip
