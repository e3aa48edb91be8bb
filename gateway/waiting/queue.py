"""The requests of one process that wait for room: who they are, that they are woken, and that they are not
too many.

The order in which they get room is the cell's (`billing/cell`), over all gateways; here each only sleeps
until it is told. What waits holds its body in memory, so requests and bytes are bounded. Without its
subscription a process cannot be woken and lets nobody wait.
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
    CallerLeft,
    DependencyUnavailable,
    NoInstance,
    Overloaded,
    QuotaExceeded,
    RequestStopped,
)
from gateway.exchange import Exchange
from gateway.metrics.counts import Metrics

log = logging.getLogger(__name__)

_AGAIN_S: Final = 1.0
# Wakes kept for those who are about to stand in line: more than can be between two answers.
_EARLY_MAX: Final = 1_000
_BUSY_RETRY_MS: Final = 1_000


class WaitEnd(StrEnum):
    """How a wait for room ended. The last two never began: this process had as many requests, or as many
    bytes of them, as it may.
    """

    ADMITTED = "admitted"
    OUT_OF_TIME = "out_of_time"
    REFUSED = "refused"
    NO_INSTANCE = "no_instance"
    LEFT = "left"
    STOPPED = "stopped"
    LOST = "lost"
    TOO_MANY = "too_many"
    TOO_LARGE = "too_large"

    @classmethod
    def of(cls, error: BaseException) -> "WaitEnd":
        """By what ended it. `lost`: Redis did not answer, or its task was cancelled."""
        match error:
            case CallerLeft():
                return cls.LEFT
            case RequestStopped():
                return cls.STOPPED
            case NoInstance():
                return cls.NO_INSTANCE
            case QuotaExceeded() | DependencyUnavailable():
                return cls.OUT_OF_TIME
        return cls.LOST


class Line:
    """The line of one process. `exchanges` are those that wait now, by request id."""

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
        self._early: dict[str, None] = {}
        self.exchanges: dict[str, Exchange] = {}
        self.listening = False

    async def run(self) -> None:
        """Hear what is granted, until cancelled; a lost connection is made again."""
        told: str | None = None
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as exc:
                # Once, not each second: while Redis is away its pipe says why.
                reason = " ".join(str(exc).split())[:200] or type(exc).__name__
                if self.listening or reason != told:
                    log.warning("not told of room", extra={"reason": reason})
                told = reason
            finally:
                self.listening = False
            await asyncio.sleep(_AGAIN_S)

    async def _listen(self) -> None:
        client = redis.asyncio.Redis(
            **self._address.client_arguments(), health_check_interval=5, socket_connect_timeout=2
        )
        async with client, client.pubsub() as channel:
            await channel.subscribe(self._channel)
            async for message in channel.listen():
                if message["type"] == "subscribe":
                    self.listening = True
                    # What was granted while nobody listened went to others.
                    self._all_again()
                elif message["type"] == "message":
                    self._told(message["data"].decode())

    def _all_again(self) -> None:
        """Everybody stands in line anew."""
        for turn in self._turns.values():
            turn.set()

    def _told(self, word: str) -> None:
        """A request id: it has been granted its place; `!` before it: it is to give its place up; `*`: the
        cell has lost its line.
        """
        if word == "*":
            self._all_again()
        elif word.startswith("!"):
            self._preempt(word[1:])
        elif (turn := self._turns.get(word)) is not None:
            turn.set()
        else:
            # Woken before it stood in line here: its own answer is still on the way.
            self._early[word] = None
            if len(self._early) > _EARLY_MAX:
                del self._early[next(iter(self._early))]

    def enter(self, exchange: Exchange) -> asyncio.Event:
        """Stand in line; the event is set when it is this request's turn, or when it has been told to end.
        Raises Overloaded.
        """
        size, asked = exchange.request.body_bytes, exchange.parsed.asked.value
        many = len(self._turns) >= self._requests_max
        if many or self._bytes + size > self._bytes_max:
            self._metrics.wait_refused(asked, WaitEnd.TOO_MANY if many else WaitEnd.TOO_LARGE)
            raise Overloaded(_BUSY_RETRY_MS)
        turn = asyncio.Event()
        if exchange.request_id in self._early:
            del self._early[exchange.request_id]
            turn.set()
        self._turns[exchange.request_id] = turn
        self._bytes += size
        self.exchanges[exchange.request_id] = exchange
        self._metrics.wait_begun(asked, size)
        exchange.on_stop = turn.set
        return turn

    def leave(self, exchange: Exchange, end: WaitEnd) -> None:
        """Out of line, served or not, after its `waited_ms`."""
        if self._turns.pop(exchange.request_id, None) is not None:
            self._bytes -= exchange.request.body_bytes
            del self.exchanges[exchange.request_id]
            exchange.on_stop = None
            self._metrics.wait_ended(
                exchange.parsed.asked.value, end, exchange.waited_ms / 1000, exchange.request.body_bytes
            )

    def __len__(self) -> int:
        return len(self._turns)
