"""Lent work gives way: a flex stream that stands where an owner or on-demand wants to be gives its place up,
waits, and goes on from its text.

What it has produced stays open, on a reservation without a place, until the whole request ends: then all its
parts are settled alike, so that nobody pays for a part of an answer that our side broke off. What cannot go
on is stopped, with an error object, unbilled.
"""

import logging
from collections.abc import Callable

from billing.wire.instance_entry import InstanceEntry
from billing.wire.usage_event import Ending
from gateway.checkpoint import Checkpointer
from gateway.errors import ClientDisconnected, GatewayError, RequestStopped
from gateway.exchange import Exchange
from gateway.forward import Client, Settle
from gateway.redis.pipe import RedisUnavailable
from gateway.reserve import Reserver, first_cost_mu

log = logging.getLogger(__name__)


def preempt(exchange: Exchange) -> None:
    """Ask a flex stream to. It is stopped by its id; what comes then is `Resumer.resume`. Where no id
    stops it, it ends.
    """
    if exchange.resumable is not None and exchange.attempt.instance.abort:
        exchange.preempt()
    else:
        exchange.stop(Ending.GAVE_WAY)


class Resumer:
    """Finds another place for what gave way."""

    def __init__(self, reserver: Reserver, checkpointer: Checkpointer, settle: Settle) -> None:
        self._reserver = reserver
        self._checkpointer = checkpointer
        self._settle = settle

    async def resume(
        self, exchange: Exchange, client: Client, find_candidates: Callable[[], list[InstanceEntry]]
    ) -> Exchange | None:
        """The next part, admitted; or None, and all is settled: its caller has gone, or there was no room
        in time and the stream says so.
        """
        try:
            following = exchange.next_part()
        except ValueError:
            await self._end(exchange, client, RequestStopped(Ending.GAVE_WAY.value))
            return None
        if exchange.request.client_connection is not None:
            exchange.request.client_connection.on_disconnect(following.on_client_disconnect)
        try:
            await self._checkpointer.pause(exchange)
            model = following.request.model
            cost_mu = first_cost_mu(following.parsed, model.default_max_tokens, model.weights)
            await self._reserver.reserve(following, cost_mu, find_candidates(), find_candidates)
        except (GatewayError, RedisUnavailable) as error:
            log.info("could not go on", extra={"request_id": exchange.request_id})
            following.not_admitted()
            ended = error if isinstance(error, ClientDisconnected) else RequestStopped(Ending.GAVE_WAY.value)
            await self._end(exchange, client, ended)
            return None
        return following

    async def _end(self, exchange: Exchange, client: Client, error: GatewayError) -> None:
        if isinstance(error, ClientDisconnected):
            self._settle(exchange, Ending.CLIENT_DISCONNECT, 200)
            return
        self._settle(exchange, exchange.stop_ending or Ending.GAVE_WAY, 200)
        if not client.started:
            raise error
        await client.end_with_error(error)
