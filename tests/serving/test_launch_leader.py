"""Of several launchers one acts, however they end."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from billing.wire import redis_keys
from billing.wire.cancellation import end_tasks
from serving.launching.leader import Leader
from tests.serving.conftest import eventually


@pytest.fixture
async def three(redis: Redis) -> AsyncIterator[dict[Leader, "asyncio.Task[None]"]]:
    made = {leader: asyncio.create_task(leader.keep()) for leader in (Leader(redis) for _ in range(3))}
    yield made
    await end_tasks(*made.values())


def leading(leaders: dict[Leader, "asyncio.Task[None]"]) -> list[Leader]:
    now = [leader for leader in leaders if leader.leads]
    assert len(now) <= 1
    return now


async def test_one_acts_and_when_it_stands_still_another_one_takes_over(
    three: dict[Leader, "asyncio.Task[None]"],
) -> None:
    (first,) = await eventually(lambda: leading(three))
    await end_tasks(three[first])
    second = await eventually(lambda: [leader for leader in leading(three) if leader is not first])
    assert not first.leads
    await end_tasks(three[second[0]])
    await second[0].resign()
    assert not second[0].leads
    await eventually(lambda: leading(three), 2.0)


async def test_who_does_not_lead_takes_nothing_away_when_it_resigns(
    three: dict[Leader, "asyncio.Task[None]"], redis: Redis
) -> None:
    (first,) = await eventually(lambda: leading(three))
    held = await redis.get(redis_keys.LAUNCHER)
    await next(leader for leader in three if leader is not first).resign()
    assert await redis.get(redis_keys.LAUNCHER) == held
