"""The once-a-second round on its own, over real Valkey: it goes on whatever went wrong in one of its
rounds, and says so.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from billing.wire import redis_keys
from gateway.catalogue.feed import Catalogue
from gateway.clock import Clock
from gateway.housekeeping import Housekeeping
from gateway.metrics import Metrics
from gateway.quarantine import Quarantine
from gateway.redis.journal import Journal
from gateway.redis.pipe import RedisPipe
from gateway.redis.unsynced import UnsyncedSettles
from gateway.upstream.engines import Engines
from gateway.waiting.outage import OutageLeases
from tests.billing.cell.requests import CellRequest
from tests.fixtures.gateway import wait_until


class Round:
    """It runs; what it says of itself."""

    def __init__(self, pipe: RedisPipe, journal: Journal) -> None:
        self.metrics = Metrics()
        self.outage = OutageLeases()
        catalogue = Catalogue(pipe, pipe, lambda _: None)
        keeping = Housekeeping(
            gateway_id="gw",
            redis=pipe,
            journal=journal,
            unsynced=UnsyncedSettles(redis=pipe, markers=pipe, journal=journal, gateway_id="gw"),
            outage=self.outage,
            catalogue=catalogue,
            metrics=self.metrics,
            clock=Clock(),
            quarantine=Quarantine(pipe, lambda _: "", now_ms=lambda: 0),
            engines=Engines(1.0),
        )
        self.task = asyncio.create_task(keeping.run())

    async def await_degraded(self, state: str, on: bool) -> None:
        async with asyncio.timeout(15):
            told = self.metrics.registry.get_sample_value
            while told("taas_degraded", {"component": state}) != on:
                assert not self.task.done(), "the round has died"
                await asyncio.sleep(0.01)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal(tmp_path / "journal", bytes_max=1)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def round_(valkey_url: str, journal: Journal) -> AsyncIterator[Round]:
    pipe = RedisPipe(valkey_url)
    running = Round(pipe, journal)
    yield running
    running.task.cancel()
    with suppress(asyncio.CancelledError):
        await running.task
    await pipe.close()


async def test_a_round_that_fails_is_followed_by_the_next(valkey: redis.Redis, round_: Round) -> None:
    valkey.delete(redis_keys.GATEWAYS)
    valkey.set(redis_keys.GATEWAYS, "no hash")
    await round_.await_degraded("housekeeping", on=True)
    valkey.delete(redis_keys.GATEWAYS)
    await round_.await_degraded("housekeeping", on=False)
    assert valkey.hexists(redis_keys.GATEWAYS, "gw")


async def test_a_journal_that_takes_no_more_is_told(
    valkey: redis.Redis, journal: Journal, round_: Round
) -> None:
    await round_.await_degraded("journal", on=False)
    valkey.delete(redis_keys.GATEWAYS)
    valkey.set(redis_keys.GATEWAYS, "no hash")  # what stands in the journal stays there
    journal.append(CellRequest(client=valkey, request_id="r").settle_command())
    await round_.await_degraded("journal", on=True)


@pytest.mark.parametrize(("ends_in_s", "counts"), [(4, 2), (-1, 1), (3_600, 1)])
async def test_fault_40_a_heartbeat_of_before_the_clock_went_back_is_nobody_who_lives(
    valkey: redis.Redis, round_: Round, ends_in_s: int, counts: int
) -> None:
    for _ in range(7):  # as many rounds as are remembered, one that has begun, and the first
        valkey.hset(redis_keys.GATEWAYS, "other", (valkey.time()[0] + ends_in_s) * 1000)
        beat = valkey.hget(redis_keys.GATEWAYS, "gw")
        await asyncio.to_thread(
            wait_until,
            lambda: valkey.hget(redis_keys.GATEWAYS, "gw") != beat,  # noqa: B023
            "a heartbeat",
        )
    assert round_.outage.gateways_alive == counts
