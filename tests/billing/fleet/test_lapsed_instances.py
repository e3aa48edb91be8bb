"""What nobody renews is forgotten in the end, and nothing else is."""

import redis
from sqlalchemy import Engine

from billing.audit.engine_counters import CounterPoller
from billing.audit.engine_runs import read_runs
from billing.fleet.lapsed_instances import forget_lapsed
from billing.wire import redis_keys
from billing.wire.tokens import CounterPair
from tests.billing.engine_server import ScriptedEngine, register

DAY_MS = 86_400_000


def now_ms(client: redis.Redis) -> int:
    return int(client.time()[0]) * 1000


def names(client: redis.Redis) -> set[bytes]:
    return set(client.hkeys(redis_keys.INSTANCES))


def test_an_entry_is_forgotten_a_day_after_its_lease(raw_redis: redis.Redis) -> None:
    engine = ScriptedEngine(url="http://127.0.0.1:1")
    register(raw_redis, engine, "by-hand")
    register(raw_redis, engine, "alive", lease_until_ms=now_ms(raw_redis) + 60_000)
    register(raw_redis, engine, "yesterday", lease_until_ms=now_ms(raw_redis) - DAY_MS + 60_000)
    register(raw_redis, engine, "long-gone", lease_until_ms=now_ms(raw_redis) - DAY_MS - 2_000)
    raw_redis.hset(redis_keys.INSTANCES, "broken", b"{")
    assert forget_lapsed(raw_redis) == 1
    assert names(raw_redis) == {b"by-hand", b"alive", b"yesterday", b"broken"}
    assert forget_lapsed(raw_redis) == 0


def test_one_that_comes_back_in_the_last_moment_stays(raw_redis: redis.Redis) -> None:
    engine = ScriptedEngine(url="http://127.0.0.1:1")
    register(raw_redis, engine, lease_until_ms=1)

    class Slow(redis.Redis):
        """Its worker registers again between the look and the taking out."""

        def register_script(self, script: str | bytes) -> "redis.commands.core.Script":  # type: ignore[override]
            register(raw_redis, engine, lease_until_ms=now_ms(raw_redis) + 60_000)
            return super().register_script(script)  # type: ignore[arg-type]

    with Slow(connection_pool=raw_redis.connection_pool) as client:
        assert forget_lapsed(client) == 0
    assert names(raw_redis) == {b"i1"}


def test_the_last_counters_of_one_that_is_forgotten_stay_in_the_ledger(
    database: Engine, raw_redis: redis.Redis
) -> None:
    final = {
        "epoch": "e1",
        "prompt": 14,
        "generation": 9,
        "baseline": {"prompt": 4, "generation": 0},
        "exact": True,
    }
    register(
        raw_redis, ScriptedEngine(url="http://127.0.0.1:1"), status="down", lease_until_ms=1, final=final
    )
    poller = CounterPoller(database, raw_redis, timeout_ms=2000)
    try:
        poller.poll_once()
        assert forget_lapsed(raw_redis) == 1
        poller.poll_once()
    finally:
        poller.close()
    with database.connect() as connection:
        (run,) = read_runs(connection)
    assert (run.state, run.exact, run.produced) == ("closed", True, CounterPair(10, 9))
