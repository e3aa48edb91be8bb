"""Gateways learn from each other over Redis, and choose alone while it is away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import redis

from billing.wire import redis_keys
from gateway.redis.pipe import RedisPipe
from gateway.routing.shared_news import SharedNews
from tests.fixtures.valkey import ValkeyProcess
from tests.gateway.routing.gateways import LONG, READY, Knowing


class Connected(Knowing):
    """A gateway process with its connections to Redis."""

    def __init__(self, name: str, url: str) -> None:
        super().__init__()
        self.pipe = RedisPipe(url)
        self.news = SharedNews(
            self.router,
            gateway_id=name,
            redis_url=url,
            pipe=self.pipe,
            instances=lambda: [each.instance for each in READY],
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Connected"]:
        task = asyncio.create_task(self.news.run())
        try:
            yield self
        finally:
            self.news.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.pipe.close()

    async def listen(self) -> "Connected":
        """Once it has several instances to choose from, it listens."""
        self.send(self.choice("hello"))
        await until(lambda: self.news.listening)
        return self


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - of another gateway's connection
            await asyncio.sleep(0.01)


@pytest.fixture
async def gateways(valkey_url: str) -> AsyncIterator[list[Connected]]:
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(Connected(name, valkey_url).running()) for name in ("g1", "g2")
        ]
        yield [await each.listen() for each in started]


async def test_a_prompt_follows_one_that_another_gateway_has_sent(gateways: list[Connected]) -> None:
    one, two = gateways
    first = one.choice()
    where = one.send(first)
    first.first_token()
    await until(lambda: len(two.router.index) > 0)
    again = two.choice(LONG + "x" * 600)
    await until(lambda: two.router.load(where).queued(asyncio.get_running_loop().time()) < 100)
    assert two.send(again) == where
    assert again.decided["routed"] == "prefix"


async def test_a_session_follows_too(gateways: list[Connected]) -> None:
    one, two = gateways
    first = one.choice("hello", session="s")
    where = one.send(first)
    first.first_token()
    await until(lambda: len(two.router.index) > 0)
    again = two.choice("hello again", session="s")
    assert two.send(again) == where
    assert again.decided["routed"] == "session"


async def test_what_another_gateway_has_open_counts_until_it_says_otherwise(
    gateways: list[Connected],
) -> None:
    one, two = gateways
    choice = one.choice()
    where = one.send(choice)
    one.open_here[where] = 3
    await until(lambda: two.router.load(where).open_elsewhere == 3)
    assert two.router.load(where).unread_elsewhere > 0
    one.open_here[where] = 0
    choice.first_token()
    choice.ended(5)
    await until(lambda: two.router.load(where).open_elsewhere == 0)
    assert two.router.load(where).unread_elsewhere == 0


async def test_a_gateway_that_is_gone_is_forgotten(gateways: list[Connected]) -> None:
    one, two = gateways
    where = one.send(one.choice())
    await until(lambda: two.router.load(where).others != {})
    await until(lambda: two.router.load(where).others == {})


async def test_what_is_no_message_changes_nothing(gateways: list[Connected], valkey: redis.Redis) -> None:
    one, two = gateways
    for message in (b"", b"[]", b'{"gateway":"g"}', b"\xff\xfe"):
        valkey.publish(redis_keys.ROUTING_CHANNEL, message)
    one.send(one.choice())
    await until(lambda: len(two.router.index) > 0)
    assert two.news.listening


async def test_nothing_is_told_and_nobody_listens_while_there_is_no_choice(
    valkey_url: str, valkey: redis.Redis
) -> None:
    async with Connected("g1", valkey_url).running() as gateway:
        gateway.send(gateway.choice(), READY[:1])
        await asyncio.sleep(0)
        assert gateway.news._timer is None
        assert dict(valkey.pubsub_numsub(redis_keys.ROUTING_CHANNEL)) == {redis_keys.ROUTING_CHANNEL: 0}


async def test_without_redis_a_gateway_chooses_alone_and_listens_again_afterwards(
    own_valkey: ValkeyProcess,
) -> None:
    async with Connected("g1", own_valkey.url).running() as gateway:
        await gateway.listen()
        own_valkey.kill()
        await until(lambda: not gateway.news.listening)
        first = gateway.choice()
        where = gateway.send(first)
        first.first_token()
        again = gateway.choice()
        assert gateway.send(again) == where
        assert again.decided["routed"] == "prefix"
        own_valkey.start()
        await until(lambda: gateway.news.listening)
