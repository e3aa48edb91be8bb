"""Brings what gateways tell each other of the requests that they send, and what workers tell of caches, over
channels of Redis.

A process tells what is new at once, but at most twenty times a second, and nothing while no model has several
instances.
While Redis is away nothing is told or heard: each process then chooses by what it has seen itself.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import redis.asyncio
from redis.exceptions import RedisError

from billing.wire import redis_keys
from billing.wire.cached_prompt import read_lost
from billing.wire.redis_address import parse_redis_url
from gateway.redis.pipe import RedisPipe
from gateway.routing.news import read_news
from gateway.routing.router import Router

log = logging.getLogger(__name__)

TELL_S: Final = 0.05
_FORGET_S: Final = 1.0
_RECONNECT_S: Final = 1.0
_LOST: Final = redis_keys.LOST_CHANNEL.encode()


class SharedNews:
    """Of one process. `instances`: the ids of those that there are."""

    def __init__(
        self,
        router: Router,
        *,
        gateway_id: str,
        redis_url: str,
        pipe: RedisPipe,
        instances: Callable[[], Iterable[str]],
    ) -> None:
        self._router = router
        self._gateway_id = gateway_id
        self._address = parse_redis_url(redis_url)
        self._pipe = pipe
        self._instances = instances
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._told_at = self._forgets_at = 0.0
        self.listening = False
        router.on_news = self._tell_soon

    async def run(self) -> None:
        """Listen until cancelled, from the first time that a model has several instances."""
        await self._wanted.wait()
        logged = False
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as exc:
                if self.listening or not logged:
                    log.warning("not listening to the other gateways", extra={"reason": type(exc).__name__})
                logged = True
            finally:
                self.listening = False
            self._forget()
            await asyncio.sleep(_RECONNECT_S)

    def close(self) -> None:
        """Tell nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tell_soon(self) -> None:
        self._wanted.set()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(max(loop.time(), self._told_at + TELL_S), self._tell)

    def _tell(self) -> None:
        self._told_at = asyncio.get_running_loop().time()
        message = self._router.tell(self._gateway_id)
        told = self._pipe.submit("PUBLISH", redis_keys.ROUTING_CHANNEL, message)
        told.add_done_callback(_ignore_outcome)

    async def _listen(self) -> None:
        client = redis.asyncio.Redis(
            **self._address.client_arguments(), health_check_interval=5, socket_connect_timeout=2
        )
        async with client, client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(redis_keys.ROUTING_CHANNEL, redis_keys.LOST_CHANNEL)
            self.listening = True
            while True:
                message = await channel.get_message(timeout=_FORGET_S)
                if message is not None:
                    self._hear(message["channel"], message["data"])
                if time.monotonic() >= self._forgets_at:
                    self._forget()

    def _hear(self, channel: bytes, message: bytes) -> None:
        try:
            if channel == _LOST:
                self._router.hear_lost(read_lost(message))
                return
            news = read_news(message)
        except msgspec.MsgspecError:
            return  # of another version
        if news.gateway != self._gateway_id:
            self._router.hear(news)

    def _forget(self) -> None:
        self._forgets_at = time.monotonic() + _FORGET_S
        self._router.forget(self._instances())


def _ignore_outcome(outcome: "asyncio.Future[Any]") -> None:
    """The next message says how things are then."""
    if not outcome.cancelled():
        outcome.exception()
