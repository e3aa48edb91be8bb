"""The billing process as it is run: killed in mid-batch, stopped, and with its stores gone for a while."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from sqlalchemy import Engine, text

from billing.contracts import lifecycle, store
from billing.wire import redis_keys
from loadtest import plain_http
from loadtest.forked import Program
from tests.billing.contracts.selling import DAY, POOL, furnish, terms
from tests.billing.engine_server import ScriptedEngine, register, serve
from tests.billing.events import event
from tests.billing.usage.test_reap import lapse, reserve
from tests.fixtures.forked import start_module
from tests.fixtures.valkey import ValkeyProcess, free_port

ADMIN_KEY = "adm-test"


class BillingProcess:
    """One `python -m billing` on ports of its own."""

    def __init__(self, database_url: str, redis_url: str, log: Path, **environment: str) -> None:
        self.admin_port, self.metrics_port = free_port(), free_port()
        self.log = log
        self.environment = {
            **os.environ, "TAAS_DATABASE_URL": database_url, "TAAS_REDIS_URL": redis_url,
            "TAAS_ADMIN_KEY": ADMIN_KEY, "TAAS_ADMIN_PORT": str(self.admin_port),
            "TAAS_BILLING_METRICS_PORT": str(self.metrics_port), "TAAS_USAGE_CLAIM_IDLE_MS": "100",
            "TAAS_COUNTERS_INTERVAL_MS": "100", "TAAS_AUDIT_INTERVAL_MS": "200", **environment,
        }  # fmt: skip
        self.popen: Program | None = None

    def start(self) -> None:
        self.popen = start_module("billing", environment=self.environment, log=self.log)

    def end(self, number: signal.Signals) -> int:
        assert self.popen is not None
        self.popen.send_signal(number)
        return self.popen.wait(timeout=30)

    def metric(self, name: str) -> float | None:
        """The value of one series as it is written on the page; None while it is not there."""
        try:
            page = plain_http.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=2).text
        except httpx.HTTPError:
            return None
        values = [line.rsplit(" ", 1)[1] for line in page.splitlines() if line.startswith(name + " ")]
        return float(values[0]) if values else None

    def healthy(self) -> bool:
        try:
            return plain_http.get(f"http://127.0.0.1:{self.admin_port}/healthz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False


def until(condition: Callable[[], bool], process: BillingProcess, timeout_s: float = 30) -> None:
    """Wait for a condition; what the process logged explains a failure."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, process.log.read_text()[-4000:]
        time.sleep(0.01)


@pytest.fixture
def billing(migrated_database_url: str, valkey_url: str, tmp_path: Path) -> Iterator[BillingProcess]:
    with stopped_at_the_end(migrated_database_url, valkey_url, tmp_path) as process:
        yield process


@pytest.fixture
def billing_on_an_empty_database(
    database_url: str, valkey_url: str, tmp_path: Path
) -> Iterator[BillingProcess]:
    with stopped_at_the_end(database_url, valkey_url, tmp_path) as process:
        yield process


@contextmanager
def stopped_at_the_end(database_url: str, redis_url: str, folder: Path) -> Iterator[BillingProcess]:
    process = BillingProcess(database_url, redis_url, folder / "billing.log", TAAS_USAGE_BATCH_ENTRIES="100")
    yield process
    if process.popen is not None and process.popen.poll() is None:
        process.end(signal.SIGKILL)


@pytest.fixture
def tables(database: Engine) -> Engine:
    """The database that `billing` works on."""
    return database


def publish(client: redis.Redis, first: int, count: int) -> None:
    client.sadd(redis_keys.CELLS, "m1")
    with client.pipeline(transaction=False) as pipe:
        for number in range(first, first + count):
            pipe.xadd(redis_keys.usage_stream("m1"), {redis_keys.USAGE_FIELD: event(f"r{number}").to_json()})
        pipe.execute()


def recorded(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("select count(*) from usage_event")).scalar_one())


def test_kill_9_in_mid_batch_records_each_event_exactly_once(
    billing: BillingProcess, tables: Engine, raw_redis: redis.Redis
) -> None:
    total = 0
    for _ in range(3):
        publish(raw_redis, total, 500)
        total += 500
        billing.start()
        # Killed as soon as the first batch of this round is in SQL: acknowledged or not, the next one half
        # done.
        until(partial(lambda before: recorded(tables) > before, total - 500), billing)
        billing.end(signal.SIGKILL)
    billing.start()
    until(lambda: recorded(tables) == total and raw_redis.xlen(redis_keys.usage_stream("m1")) == 0, billing)
    assert billing.end(signal.SIGTERM) == 0
    with tables.connect() as connection:
        transactions = connection.execute(
            text("select count(*), count(distinct request_id) from ledger_transaction")
        ).one()
        summed = connection.execute(text("select billed_output from usage_total")).scalar_one()
    assert tuple(transactions) == (total, total)
    assert summed == 5 * total


def test_sigterm_finishes_the_batch_and_acknowledges_it(
    billing: BillingProcess, tables: Engine, raw_redis: redis.Redis
) -> None:
    publish(raw_redis, 0, 2000)
    billing.start()
    until(lambda: recorded(tables) > 0, billing)
    assert billing.end(signal.SIGTERM) == 0
    pending = raw_redis.xpending(redis_keys.usage_stream("m1"), redis_keys.USAGE_GROUP)["pending"]
    assert (pending, recorded(tables) + raw_redis.xlen(redis_keys.usage_stream("m1"))) == (0, 2000)


def test_it_migrates_answers_reaps_polls_and_audits(
    billing_on_an_empty_database: BillingProcess, raw_redis: redis.Redis
) -> None:
    billing = billing_on_an_empty_database
    with serve(ScriptedEngine(prompt=30, generation=12)) as engine:
        register(raw_redis, engine, lease_until_ms=4_000_000_000_000)
        reserve(raw_redis, "a", lease_ms=60_000, tokens=(10, 0, 7))
        lapse(raw_redis, "a")
        billing.start()
        until(billing.healthy, billing)
        until(lambda: billing.metric('taas_reaped_requests_total{cell="m1"}') == 1, billing)
        until(lambda: billing.metric('taas_audit_residual_tokens{engine="i1",kind="prompt"}') == 20, billing)
        until(lambda: billing.metric('taas_usage_stream_lag_entries{cell="m1"}') == 0, billing)
        audit = plain_http.get(
            f"http://127.0.0.1:{billing.admin_port}/admin/v1/audit",
            headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=20,
        )  # fmt: skip
        assert audit.status_code == 200
        assert audit.json()["residual_tokens"] == 25
    assert billing.end(signal.SIGTERM) == 0


def test_it_keeps_load_and_life_of_engines_added_by_hand_true(
    billing: BillingProcess, raw_redis: redis.Redis
) -> None:
    def ask(method: str, path: str, body: object = None) -> Any:
        answer = plain_http.request(
            method, f"http://127.0.0.1:{billing.admin_port}/admin/v1/{path}", json=body, timeout=20,
            headers={"authorization": f"Bearer {ADMIN_KEY}"},
        )  # fmt: skip
        assert answer.is_success, answer.text
        return answer.json()

    def listed() -> Any:
        (instance,) = ask("GET", "instances")["data"]
        return instance

    billing.start()
    until(billing.healthy, billing)
    ask("POST", "models", {"name": "m1", "context_tokens": 100})
    with serve(ScriptedEngine(running=3, waiting=1, kv_usage=0.5)) as engine:
        ask("POST", "instances", {"model": "m1", "url": engine.url, "force": True})
        assert listed()["status"] == "ready"
        until(lambda: listed()["load"] == {"running": 3, "waiting": 1, "kv_usage": 0.5}, billing)
    until(lambda: listed()["status"] == "down", billing)
    assert ask("GET", "pools/m1")["ready"] == 0
    assert billing.end(signal.SIGTERM) == 0


def test_it_allocates_its_cells_and_turns_contracts_and_leaves_its_cells_to_others_when_it_stops(
    billing: BillingProcess, tables: Engine, raw_redis: redis.Redis
) -> None:
    with tables.begin() as connection:
        shop = furnish(connection)
        now_ms = store.now_ms(connection)
        sold = terms(shop.tenants["acme"], 100, now_ms, now_ms + DAY)
        draft = lifecycle.draft(connection, sold, now_ms=now_ms)
        lifecycle.sign(connection, draft.contract_id, now_ms=now_ms)
    billing.start()
    numbers = redis_keys.contract_bucket(POOL, shop.tenants["acme"])
    until(lambda: raw_redis.hget(numbers, "rate") == b"100000", billing)
    until(lambda: billing.metric(f'taas_allocator_working{{cell="{POOL}"}}') == 1, billing)

    def state() -> str:
        with tables.connect() as connection:
            return store.find(connection, draft.contract_id).state

    until(lambda: state() == "active", billing)
    assert raw_redis.hexists(redis_keys.ALLOCATORS, POOL)
    assert raw_redis.zcard(redis_keys.ALLOCATORS_ALIVE) == 1
    assert billing.end(signal.SIGTERM) == 0
    assert not raw_redis.exists(redis_keys.ALLOCATORS, redis_keys.ALLOCATORS_ALIVE)


def test_what_waits_for_sql_is_told_while_sql_refuses_it(
    billing: BillingProcess, tables: Engine, raw_redis: redis.Redis
) -> None:
    with tables.begin() as connection:
        connection.execute(text("alter table usage_event rename to gone"))
    raw_redis.sadd(redis_keys.CELLS, "m1")
    # Old enough for whoever looks after what others have left.
    raw_redis.xadd(
        redis_keys.usage_stream("m1"), {redis_keys.USAGE_FIELD: event("a").to_json()}, id="1700000000000-0"
    )
    billing.start()
    until(lambda: billing.metric('taas_degraded{component="claims"}') == 1, billing)
    until(lambda: billing.metric('taas_usage_stream_lag_entries{cell="m1"}') == 1, billing)
    with tables.begin() as connection:
        connection.execute(text("alter table gone rename to usage_event"))
    until(lambda: recorded(tables) == 1, billing)
    until(lambda: billing.metric('taas_usage_stream_lag_entries{cell="m1"}') == 0, billing)


def test_a_redis_that_goes_and_comes_back_is_waited_for(
    own_valkey: ValkeyProcess, tables: Engine, migrated_database_url: str, tmp_path: Path
) -> None:
    process = BillingProcess(migrated_database_url, own_valkey.url, tmp_path / "billing.log")
    process.start()
    try:
        until(
            lambda: process.metric('taas_degraded{component="consumer"}') == 0 and process.healthy(), process
        )
        own_valkey.kill()
        until(lambda: process.metric('taas_degraded{component="consumer"}') == 1, process)
        own_valkey.start()
        with redis.Redis(port=own_valkey.port) as client:
            publish(client, 0, 3)
        until(lambda: recorded(tables) == 3, process)
        until(lambda: process.metric('taas_degraded{component="consumer"}') == 0, process)
    finally:
        process.end(signal.SIGTERM)
        own_valkey.stop()


def test_a_database_that_is_not_there_yet_is_waited_for(
    postgres_server: str, database_url: str, raw_redis: redis.Redis, valkey_url: str, tmp_path: Path
) -> None:
    missing = database_url.replace("/t_", "/none_")
    process = BillingProcess(missing, valkey_url, tmp_path / "billing.log")
    process.start()
    until(lambda: process.metric('taas_degraded{component="migration"}') == 1, process)
    assert process.end(signal.SIGTERM) == 0


def test_a_port_that_is_taken_is_said_and_ends_it(
    billing: BillingProcess, migrated_database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    billing.start()
    until(billing.healthy, billing)
    for setting, port in (
        ("TAAS_ADMIN_PORT", billing.admin_port),
        ("TAAS_BILLING_METRICS_PORT", billing.metrics_port),
    ):
        second = BillingProcess(migrated_database_url, valkey_url, tmp_path / "second.log")
        second.environment[setting] = str(port)
        second.start()
        assert second.popen is not None
        assert second.popen.wait(timeout=30) == 1
        said = f"billing cannot start: {setting}: port {port}: Address already in use"
        assert said in second.log.read_text()
