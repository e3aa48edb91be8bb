"""The two turning points of a shutdown, and its end."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import gateway.app
import gateway.catalogue.feed
from billing.wire.cancellation import end_tasks
from gateway.app import Stages
from gateway.lifecycle import Lifecycle, keep_running
from gateway.metrics import Metrics
from gateway.redis.pipe import RedisPipe
from gateway.settings import GatewaySettings
from tests.fixtures.gateway import Catalogue


def test_a_drain_ends_no_streams() -> None:
    lifecycle = Lifecycle()
    assert not lifecycle.draining
    lifecycle.begin_drain()
    assert lifecycle.draining
    assert not lifecycle.deadline_passed.is_set()


def test_deadline_implies_the_drain_and_calls_back_once() -> None:
    lifecycle, called = Lifecycle(), []
    lifecycle.on_deadline(lambda: called.append(lifecycle.draining))
    lifecycle.end_streams()
    lifecycle.end_streams()
    assert called == [True]


def test_who_comes_late_is_called_at_once() -> None:
    lifecycle, called = Lifecycle(), []
    lifecycle.end_streams()
    lifecycle.on_deadline(lambda: called.append("deadline"))
    assert called == ["deadline"]


async def test_a_process_ends_although_each_of_its_tasks_swallows_a_cancellation(
    catalogue: Catalogue, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As redis-py does on Python 3.11 when what it sends within a time limit is sent at the same moment."""
    taken = []

    def stubborn(name: str, run: Callable[[], Awaitable[None]]) -> "asyncio.Task[None]":
        async def stubborn_run() -> None:
            try:
                await run()
            except asyncio.CancelledError:
                taken.append(name)
            await run()

        return keep_running(name, stubborn_run)

    keep_connected = RedisPipe._keep_connected

    async def stubbornly_connected(pipe: RedisPipe) -> None:
        try:
            await keep_connected(pipe)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            taken.append("redis-connector")
        await asyncio.Event().wait()

    monkeypatch.setattr(gateway.app, "keep_running", stubborn)
    monkeypatch.setattr(gateway.catalogue.feed, "keep_running", stubborn)
    monkeypatch.setattr(RedisPipe, "_keep_connected", stubbornly_connected)
    stages = Stages(GatewaySettings(redis_url=valkey_url, home=tmp_path), Lifecycle(), Metrics())

    async def start_and_end() -> None:
        async with stages.running():
            await asyncio.sleep(0)  # else they are cancelled before they have begun

    process = asyncio.create_task(start_and_end())
    done, _ = await asyncio.wait({process}, timeout=30)
    await end_tasks(*asyncio.all_tasks() - {asyncio.current_task()})
    assert done
    assert len(taken) >= 10
