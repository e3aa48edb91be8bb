"""The requests of one process that wait for a slot. It bounds how many may wait, and wakes them.

The cell (`billing/cell`) decides the order over all gateways; here each request only sleeps until it is
woken. A waiting request holds its body in memory, so requests and bytes are bounded. A process without its
subscription cannot be woken, so it lets no request wait.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import redis.asyncio
from redis.exceptions import RedisError

from billing.wire import redis_keys
from billing.wire.redis_address import parse_redis_url
from gateway.errors import (
    ClientDisconnected,
    DependencyUnavailable,
    NoInstance,
    Overloaded,
    QuotaExceeded,
    RequestStopped,
)
from gateway.exchange import Exchange
from gateway.metrics import Metrics

log = logging.getLogger(__name__)

_RECONNECT_S: Final = 1.0
# Wake messages kept for requests that have not joined the queue yet: more than can arrive between two
# replies.
_EARLY_WAKES_MAX: Final = 1_000
_BUSY_RETRY_MS: Final = 1_000


class WaitEnd(StrEnum):
    """How a wait for a slot ended. The last two never began: this process already had its maximum of waiting
    requests, or of their bytes.
    """

    ADMITTED = "admitted"
    OUT_OF_TIME = "out_of_time"
    REFUSED = "refused"
    NO_INSTANCE = "no_instance"
    CLIENT_DISCONNECT = "client_disconnect"
    STOPPED = "stopped"
    LOST = "lost"
    TOO_MANY = "too_many"
    TOO_LARGE = "too_large"

    @classmethod
    def of(cls, error: BaseException) -> "WaitEnd":
        """The ending that this error means. `lost`: Redis did not answer, or the task was cancelled."""
        match error:
            case ClientDisconnected():
                return cls.CLIENT_DISCONNECT
            case RequestStopped():
                return cls.STOPPED
            case NoInstance():
                return cls.NO_INSTANCE
            case QuotaExceeded() | DependencyUnavailable():
                return cls.OUT_OF_TIME
        return cls.LOST


class WaitQueue:
    """The queue of one process. `exchanges`: the requests that wait now, by id."""

    def __init__(
        self,
        *,
        gateway_id: str,
        redis_url: str,
        requests_max: int,
        bytes_max: int,
        preempt: Callable[[str], None],
        metrics: Metrics,
    ) -> None:
        self._channel = redis_keys.wake_channel(gateway_id)
        self._address = parse_redis_url(redis_url)
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._preempt = preempt
        self._metrics = metrics
        self._turns: dict[str, asyncio.Event] = {}
        self._early_wakes: dict[str, None] = {}
        self.exchanges: dict[str, Exchange] = {}
        self.listening = False

    async def run(self) -> None:
        """Listen for wake messages until cancelled, reconnecting when the connection is lost."""
        logged: str | None = None
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as exc:
                # Once, not each second: the pipe logs why Redis is away.
                reason = " ".join(str(exc).split())[:200] or type(exc).__name__
                if self.listening or reason != logged:
                    log.warning("not listening for wake messages", extra={"reason": reason})
                logged = reason
            finally:
                self.listening = False
            await asyncio.sleep(_RECONNECT_S)

    async def _listen(self) -> None:
        client = redis.asyncio.Redis(
            **self._address.client_arguments(), health_check_interval=5, socket_connect_timeout=2
        )
        async with client, client.pubsub() as channel:
            await channel.subscribe(self._channel)
            async for message in channel.listen():
                if message["type"] == "subscribe":
                    self.listening = True
                    # A slot that was granted while nobody listened went to another request.
                    self._wake_all()
                elif message["type"] == "message":
                    self._on_message(message["data"].decode())

    def _wake_all(self) -> None:
        """Have every request ask the cell again."""
        for turn in self._turns.values():
            turn.set()

    def _on_message(self, message: str) -> None:
        """A request id: it has been granted a slot. `!` and an id: preempt it. `*`: the cell has lost its
        queue.
        """
        if message == "*":
            self._wake_all()
        elif message.startswith("!"):
            self._preempt(message[1:])
        elif (turn := self._turns.get(message)) is not None:
            turn.set()
        else:
            # Woken before it joined the queue here: the reply to its own call is still on the way.
            self._early_wakes[message] = None
            if len(self._early_wakes) > _EARLY_WAKES_MAX:
                del self._early_wakes[next(iter(self._early_wakes))]

    def enter(self, exchange: Exchange) -> asyncio.Event:
        """Join the queue. The event is set when it is this request's turn, or when it is to end. Raises
        Overloaded.
        """
        size, asked = exchange.request.body_bytes, exchange.parsed.service_tier.value
        many = len(self._turns) >= self._requests_max
        if many or self._bytes + size > self._bytes_max:
            self._metrics.wait_refused(asked, WaitEnd.TOO_MANY if many else WaitEnd.TOO_LARGE)
            raise Overloaded(_BUSY_RETRY_MS)
        turn = asyncio.Event()
        if exchange.request_id in self._early_wakes:
            del self._early_wakes[exchange.request_id]
            turn.set()
        self._turns[exchange.request_id] = turn
        self._bytes += size
        self.exchanges[exchange.request_id] = exchange
        self._metrics.wait_begun(asked, size)
        exchange.on_stop = turn.set
        return turn

    def leave(self, exchange: Exchange, end: WaitEnd, waited_s: float) -> None:
        """Leave the queue, served or not."""
        if self._turns.pop(exchange.request_id, None) is not None:
            self._bytes -= exchange.request.body_bytes
            del self.exchanges[exchange.request_id]
            exchange.on_stop = None
            tier, size = exchange.parsed.service_tier.value, exchange.request.body_bytes
            self._metrics.wait_ended(tier, end, waited_s, size)

    def __len__(self) -> int:
        return len(self._turns)
