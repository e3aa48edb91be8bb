"""Resumes a stream on another slot, from its text: a flex stream that was preempted because a contract holder
or an on-demand request needs its slot, or any stream whose engine failed.

The part that was interrupted stays open, with a reservation but without a slot, until the whole request ends.
Then all its parts are settled with the same ending, so that nobody pays for part of an answer that our side
broke off. A stream that cannot be resumed ends with an error event and is not billed.
"""

import logging
from collections.abc import Callable

from billing.wire.ending import Ending
from billing.wire.instance_entry import InstanceEntry
from gateway.checkpoint import Checkpointer
from gateway.edge.client import Client
from gateway.errors import GatewayError, error_of
from gateway.exchange import Exchange
from gateway.failover import Interrupted
from gateway.forward import Settle
from gateway.redis.pipe import RedisUnavailable
from gateway.reserve import Reserver, first_cost_mu

log = logging.getLogger(__name__)


def preempt(exchange: Exchange) -> None:
    """Preempt a flex stream: abort it in the engine by its id, after which `Resumer.resume` continues it. If
    it cannot be resumed, or its engine has no abort by id, it is stopped for good.
    """
    if exchange.resumable is not None and exchange.attempt.instance.abort:
        exchange.preempt()
    else:
        exchange.stop(Ending.PREEMPTED)


class Resumer:
    """Resumes the streams of one process."""

    def __init__(self, reserver: Reserver, checkpointer: Checkpointer, settle: Settle) -> None:
        self._reserver = reserver
        self._checkpointer = checkpointer
        self._settle = settle

    async def resume(
        self,
        exchange: Exchange,
        interrupted: Interrupted,
        client: Client,
        find_candidates: Callable[[], list[InstanceEntry]],
    ) -> Exchange | None:
        """The next part, admitted. None if the request is over and settled: its client has disconnected, or
        no slot came free in time and its stream ended with an error.
        """
        try:
            following = exchange.next_part()
        except ValueError:
            self._end(exchange, interrupted.ending, client)
            return None
        if exchange.request.client_connection is not None:
            exchange.request.client_connection.on_disconnect(following.on_client_disconnect)
        try:
            await self._checkpointer.pause(exchange)
            model = following.request.model
            cost_mu = first_cost_mu(following.parsed, model.default_max_tokens, model.weights)
            await self._reserver.reserve(following, cost_mu, find_candidates(), find_candidates)
        except (GatewayError, RedisUnavailable):
            log.info("could not be resumed", extra={"request_id": exchange.request_id})
            following.not_admitted()
            self._end(exchange, interrupted.ending, client)
            return None
        return following

    def _end(self, exchange: Exchange, ending: Ending, client: Client) -> None:
        """It ends with what interrupted it, unless it was to end anyway."""
        ending = exchange.stop_ending or ending
        error = error_of(ending)
        self._settle(exchange, ending, 200 if client.started else error.status)
        if not client.started:
            raise error
        client.end_with_error(error)
