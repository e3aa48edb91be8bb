"""Follows the events of an engine's prefix cache, and tells gateways what it has lost.

The events carry the tokens of prompts. So the engine publishes them on a socket in a folder that only its own
user can enter, they are read without the tokens, and what is told is hashes. Nothing depends on it: while
events are missing or cannot be read, gateways believe what they sent.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import zmq
import zmq.asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from billing.wire import redis_keys
from billing.wire.cached_prompt import lost_message
from serving.engine_cache import CacheLosses, read_events

_TELL_S: Final = 0.25


class CacheEvents:
    """Of one instance. `socket`: where its engine publishes."""

    def __init__(self, redis: Redis, instance: str, socket: Path, note: Callable[[str], None]) -> None:
        self._redis = redis
        self._instance = instance
        self._socket = socket
        self._note = note
        self._losses = CacheLosses()
        self._next: int | None = None
        self._unread = False

    async def follow(self, epoch: str) -> None:
        """Until cancelled, from the start of an engine on."""
        self._losses, self._next = CacheLosses(), None
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as events:
            events.set_hwm(10_000)
            events.setsockopt(zmq.LINGER, 0)
            events.subscribe(b"")
            events.connect(f"ipc://{self._socket}")
            telling = asyncio.create_task(self._tell_forever(epoch))
            try:
                while True:
                    self._hear(await events.recv_multipart())
            finally:
                telling.cancel()

    def _hear(self, parts: list[bytes]) -> None:
        try:
            _, number, message = parts
            events = read_events(message)
        except (ValueError, msgspec.MsgspecError) as exc:
            self._losses.forget_all()
            if not self._unread:
                self._unread = True
                self._note(f"events of the engine's cache cannot be read: {type(exc).__name__}")
            return
        came = int.from_bytes(number)
        if self._next is not None and came != self._next:
            self._losses.forget_all()
        self._next = came + 1
        self._losses.take(events)

    async def _tell_forever(self, epoch: str) -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            emptied, hashes = self._losses.told()
            with contextlib.suppress(RedisError, OSError):
                if emptied:
                    await self._publish(lost_message(self._instance, epoch, None))
                if hashes:
                    await self._publish(lost_message(self._instance, epoch, hashes))

    async def _publish(self, message: bytes) -> None:
        await self._redis.publish(redis_keys.LOST_CHANNEL, message)
