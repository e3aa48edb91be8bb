"""Cancels tasks and waits until they have ended. It knows nothing of what they do."""

import asyncio
from typing import Any, Final

_AGAIN_S: Final = 0.2


async def end_tasks(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks until they have ended; their exceptions are read and dropped. One cancel is not enough: a
    client library whose own timeout or reply comes at the same moment may take the cancellation for its own,
    and a loop around it would run on for ever.
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()
