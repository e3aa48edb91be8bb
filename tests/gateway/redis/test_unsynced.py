"""What Redis has answered and may not have on its disk: kept until it says so, and sent again after a lost
connection.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from billing.cell.scripts import Command
from gateway.redis import unsynced
from gateway.redis.journal import Journal
from gateway.redis.pipe import RedisPipe, RedisUnavailable
from gateway.redis.unsynced import UnsyncedSettles
from tests.billing.cell.requests import CellRequest, empty, usage_events
from tests.fixtures.gateway import wait_until
from tests.fixtures.secure_stores import StartRedis
from tests.fixtures.valkey import ValkeyProcess, get_binary_path, say_intact

KEPT_MAX = 4


@dataclass(frozen=True, slots=True)
class Keeper:
    """What is tested, and what it works with."""

    settles: UnsyncedSettles
    journal: Journal
    redis: RedisPipe

    async def settle(self, number: int) -> None:
        """A settle that Redis answers."""
        await self.settles.execute(*settle(number))


def settle(number: int) -> Command:
    return CellRequest(client=None, request_id=f"r{number}").settle_command(number)  # type: ignore[arg-type]


StartKeeper = Callable[[str], Awaitable[Keeper]]


@pytest.fixture
async def start_keeper(tmp_path: Path) -> AsyncIterator[StartKeeper]:
    closing: list[Callable[[], Awaitable[None]]] = []

    async def start(url: str) -> Keeper:
        pipe, markers = RedisPipe(url, timeout_s=2), RedisPipe(url, timeout_s=5, scripts=False)
        journal = Journal(tmp_path / "journal")
        await journal.open()
        closing.extend((pipe.close, markers.close, journal.close))
        settles = UnsyncedSettles(
            redis=pipe, markers=markers, journal=journal, gateway_id="gw", kept_max=KEPT_MAX
        )
        return Keeper(settles, journal, pipe)

    yield start
    for close in closing:
        await close()


async def test_only_what_was_answered_well_before_the_marker_is_forgotten(
    start_keeper: StartKeeper, valkey_url: str
) -> None:
    keeper = await start_keeper(valkey_url)
    await keeper.settle(1)
    await keeper.settles.confirm()
    assert keeper.settles.kept == 1, "its fsync may not have begun"
    await asyncio.sleep(unsynced.LAG_S)  # how long ago it was answered is what counts
    await keeper.settle(2)
    await keeper.settles.confirm()
    assert keeper.settles.kept == 1, "the newer one stays"
    await keeper.settles.close()
    assert keeper.settles.kept == 0
    assert keeper.journal.empty, "nothing is left to be sent again"


async def test_past_the_cap_the_oldest_goes_to_the_journal_and_the_journal_waits(
    start_keeper: StartKeeper, valkey_url: str
) -> None:
    keeper = await start_keeper(valkey_url)
    for number in range(KEPT_MAX + 2):
        await keeper.redis.execute(*settle(number))
        keeper.settles.keep(settle(number))
    assert keeper.settles.kept == KEPT_MAX
    assert keeper.journal.entries == 2
    with pytest.raises(RedisUnavailable, match="disk is behind"):
        await keeper.journal.drain(keeper.settles.execute)
    assert keeper.journal.entries == 2


async def test_what_a_crash_of_its_machine_lost_is_sent_again(
    start_keeper: StartKeeper, own_valkey: ValkeyProcess
) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        empty(client)
        say_intact(client)
        keeper = await start_keeper(own_valkey.url)
        await keeper.redis.execute("PING")
        before = own_valkey.written
        await keeper.settle(1)
        await keeper.settle(2)
        own_valkey.kill()
        own_valkey.cut(before)
        own_valkey.start()
        assert usage_events(client) == []
        await asyncio.to_thread(wait_until, lambda: keeper.settles.kept == 0, "a lost connection")
        await keeper.redis.wait_healthy()
        assert await keeper.journal.drain(keeper.settles.execute) == 2
        assert sorted(event["request_id"] for event in usage_events(client)) == ["r1", "r2"]
        assert keeper.settles.kept == 2, "they may be lost again"


@contextmanager
def giving_up_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(unsynced, "GIVE_UP_S", 0.0)
        patch.setattr(unsynced, "WAIT_MS", 50)
        yield


async def test_a_server_that_promises_nothing_is_said_and_a_replica_mends_it(
    start_keeper: StartKeeper, start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = str(get_binary_path())
    server = start_redis(program, "--port", "{port}", "--save", "", "--repl-diskless-sync-delay", "0")
    keeper = await start_keeper(f"redis://127.0.0.1:{server.port}")
    with redis.Redis(port=server.port) as client:
        say_intact(client)
        await keeper.settle(1)
        with giving_up_at_once(monkeypatch):
            await keeper.settles.confirm()
            assert keeper.settles.promised, "once is not enough"
            await keeper.settles.confirm()
        assert not keeper.settles.promised
        await keeper.settle(2)
        assert keeper.settles.kept == 0
        replica = start_redis(program, "--port", "{port}", "--save", "")
        with redis.Redis(port=replica.port) as second:
            second.replicaof("127.0.0.1", server.port)
        await asyncio.to_thread(
            wait_until, lambda: client.info("replication")["connected_slaves"] == 1, "a replica"
        )
        while not keeper.settles.promised:
            await keeper.settles.confirm()
        await keeper.settle(3)
        assert keeper.settles.kept == 1
