"""Every half second, over all open exchanges of the process: checkpoints in one batch, deadlines, and
instances that produce nothing.

A checkpoint records what was produced so far, tops up the reservation and renews its lease. If this process
dies, the request is settled with its last checkpoint. A checkpoint refuses nothing: a bucket that runs dry in
mid-stream goes into debt.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from billing.cell.replies import Missing, parse_checkpoint
from billing.cell.scripts import Command, checkpoint_call
from billing.wire.ending import Ending
from billing.wire.tokens import Tokens
from billing.wire.usage_event import EventHead
from gateway.exchange import Ended, Exchange
from gateway.redis.pipe import RedisPipe, RedisUnavailable
from gateway.settle import usage_event
from gateway.upstream.progress import Progress

log = logging.getLogger(__name__)

# A checkpoint that was sent: the exchange, and its output and head at that moment.
_Written: TypeAlias = tuple[Exchange, int, EventHead]
# A lease is renewed after this share of it, even when nothing new was produced, and at the latest after
# RENEW_S: the reaper treats a request as an orphan that is not renewed for longer (billing/process.py).
RENEW_SHARE: Final = 0.3
RENEW_S: Final = 3.0
BATCH_MAX: Final = 1000
# How a request ends whose gateway dies before it has ended.
_DIED: Final = Ended(Ending.GATEWAY_DIED, 0)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """The longest time in seconds for a whole request, for its first token, and for a client that does not
    read.
    """

    request_s: float
    first_token_s: float
    stall_s: float


class Checkpointer:
    """The half-second round of one process."""

    def __init__(
        self,
        *,
        redis: RedisPipe,
        open_exchanges: dict[str, Exchange],
        deadlines: Deadlines,
        lease_ms: int,
        interval_s: float,
        progress: Progress,
        others_ready: Callable[[Exchange], bool],
        restore: Callable[[Exchange, int], Awaitable[None]],
    ) -> None:
        self._redis = redis
        self._open = open_exchanges
        self._deadlines = deadlines
        self._lease_ms = lease_ms
        self._interval_s = interval_s
        self._progress = progress
        self._others_ready = others_ready
        self._restore = restore

    async def run(self) -> None:
        """Runs until cancelled. When Redis fails, checkpoints are lost, not requests: leases outlast a
        short outage.
        """
        while True:
            await asyncio.sleep(self._interval_s)
            now = time.monotonic()
            try:
                for exchange in list(self._open.values()):
                    self._check_deadlines(exchange, now)
                    exchange.fold_delivered()
                self._check_progress(now)
                await self.write(now)
            except RedisUnavailable as exc:
                log.warning("checkpoint not written", extra={"reason": str(exc)})
            except Exception:  # without this round every lease of the process would lapse
                log.exception("bug in a checkpoint round")

    async def write(self, now: float) -> int:
        """Write a checkpoint of each exchange that has produced something, has changed its instance, or needs
        its lease renewed. Returns how many. Raises RedisUnavailable.
        """
        calls: list[Command] = []
        written: list[_Written] = []
        renew_after_s = min(RENEW_S, self._lease_ms / 1000 * RENEW_SHARE)
        for exchange in list(self._open.values()):
            output = exchange.attempt.meter.output_tokens()
            renew = now - exchange.recorded.at > renew_after_s
            if output == exchange.recorded.output and not renew and not exchange.recorded.instance_changed:
                continue
            written.append((exchange, output, exchange.head))
            calls.append(self._call(exchange))
        for start in range(0, len(calls), BATCH_MAX):
            await self._write_batch(now, written[start : start + BATCH_MAX], calls[start : start + BATCH_MAX])
        return len(calls)

    async def _write_batch(self, now: float, written: list[_Written], calls: list[Command]) -> None:
        """Write one batch. The next round writes again what Redis did not take."""
        outcomes = await asyncio.gather(
            *(self._redis.submit(*call) for call in calls), return_exceptions=True
        )
        away: RedisUnavailable | None = None
        for (exchange, output, head), outcome in zip(written, outcomes, strict=True):
            if isinstance(outcome, RedisUnavailable):
                away = outcome
                continue
            exchange.recorded.at, exchange.recorded.output = now, output
            exchange.recorded.instance_changed = (
                exchange.recorded.instance_changed and exchange.head is not head
            )
            if isinstance(outcome, BaseException):
                log.error(
                    "checkpoint refused", extra={"request_id": exchange.request_id, "reason": str(outcome)}
                )
            elif isinstance(parse_checkpoint(outcome), Missing):
                await self._restore_lost(exchange)
        if away is not None:
            raise away

    async def _restore_lost(self, exchange: Exchange) -> None:
        """Reserve again what Redis has no reservation of: Redis lost it, or a local lease admitted the
        request. A preempted part holds no slot and needs no reservation.
        """
        if exchange.settled or exchange.following is not None:
            return
        await self._restore(exchange, self._cost_mu(exchange))

    async def pause(self, exchange: Exchange) -> None:
        """Record usage so far and give the slot back. The lease is renewed as before. Raises
        RedisUnavailable.
        """
        exchange.recorded.at, exchange.recorded.output = (
            time.monotonic(),
            exchange.attempt.meter.output_tokens(),
        )
        # the slot is on the instance to which it moved
        calls = [self._call(exchange)] if exchange.recorded.instance_changed else []
        exchange.recorded.instance_changed = False
        await self._redis.execute_many([*calls, self._call(exchange, pauses=True)])

    def _call(self, exchange: Exchange, *, pauses: bool = False) -> Command:
        ended = exchange.current_part.ended or _DIED
        crash_event = usage_event(exchange, ended.ending, ended.http_status, 0)
        head, changed = exchange.head, exchange.recorded.instance_changed
        return checkpoint_call(
            exchange.request.keys,
            lease_ms=self._lease_ms,
            cost_mu=self._cost_mu(exchange),
            produced=crash_event.produced,
            delivered_output=exchange.delivery.output,
            crash_event=crash_event.crash_event_json(),
            head=head.to_json() if changed else b"",
            moved_to=(head.instance, head.epoch) if changed else ("", ""),
            pauses=pauses,
        )

    def _cost_mu(self, exchange: Exchange) -> int:
        used = exchange.attempt.meter.produced()
        return exchange.request.model.weights.cost_mu(Tokens(used.prompt, used.cached, used.output))

    def _check_deadlines(self, exchange: Exchange, now: float) -> None:
        if exchange.stop_ending is not None or exchange.is_over or not exchange.attempt.started_at:
            return
        if now - exchange.request.started_at > self._deadlines.request_s:
            exchange.stop(Ending.DEADLINE)
        elif (
            exchange.delivery.first_token_at is None
            and exchange.attempt.meter.output_tokens() == 0
            and exchange.parsed.stream
        ):
            self._check_first_token(exchange, now)
        client = exchange.request.client_connection
        if client is not None and client.stalled_ms() > self._deadlines.stall_s * 1000:
            exchange.stop(Ending.CLIENT_STALLED)
            client.abort()

    def _check_progress(self, now: float) -> None:
        """Requests on an instance that produces nothing go on elsewhere, if that is possible."""
        running = {exchange.attempt: exchange for exchange in self._open.values() if exchange.is_running}
        for attempt in self._progress.look(running, now, self._deadlines.first_token_s / 2):
            exchange = running[attempt]
            if exchange.can_move and self._others_ready(exchange):
                log.warning(
                    "an instance is silent",
                    extra={"request_id": exchange.request_id, "instance": attempt.instance.instance},
                )
                attempt.give_up()

    def _check_first_token(self, exchange: Exchange, now: float) -> None:
        """An instance has half of the time for the first token if another instance could take over, else all
        of it. Time in the queue does not count.
        """
        waited_s = now - exchange.attempt.started_at
        if (
            waited_s > self._deadlines.first_token_s / 2
            and not exchange.tried
            and self._others_ready(exchange)
        ):
            exchange.attempt.give_up()
        elif now - exchange.delivery.sent_at > self._deadlines.first_token_s:
            exchange.stop(Ending.DEADLINE)
