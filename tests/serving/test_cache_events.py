"""From an engine's socket to the gateways' channel."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio
from redis.asyncio import Redis

from billing.wire import redis_keys
from billing.wire.cached_prompt import Lost, read_lost
from billing.wire.cancellation import end_tasks
from serving.cache_events import CacheEvents
from tests.serving.test_engine_cache import SEA, removed, stored


class Told:
    """What comes over the channel."""

    def __init__(self, redis: Redis) -> None:
        self._channel = redis.pubsub(ignore_subscribe_messages=True)

    async def listen(self) -> None:
        await self._channel.subscribe(redis_keys.LOST_CHANNEL)
        await self._channel.get_message(timeout=5)

    async def next(self) -> Lost:
        async with asyncio.timeout(20):
            while (message := await self._channel.get_message(timeout=1)) is None:
                pass
        return read_lost(message["data"])

    async def close(self) -> None:
        await self._channel.aclose()


@pytest.fixture
async def told(redis: Redis) -> AsyncIterator[Told]:
    made = Told(redis)
    await made.listen()
    yield made
    await made.close()


async def test_what_an_engine_loses_is_told_to_gateways_and_a_gap_is_survived(
    redis: Redis, told: Told, tmp_path: Path
) -> None:
    notes: list[str] = []
    with zmq.asyncio.Context() as context, context.socket(zmq.XPUB) as engine:
        engine.setsockopt(zmq.LINGER, 0)
        engine.bind(f"ipc://{tmp_path / 'cache.sock'}")
        events = CacheEvents(redis, "i1", tmp_path / "cache.sock", notes.append)
        following = asyncio.create_task(events.follow("e1"))

        async def publish(number: int, *changes: object) -> None:
            message = msgspec.msgpack.encode([1.5, changes, 0])
            await engine.send_multipart([b"", number.to_bytes(8), message])

        try:
            assert await engine.recv() == b"\x01"  # it is subscribed
            await publish(0, stored(SEA, 11, 12, 13))
            await publish(1, removed(13))
            lost = await told.next()
            assert (lost.instance, lost.epoch) == ("i1", "e1")
            assert lost.hashes is not None
            assert [(seed, sorted(hashes)) for seed, hashes in lost.hashes] == [(7, [3, 4])]
            await publish(5, removed(12))  # what came between is missing
            await engine.send_multipart([b"", (6).to_bytes(8), b"of tomorrow"])
            await publish(7, {"type": "AllBlocksCleared"})
            assert (await told.next()).hashes is None
        finally:
            await end_tasks(following)
    assert notes == ["events of the engine's cache cannot be read: ValidationError"]
