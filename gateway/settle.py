"""Settles a request, once, however it ended: one script records the usage event and gives back what was
reserved but not used.

While Redis is away the settle goes to the local journal and is sent later. It is idempotent by request id, so
a settle with an unknown outcome is sent again.
"""

import asyncio
import logging
import time
from functools import partial
from typing import Any

from msgspec.structs import asdict

from billing.cell.replies import Settled, parse_settle
from billing.cell.scripts import Command, settle_call
from billing.wire.attribution import attribute, charged
from billing.wire.ending import BILLED_ENDINGS, Ending
from billing.wire.tokens import Delivered, Tokens
from billing.wire.usage_event import UsageEvent, UsageSource
from gateway.budgets import Budgets
from gateway.exchange import Exchange
from gateway.metrics import Metrics
from gateway.protocol.ignored import kept_names
from gateway.redis.journal import Journal
from gateway.redis.pipe import RedisCommandError, RedisPipe, RedisUnavailable
from gateway.redis.unsynced import UnsyncedSettles
from gateway.stream.meter import USAGE_MISSING
from gateway.stream.meter_provider import cache_written, kept_usage
from gateway.waiting.pace import Pacer

log = logging.getLogger(__name__)


def usage_event(exchange: Exchange, ending: Ending, http_status: int, ended_ms: int) -> UsageEvent:
    """The usage event of a request as its exchange stands now; a checkpoint's crash event, too. Pure."""
    attempt, request, delivery = exchange.attempt, exchange.request, exchange.delivery
    meter, route = attempt.meter, request.parsed.route
    produced, discarded = exchange.produced(), exchange.discarded_output
    anomaly = meter.anomaly
    if meter.exact or exchange.final_count is not None:
        source = UsageSource.ENGINE
        if exchange.final_count is not None and anomaly == USAGE_MISSING:
            anomaly = None
    elif meter.counted():
        source = UsageSource.COUNTED
        if ending in BILLED_ENDINGS:
            anomaly = anomaly or USAGE_MISSING
    elif produced.output:
        source = UsageSource.CHECKPOINT
    else:
        metered = attempt.in_engine and route.metered
        source = UsageSource.UNREAD if metered else UsageSource.NONE
    instance, provider, written = attempt.instance, None, 0
    shared_prompt = produced.prompt_counted - produced.prompt
    if instance.is_provider and attempt.in_engine and route.metered:
        told, shared_prompt = kept_usage(meter.told), 0  # it charges a prompt once, for all samples
        if ending in BILLED_ENDINGS and source is not UsageSource.ENGINE:
            anomaly = anomaly or USAGE_MISSING  # it may charge for what it has not told
        provider = {"kind": instance.engine, "model": exchange.engine_model, "usage": told}
        if told is not None and source is UsageSource.ENGINE:
            written = min(cache_written(told), produced.prompt - produced.cached)
    usage = Tokens(produced.prompt, produced.cached, produced.output, written)
    attribution = attribute(
        ending,
        usage,
        shared_prompt=shared_prompt,
        anomaly=anomaly,
        generates=route.generates,
        continued=exchange.prompt_read() is not None,
        discarded_output=discarded,
    )
    untold = provider is not None and source is not UsageSource.ENGINE
    counted = charged(ending, attribution.produced, attribution.billed, untold=untold)
    return UsageEvent(
        **asdict(exchange.head),
        ending=ending,
        usage_source=source,
        produced=attribution.produced,
        billed=attribution.billed,
        absorbed=attribution.absorbed,
        units_mu=request.model.weights.cost_mu(counted),
        http_status=http_status,
        ended_ms=ended_ms,
        first_token_ms=delivery.first_token_ms,
        delivered=Delivered(min(delivery.output, produced.output - discarded)),
        anomaly=anomaly,
        waited_ms=exchange.waited_ms,
        decision=exchange.decision,
        ignored=kept_names(request.parsed.ignored),
        provider=provider,
    )


class Settler:
    """Settles the requests of one process."""

    def __init__(
        self,
        redis: RedisPipe,
        journal: Journal,
        metrics: Metrics,
        open_exchanges: dict[str, Exchange],
        pacer: Pacer,
        *,
        unsynced: UnsyncedSettles,
        budgets: Budgets,
    ) -> None:
        self._redis = redis
        self._journal = journal
        self._metrics = metrics
        self._open = open_exchanges
        self._pacer = pacer
        self._unsynced = unsynced
        self._budgets = budgets
        self._settling = 0

    def settle(self, exchange: Exchange, ending: Ending, http_status: int) -> None:
        """Settle now. When this returns the command has been sent and no cancellation can stop it: Redis
        takes it, or the journal does.
        """
        event = self._settle_part(exchange, ending, http_status)
        # The earlier parts of a request that was preempted and resumed get the same ending.
        first, previous, billed = exchange, exchange.previous, [event.billed]
        while previous is not None:
            billed.append(self._settle_part(previous, ending, http_status).billed)
            first, previous = previous, previous.previous
        self._budgets.settled(first, billed)
        self._record_request(exchange, event)

    def _settle_part(self, exchange: Exchange, ending: Ending, http_status: int) -> UsageEvent:
        assert not exchange.settled, "settle happens once"
        exchange.settled = True
        self._open.pop(exchange.request_id, None)
        event = usage_event(exchange, ending, http_status, exchange.at_ms(time.monotonic()))
        left = ending is Ending.CLIENT_DISCONNECT
        cancelled = left and not event.produced.output and exchange.prompt_read() is None
        call = settle_call(
            exchange.request.keys,
            cost_mu=event.units_mu,
            tokens=event.charged_tokens,
            event=event.to_json(),
            cancelled=cancelled,
        )
        self._settling += 1
        self._redis.submit(*call).add_done_callback(partial(self._on_reply, call, exchange.head.cell))
        self._record_tokens(event)
        return event

    @property
    def settling(self) -> int:
        """Settles that are neither in Redis nor in the journal yet. A process exits only when there are
        none.
        """
        return self._settling

    def _on_reply(self, call: Command, cell: str, outcome: "asyncio.Future[Any]") -> None:
        self._settling -= 1
        try:
            reply = parse_settle(outcome.result())
        except (RedisUnavailable, RedisCommandError) as exc:
            log.warning("settle goes to the journal", extra={"reason": str(exc)})
            self._journal.append(call)
            return
        self._unsynced.keep(call)
        if isinstance(reply, Settled):
            self._pacer.schedule(cell, reply.pace_ms)

    def _record_request(self, exchange: Exchange, event: UsageEvent) -> None:
        now = time.monotonic()
        if exchange.choice is not None:
            exchange.choice.answered(self._metrics, event.produced.prompt, event.produced.cached)
        first, last, output = (
            exchange.delivery.first_token_at,
            exchange.delivery.last_token_at,
            event.delivered.output,
        )
        if not exchange.parsed.stream:
            first = None  # an answer in one piece: only the engine knows when its first token was produced
        self._metrics.request_finished(
            exchange.parsed.route.name,
            exchange.request.model.name,
            event.class_,
            event.ending,
            now - exchange.request.started_at,
            None if first is None else first - exchange.request.started_at,
            (last - first) / (output - 1) if first is not None and last is not None and output > 1 else None,
            exchange.delivery.sent_at - exchange.request.started_at if exchange.delivery.sent_at else 0.0,
        )

    def _record_tokens(self, event: UsageEvent) -> None:
        self._metrics.tokens(
            event.tenant,
            event.model,
            event.billed.prompt,
            event.billed.cached,
            event.billed.output,
            event.delivered.output,
        )
        if event.anomaly is not None:
            self._metrics.anomaly(event.anomaly)
            log.warning("usage anomaly", extra={"request_id": event.request_id, "anomaly": event.anomaly})
