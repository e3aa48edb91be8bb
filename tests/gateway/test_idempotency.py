"""FAULTS 22 on inference: of all requests under one Idempotency-Key one is carried out and billed, whatever
happens to it, and a later one is told what became of it.
"""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx
import openai
import pytest
import redis
import uvicorn
from sqlalchemy import create_engine

from billing.api.app import build_app
from billing.catalogue import tenants
from billing.settings import BillingSettings
from billing.wire import redis_keys
from billing.wire.ending import Ending
from gateway.idempotency import ANSWER_BYTES_MAX, Claim
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until
from tests.fixtures.redis_faults import frozen
from tests.fixtures.valkey import ValkeyProcess, free_port
from tests.gateway.asking import EVERY_WAY, PATHS, body
from tests.gateway.test_fault_37 import BODY, is_open, reap_until
from tests.gateway.test_fault_37 import ask as ask_in_background

SERVICE_KEY = "svc-test"
CHAT = body("chat")


@dataclass(frozen=True, slots=True)
class Books:
    """A live admin API, and a tenant that it knows."""

    url: str
    tenant: str


@pytest.fixture
def books(migrated_database_url: str, valkey_url: str) -> Iterator[Books]:
    engine = create_engine(migrated_database_url)
    with engine.begin() as connection:
        tenant = tenants.create(connection, "acme").tenant_id
    port = free_port()
    with redis.Redis.from_url(valkey_url) as client:
        app = build_app(BillingSettings(admin_key="adm-test", service_key=SERVICE_KEY), engine, client)
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until(lambda: server.started, "admin API")
        yield Books(f"http://127.0.0.1:{port}", tenant)
        server.should_exit = True
        thread.join()
    engine.dispose()


@pytest.fixture
def start(books: Books, start_gateway: StartGateway) -> StartGateway:
    """Gateways that know these books."""
    return lambda *given, **environment: start_gateway(
        *given, TAAS_ADMIN_URL=books.url, TAAS_SERVICE_KEY=SERVICE_KEY, **environment
    )


def post(
    gateway: GatewayProcess, key: str, idempotency_key: str, route: str = "chat", **fields: Any
) -> httpx.Response:
    with gateway.client(key) as client:
        return client.post(
            PATHS[route], json=body(route, **fields), headers={"idempotency-key": idempotency_key}
        )


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error


async def test_fault_22_of_fifty_at_once_over_two_gateways_one_is_carried_out_and_billed(
    make_engine: EngineMaker, catalogue: Catalogue, start: StartGateway, books: Books
) -> None:
    engine = make_engine("--decode-ms", "50")
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant(books.tenant))
    gateways = [start(), start()]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda n: post(gateways[n % 2], key, "order-17"), range(50)))
    (served,) = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {409}
    codes = {error_of(answer)["code"] for answer in refused}
    assert codes <= {"idempotency_key_in_use", "idempotency_request_done"}
    assert {answer.headers["original-request"] for answer in refused} == {served.headers["x-request-id"]}
    running = next(each for each in refused if error_of(each)["code"] == "idempotency_key_in_use")
    assert int(running.headers["retry-after-ms"]) >= 1_000
    (event,) = catalogue.await_events(1)
    assert event.request_id == served.headers["x-request-id"]
    assert event.billed.output == engine.counters()["generation"]
    assert len(engine.requests()) == 1


def test_fault_22_afterwards_the_receipt_or_the_stored_answer_comes(
    engine: SimEngine, catalogue: Catalogue, start: StartGateway, books: Books, valkey_url: str
) -> None:
    catalogue.instance(engine.url, engine.key)
    forgets = catalogue.key(catalogue.tenant(books.tenant))
    keeps = catalogue.key(catalogue.tenant("ten_keeps", retain_answers_s=3600))
    gateway = start()
    for route, stream in EVERY_WAY:
        name = f"{route}-{stream}"
        first = post(gateway, forgets, name, route, stream=stream)
        again = post(gateway, forgets, name, route, stream=stream)
        assert (first.status_code, again.status_code) == (200, 409)
        error = error_of(again)
        told = error["details"] if route == "messages" else error
        assert told.get("error_code", told.get("code")) == "idempotency_request_done"
        receipt = told["receipt"]
        assert receipt["request_id"] == first.headers["x-request-id"] == again.headers["original-request"]
        (event,) = [each for each in catalogue.events() if each.request_id == receipt["request_id"]]
        assert receipt["billed"]["output"] == event.billed.output > 0
        assert receipt["ending"] == "complete"
        assert again.headers["x-should-retry"] == "false"
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["x-request-id"] != first.headers["x-request-id"]

        kept = post(gateway, keeps, name, route, stream=stream)
        replayed = post(gateway, keeps, name, route, stream=stream)
        assert replayed.status_code == 200
        assert replayed.content == kept.content
        assert replayed.headers["content-type"] == kept.headers["content-type"]
        assert replayed.headers["original-request"] == kept.headers["x-request-id"]
        assert replayed.headers["idempotent-replayed"] == "true"
    catalogue.tenant("ten_keeps")
    wait_until(lambda: post(gateway, keeps, "chat-False", stream=False).status_code != 200, "no answer")
    assert len(catalogue.events()) == len(engine.requests()) == 2 * len(EVERY_WAY)
    with redis.Redis.from_url(valkey_url) as raw:
        stored = raw.keys(redis_keys.idempotency_keys("ten_keeps", "*")[1])
        assert len(stored) == len(EVERY_WAY)
        assert b"usage" not in b"".join(raw.get(each) or b"" for each in stored)
        assert all(3_500_000 < raw.pttl(each) <= 3_600_000 for each in stored)
        assert not raw.keys(redis_keys.idempotency_keys(books.tenant, "*")[1])


def test_fault_22_another_request_under_the_key_is_422_and_other_tenants_have_their_own(
    engine: SimEngine, catalogue: Catalogue, start: StartGateway, books: Books
) -> None:
    catalogue.instance(engine.url, engine.key)
    tenant = catalogue.tenant(books.tenant)
    key, second, stranger = (
        catalogue.key(tenant),
        catalogue.key(tenant, project="other"),
        catalogue.key(catalogue.tenant("ten_b")),
    )
    gateway = start()
    assert post(gateway, key, "k").status_code == 200
    for other in (
        post(gateway, key, "k", max_tokens=3),
        post(gateway, key, "k", "completions"),
        post(gateway, second, "k", temperature=1.0),
    ):
        assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_key_reused")
    assert post(gateway, second, "k").status_code == 409, "a tenant's keys share what it has sent"
    assert post(gateway, stranger, "k").status_code == 200
    message = post(gateway, key, "k", "messages")
    assert (message.status_code, error_of(message)["type"]) == (422, "invalid_request_error")
    for bad in ("", "x" * 256, "with space", "ä"):
        refused = post(gateway, key, bad.encode())  # type: ignore[arg-type]
        assert (refused.status_code, error_of(refused)["param"]) == (400, "Idempotency-Key")
    assert post(gateway, key, "x" * 255).status_code == 200
    assert len(catalogue.await_events(3)) == 3


def test_fault_22_what_was_not_carried_out_leaves_its_key_free(
    engine: SimEngine, catalogue: Catalogue, start: StartGateway, books: Books
) -> None:
    limit = {"model": "*", "requests_per_minute": 1}
    key = catalogue.key(catalogue.tenant(books.tenant, limits=[limit]))
    gateway = start()
    assert post(gateway, key, "k", max_tokens=-1).status_code == 400
    assert post(gateway, key, "k").status_code == 503, "there is no instance"
    catalogue.instance(engine.url, engine.key)
    served = []
    wait_until(
        lambda: served.append(post(gateway, key, "k", max_tokens=4)) or served[-1].status_code == 200,
        "service",
    )
    limited = post(gateway, key, "k2")
    assert limited.status_code == 429
    catalogue.tenant(books.tenant)
    wait_until(lambda: post(gateway, key, "k2").status_code == 200, "the tenant's new limits")
    assert len(catalogue.await_events(2)) == 2
    assert int(catalogue.redis.hget(redis_keys.idempotency_keys(books.tenant, "")[2], "keys") or 0) == 2


def test_fault_22_after_an_error_of_ours_the_same_error_comes(
    engine: SimEngine, catalogue: Catalogue, start: StartGateway, books: Books
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant(books.tenant))
    gateway = start()
    engine.faults("status", 500)
    first = post(gateway, key, "k")
    again = post(gateway, key, "k")
    assert first.status_code == again.status_code == 502
    assert again.json() == first.json()
    assert again.headers["x-should-retry"] == "false"
    assert again.headers["idempotent-replayed"] == "true"
    assert len(catalogue.await_events(1)) == 1


@pytest.mark.parametrize("retained", [False, True])
def test_fault_22_a_caller_that_left_comes_back(
    retained: bool, make_engine: EngineMaker, catalogue: Catalogue, start: StartGateway, books: Books
) -> None:
    engine = make_engine("--decode-ms", "20")
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant(books.tenant, retain_answers_s=60 if retained else 0))
    gateway = start()
    with gateway.client(key, timeout_s=0.3) as client, pytest.raises(httpx.ReadTimeout):
        client.post(
            PATHS["chat"], json=body("chat", max_tokens=60, ignore_eos=True), headers={"idempotency-key": "k"}
        )
    (event,) = catalogue.await_events(1)
    again = post(gateway, key, "k", max_tokens=60, ignore_eos=True)
    if retained:
        assert event.ending is Ending.COMPLETE
        assert again.status_code == 200
        assert again.json()["usage"]["completion_tokens"] == 60 == event.billed.output
    else:
        assert event.ending is Ending.CLIENT_DISCONNECT
        assert error_of(again)["receipt"]["ending"] == "client_disconnect"
        assert error_of(again)["receipt"]["billed"]["output"] == event.billed.output < 60
    assert len(catalogue.events()) == 1


def test_fault_22_after_kill_9_the_books_say_how_it_ended(
    make_engine: EngineMaker, catalogue: Catalogue, start: StartGateway, books: Books, valkey_url: str
) -> None:
    engine = make_engine("--decode-ms", "5")
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant(books.tenant))
    gateway, other = start(TAAS_LEASE_MS="1000"), start()
    caller = ask_in_background(gateway, key, "[[fault:stall_after_tokens=5]]", {"idempotency-key": "k"})
    same = BODY | {"messages": [{"role": "user", "content": "[[fault:stall_after_tokens=5]]"}]}

    def again() -> dict[str, Any]:
        with other.client(key) as client:
            answer = client.post(PATHS["chat"], json=same, headers={"idempotency-key": "k"})
        assert answer.status_code == 409
        return error_of(answer)

    wait_until(lambda: is_open(catalogue) and bool(engine.requests()), "an open request")
    gateway.kill()
    caller.join()
    assert again()["code"] == "idempotency_key_in_use"
    reap_until(valkey_url, catalogue, lambda: len(catalogue.events()) == 1)
    done = again()
    assert done["code"] == "idempotency_request_done"
    assert done["receipt"]["ending"] == "gateway_died"
    assert done["receipt"]["billed"]["output"] == 0
    assert len(engine.requests()) == len(catalogue.events()) == 1


def test_fault_22_a_gateway_that_died_before_it_admitted_leaves_an_unknown_outcome(
    engine: SimEngine, catalogue: Catalogue, start: StartGateway, books: Books
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant(books.tenant))
    gateway = start()
    assert post(gateway, key, "k").status_code == 200
    (name,) = catalogue.redis.keys(redis_keys.idempotency_keys(books.tenant, "*")[0])
    lost = {"id": "req_" + "0" * 24, "gateway": "gone"}
    catalogue.redis.hset(name, mapping=lost)
    catalogue.redis.hdel(name, "ended")
    young = post(gateway, key, "k")
    assert error_of(young)["code"] == "idempotency_key_in_use"
    catalogue.redis.hincrby(name, "at", -20_000)
    unknown = post(gateway, key, "k")
    assert (unknown.status_code, error_of(unknown)["code"]) == (409, "idempotency_outcome_unknown")
    assert lost["id"] in error_of(unknown)["message"]
    assert unknown.headers["x-should-retry"] == "false"
    assert len(engine.requests()) == 1


def test_fault_22_a_settled_request_runs_until_its_gateway_has_told_its_end(
    engine: SimEngine, catalogue: Catalogue, start: StartGateway, books: Books
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant(books.tenant, retain_answers_s=60))
    gateway = start()
    first = post(gateway, key, "k")
    (name,) = catalogue.redis.keys(redis_keys.idempotency_keys(books.tenant, "*")[0])
    replayed = post(gateway, key, "k")
    told = catalogue.redis.hget(name, "ended")
    catalogue.redis.hdel(name, "ended")
    between = post(gateway, key, "k")
    assert (between.status_code, error_of(between)["code"]) == (409, "idempotency_key_in_use")
    assert int(between.headers["retry-after-ms"]) >= 1_000
    assert "x-should-retry" not in between.headers
    catalogue.redis.hset(name, "ended", told)
    again = post(gateway, key, "k")
    assert again.content == replayed.content == first.content

    catalogue.redis.hdel(name, "ended")
    catalogue.redis.hset(name, "gateway", "gone")
    died = post(gateway, key, "k")
    assert (died.status_code, error_of(died)["code"]) == (409, "idempotency_request_done")
    assert died.headers["x-should-retry"] == "false"
    assert len(engine.requests()) == len(catalogue.events()) == 1


def test_fault_22_without_redis_no_key_is_trusted(
    own_valkey: ValkeyProcess, engine: SimEngine, start: StartGateway, books: Books
) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        catalogue = Catalogue(client)
        catalogue.model()
        catalogue.instance(engine.url, engine.key)
        lease = {"policy": "local_lease", "requests": 6, "units": 100_000}
        key = catalogue.key(catalogue.tenant(books.tenant, redis_down=lease))
        gateway = start(own_valkey.url)
        with frozen(own_valkey, client):
            assert post(gateway, key, "k").status_code == 503
        served: list[httpx.Response] = []
        wait_until(
            lambda: served.append(post(gateway, key, "k")) or served[-1].status_code == 200,
            "a free key",
            instead=lambda: served[-1].text,
        )
        assert len(engine.requests()) == len(catalogue.await_events(1)) == 1


def test_an_answer_that_is_too_long_is_not_kept() -> None:
    ended: list[bool] = []
    claim = Claim(keeps=True)
    claim.whole = lambda: ended.append(claim.keeps)
    claim.take(b"x" * ANSWER_BYTES_MAX, True)
    assert (claim.keeps, len(claim.answer)) == (True, ANSWER_BYTES_MAX)
    claim.take(b"y", False)
    assert (claim.answer, ended) == (b"", [False])
    without = Claim(keeps=False)
    without.take(b"a completion", False)
    assert without.answer == b""


def test_the_official_sdks_send_one_key_with_all_tries_and_get_the_stored_answer(
    make_engine: EngineMaker, catalogue: Catalogue, start: StartGateway, books: Books
) -> None:
    engine = make_engine("--decode-ms", "20")
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant(books.tenant, retain_answers_s=60))
    gateway = start()
    said: Any = [{"role": "user", "content": "hello"}]
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=key, timeout=0.4, max_retries=5) as client:
        client._idempotency_header = "Idempotency-Key"
        answer = client.chat.completions.create(
            model=MODEL, messages=said, max_tokens=40, extra_body={"ignore_eos": True}
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 40
    with anthropic.Anthropic(base_url=gateway.url, api_key=key, timeout=0.4, max_retries=5) as other:
        message = other.messages.create(
            model=MODEL, messages=said, max_tokens=40, extra_body={"ignore_eos": True},
            extra_headers={"Idempotency-Key": "m-1"},
        )  # fmt: skip
        assert message.usage.output_tokens == 40
    assert len(engine.requests()) == len(catalogue.await_events(2)) == 2
    assert json.loads(answer.to_json())["choices"][0]["message"]["content"]
