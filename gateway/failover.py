"""What becomes of a request whose instance has failed: whether it may go on elsewhere, and with which error
and ending it ends if it may not.
"""

from typing import Final

from billing.wire.ending import Ending
from gateway.errors import EngineFailed, GatewayError, NoInstance, UpstreamProtocolError
from gateway.exchange import Exchange
from gateway.quarantine import ENGINES_LOST_MAX
from gateway.upstream.adapters import adapter_of
from gateway.upstream.connection import UpstreamFailure

# On so many instances a request is tried, those that failed in mid-stream included.
ATTEMPTS_MAX: Final = 3
# How it looks when an engine has died.
DIED: Final = frozenset({UpstreamFailure.CLOSED_BEFORE_HEAD.value, UpstreamFailure.CLOSED_IN_BODY.value})


class Interrupted(Exception):
    """The stream was preempted, or its engine failed, and it is to be resumed elsewhere. It is not settled.
    `ending`: how it ends if it cannot be resumed.
    """

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.value)
        self.ending = ending


def may_fail_over(exchange: Exchange) -> bool:
    """Whether a stream whose engine has failed may be resumed on another instance."""
    return exchange.resumable is not None and may_move(exchange)


def may_move(exchange: Exchange) -> bool:
    """Whether another instance may be tried."""
    return len(exchange.tried) < ATTEMPTS_MAX and engines_lost(exchange) < ENGINES_LOST_MAX


def engines_lost(exchange: Exchange) -> int:
    """How many engines died while they had it."""
    return sum(exchange.tried.values())


def failure_of(exchange: Exchange) -> GatewayError:
    """The error for a stream that the engine ended with an error event. If nothing was produced, the engine
    may have refused the request.
    """
    meter = exchange.attempt.meter
    if not meter.failed or meter.output_tokens():
        return EngineFailed()
    return adapter_of(exchange.attempt.instance).failure(
        meter.failure, exchange.parsed.route, exchange.engine_model
    )


def ending_of(exchange: Exchange, error: GatewayError) -> Ending:
    """The ending of a request that failed before anything was sent."""
    if exchange.stop_ending is not None:
        return exchange.stop_ending
    if isinstance(error, UpstreamProtocolError):
        return Ending.PROTOCOL_ERROR
    if isinstance(error, EngineFailed | NoInstance) or error.status >= 500:
        return Ending.ENGINE_DIED if isinstance(error, NoInstance) else Ending.ENGINE_ERROR
    # The gateway made the request of a later part, and the earlier parts, which get the same ending, have
    # output.
    return Ending.REFUSED_BY_ENGINE if exchange.previous is None else Ending.ENGINE_ERROR
