"""Redis's machine dies: Redis comes back as it was up to a second earlier. What a living gateway has answered
is billed once nevertheless.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis
from sqlalchemy import Engine, create_engine, select

from billing.metrics import BillingMetrics
from billing.schema.ledger import ledger_transaction, usage_conflict, usage_event
from billing.usage.consumer import Consumer
from billing.usage.reap import Reaper
from billing.wire import redis_keys
from billing.wire.ending import Ending
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until
from tests.fixtures.valkey import ValkeyProcess

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 4}
STREAM = CHAT | {"max_tokens": 100, "ignore_eos": True, "stream": True}
ENVIRONMENT = {"TAAS_LEASE_MS": "1500", "TAAS_CHECKPOINT_MS": "100"}


class Ledger:
    """Billing's consumer over a real database, and what it has recorded."""

    def __init__(self, url: str, database: Engine) -> None:
        self.database = database
        self._client = redis.Redis.from_url(url)
        self._consumer = Consumer(
            database, self._client, name="one", batch=500, claim_idle_ms=0, metrics=BillingMetrics()
        )
        self._reaper = Reaper(self._client, BillingMetrics())

    def consume(self) -> None:
        """Record what the streams hold."""
        with contextlib.suppress(redis.ConnectionError):
            while self._consumer.consume_once() or self._consumer.claim_once():
                pass

    def reap(self) -> None:
        """End the requests whose gateway is dead."""
        self._reaper.reap_once()

    def rows(self) -> dict[str, Any]:
        """The usage of each request."""
        with self.database.connect() as connection:
            return {row.request_id: row for row in connection.execute(select(usage_event))}

    def await_rows(self, ids: set[str]) -> dict[str, Any]:
        """The usage of all of these; each has one transaction, and no event came with other contents."""

        def recorded() -> bool:
            self.consume()
            return ids <= self.rows().keys()

        wait_until(recorded, "usage in the ledger", instead=lambda: f"{ids - self.rows().keys()} are missing")
        with self.database.connect() as connection:
            assert connection.execute(select(usage_conflict)).all() == []
            billed = connection.execute(select(ledger_transaction.c.request_id)).scalars().all()
        assert len(billed) == len(set(billed))
        return self.rows()

    def close(self) -> None:
        self._client.close()
        self.database.dispose()


@pytest.fixture
def ledger(own_valkey: ValkeyProcess, migrated_database_url: str) -> Iterator[Ledger]:
    made = Ledger(own_valkey.url, create_engine(migrated_database_url))
    yield made
    made.close()


@pytest.fixture
def redis_client(own_valkey: ValkeyProcess) -> Iterator[redis.Redis]:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        client.config_set("appendfsync", "everysec")
        yield client


def catalogue_with(client: redis.Redis, engine: SimEngine) -> tuple[Catalogue, str]:
    """A catalogue with this engine, and a key."""
    catalogue = Catalogue(client)
    catalogue.model()
    catalogue.instance(engine.url, engine.key)
    return catalogue, catalogue.key(catalogue.tenant("ten_a"))


def ask(gateway: GatewayProcess, key: str, count: int) -> set[str]:
    """So many answered requests; their ids."""
    with gateway.client(key) as caller:
        answers = [caller.post("/v1/chat/completions", json=CHAT) for _ in range(count)]
    assert {answer.status_code for answer in answers} == {200}
    return {answer.headers["x-request-id"] for answer in answers}


def begin(gateway: GatewayProcess, key: str, stack: contextlib.ExitStack) -> tuple[str, Iterator[str]]:
    """A stream that has begun: its id and its other lines."""
    caller = stack.enter_context(gateway.client(key))
    answer: httpx.Response = stack.enter_context(caller.stream("POST", "/v1/chat/completions", json=STREAM))
    lines = answer.iter_lines()
    next(lines)
    return answer.headers["x-request-id"], lines


def await_settled(client: redis.Redis, *, still_open: int) -> None:
    """A caller has its answer a moment before the settle is in Redis."""
    opened = redis_keys.open_requests(MODEL)
    wait_until(lambda: client.zcard(opened) == still_open, "the settles of what was answered")


def machine_dies(valkey: ValkeyProcess, written: int) -> None:
    """Redis, and what it has written since its file was so long."""
    valkey.kill()
    assert valkey.written > written
    valkey.cut(written)


def test_fault_34_what_a_living_gateway_answered_in_the_lost_second_is_billed_once(
    own_valkey: ValkeyProcess,
    redis_client: redis.Redis,
    make_engine: EngineMaker,
    start_gateway: StartGateway,
    ledger: Ledger,
) -> None:
    engine = make_engine("--decode-ms", "20")
    _, key = catalogue_with(redis_client, engine)
    gateway = start_gateway(own_valkey.url, **ENVIRONMENT)
    with contextlib.ExitStack() as stack:
        early, early_lines = begin(gateway, key, stack)  # its reservation is older than the cut
        answered = ask(gateway, key, 3)
        written = own_valkey.written
        late, late_lines = begin(gateway, key, stack)  # its reservation is lost
        answered |= ask(gateway, key, 3)
        ledger.await_rows(answered)  # these are recorded, and come again
        answered |= ask(gateway, key, 3)
        machine_dies(own_valkey, written)
        with ThreadPoolExecutor(2) as pool:
            rest = [pool.submit(list, lines) for lines in (early_lines, late_lines)]
            own_valkey.start()
            assert all("data: [DONE]" in lines.result(60) for lines in rest)
    rows = ledger.await_rows(answered | {early, late})
    assert {row.ending for row in rows.values()} == {Ending.COMPLETE.value}
    assert sum(row.billed_output for row in rows.values()) == engine.counters()["generation"]
    wait_until(lambda: redis_client.zcard(redis_keys.open_requests(MODEL)) == 0, "no open request")
    ledger.consume()
    assert ledger.rows().keys() == answered | {early, late}


def test_fault_34_a_gateway_that_dies_too_is_settled_as_it_was_and_nothing_else_is_missing(
    own_valkey: ValkeyProcess,
    redis_client: redis.Redis,
    make_engine: EngineMaker,
    start_gateway: StartGateway,
    ledger: Ledger,
) -> None:
    engine = make_engine("--decode-ms", "20")
    _, key = catalogue_with(redis_client, engine)
    lives, dies = (start_gateway(own_valkey.url, **ENVIRONMENT) for _ in range(2))
    with contextlib.ExitStack() as stack:
        open_there, _ = begin(dies, key, stack)
        reservation = redis_keys.reservation(MODEL, open_there)
        wait_until(lambda: int(redis_client.hget(reservation, "o") or 0) > 5, "a checkpoint")
        older = ask(lives, key, 2) | ask(dies, key, 2)
        await_settled(redis_client, still_open=1)
        written = own_valkey.written
        recorded = ask(dies, key, 2)
        ledger.await_rows(recorded)  # billing knows these, Redis will not
        answered = ask(lives, key, 4)
        unknown = ask(dies, key, 2)
        await_settled(redis_client, still_open=1)
        dies.kill()
        machine_dies(own_valkey, written)
        own_valkey.start()
        stack.pop_all()
    answered |= older | recorded

    def reaped() -> bool:
        ledger.reap()
        return redis_client.zcard(redis_keys.open_requests(MODEL)) == 0

    wait_until(reaped, "the end of the open request")
    rows = ledger.await_rows(answered | {open_there})
    assert rows.keys() == answered | {open_there}
    assert rows[open_there].ending == Ending.GATEWAY_DIED.value
    assert all(rows[request_id].ending == Ending.COMPLETE.value for request_id in answered)
    # Nobody knows of these any more; the engine's counters show that something is missing.
    assert not unknown & rows.keys()
    produced = sum(row.produced_output for row in rows.values())
    assert engine.counters()["generation"] >= produced + 4 * len(unknown)


def test_fault_34_a_killed_redis_has_lost_nothing_even_if_every_gateway_dies(
    own_valkey: ValkeyProcess,
    redis_client: redis.Redis,
    engine: SimEngine,
    start_gateway: StartGateway,
    ledger: Ledger,
) -> None:
    _, key = catalogue_with(redis_client, engine)
    gateway = start_gateway(own_valkey.url, **ENVIRONMENT)
    answered = ask(gateway, key, 5)
    await_settled(redis_client, still_open=0)
    gateway.kill()
    own_valkey.kill()
    own_valkey.start()
    rows = ledger.await_rows(answered)
    assert rows.keys() == answered
