"""Promises of ending tasks."""

import asyncio
import contextlib

from billing.wire.cancellation import end_tasks


async def test_a_task_that_swallows_its_first_cancellation_is_ended() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.wait({task}, timeout=0)
    async with asyncio.timeout(10):
        await end_tasks(task)
    assert task.cancelled()
    assert swallowed == 3


async def test_what_an_ended_task_raised_is_not_raised_again() -> None:
    async def failing() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise RuntimeError

    task = asyncio.create_task(failing())
    await asyncio.wait({task}, timeout=0)
    await end_tasks(task)
    assert isinstance(task.exception(), RuntimeError)
