"""What goes on in a batch process while a store is away."""

import asyncio

import pytest
from obstore.exceptions import GenericError
from sqlalchemy.exc import OperationalError

from billing.batch import process


async def test_the_sweep_goes_on_after_any_failure_of_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [GenericError("the bucket is away"), OSError(), OperationalError("", {}, Exception())]
    swept = asyncio.Event()

    def sweep(*_: object) -> int:
        if failures:
            raise failures.pop()
        swept.set()
        return 0

    monkeypatch.setattr(process, "sweep", sweep)
    monkeypatch.setattr(process, "_SWEEP_S", 0.0)
    task = asyncio.create_task(process._sweep(None, None, process.BatchMetrics()))  # type: ignore[arg-type]
    await asyncio.wait_for(swept.wait(), 10)
    task.cancel()
