"""A private model's engines get nobody else's requests, and its owner's requests go to no other engine,
however they fail, wait or are moved. Both models are in one cell here, which billing refuses: the gateway
does not rely on that.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.cell.execute import execute
from billing.cell.scripts import grant_call
from billing.wire import redis_keys
from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from billing.wire.routes import TEXT_ROUTES
from gateway.catalogue.feed import Catalogue as Feed
from tests.examples import examples
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until
from tests.gateway.asking import EVERY_WAY, PATHS
from tests.gateway.asking import ask as ask_model

PRIVATE = "fine"
IDLE = {"running": 0, "waiting": 0, "kv_usage": 0.0}
BUSY = {"running": 90, "waiting": 9, "kv_usage": 0.9}


class Two:
    """A public model's engine and a private one's, with the keys of a stranger and of the owner."""

    def __init__(self, make: EngineMaker, catalogue: Catalogue, start: StartGateway) -> None:
        self.catalogue = catalogue
        self.public, self.private = make(model=MODEL), make(model=PRIVATE)
        catalogue.model(PRIVATE, owner="ten_owner", visible=["ten_owner"], pool=MODEL, cell=MODEL)
        self.register()
        self.stranger = catalogue.key(catalogue.tenant("ten_stranger"))
        self.owner = catalogue.key(catalogue.tenant("ten_owner"))
        self.gateway: GatewayProcess = start()

    def register(self, *, public: dict[str, Any] = IDLE, private: dict[str, Any] = IDLE) -> None:
        self.catalogue.instance(self.public.url, self.public.key, name="public", load=public)
        self.catalogue.instance(
            self.private.url, self.private.key, name="private", model=PRIVATE, pool=MODEL, cell=MODEL,
            load=private,
        )  # fmt: skip

    def ask(self, key: str, model: str, route: str = "chat", stream: bool = True, **fields: Any) -> Any:
        return ask_model(self.gateway, key, route, stream, **{"model": model, **fields})

    def models_at(self, engine: SimEngine) -> set[str]:
        return {
            request["body"]["model"] for request in engine.requests() if request["path"] in PATHS.values()
        }

    def assert_apart(self) -> None:
        """The engines serve under one name each, and would refuse another; here nothing else came at all."""
        assert self.models_at(self.public) <= {MODEL}
        assert self.models_at(self.private) <= {PRIVATE}


@pytest.fixture
def two(make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway) -> Two:
    return Two(make_engine, catalogue, start_gateway)


@pytest.mark.parametrize(("route", "stream"), EVERY_WAY)
def test_each_goes_to_its_own_however_busy_that_is(two: Two, route: str, stream: bool) -> None:
    for loads in ({"public": BUSY}, {"private": BUSY}):
        two.register(**loads)
        assert two.ask(two.owner, PRIVATE, route, stream).status == 200
        assert two.ask(two.stranger, MODEL, route, stream).status == 200
        assert two.ask(two.owner, MODEL, route, stream).status == 200
        assert two.ask(two.stranger, PRIVATE, route, stream).status == 404
    two.assert_apart()
    assert len(two.private.requests()) == 2


@pytest.mark.parametrize("route", ["chat", "completions"])
@pytest.mark.parametrize("fault", ["reset", "close", "exit"])
@pytest.mark.parametrize("whose", ["private", "public"])
def test_a_stream_that_breaks_goes_on_nowhere_else(two: Two, route: str, fault: str, whose: str) -> None:
    engine, key, model = {
        "private": (two.private, two.owner, PRIVATE),
        "public": (two.public, two.stranger, MODEL),
    }[whose]
    engine.faults("die_after_tokens", f"5:{fault}")
    answer = two.ask(key, model, route, max_tokens=40)
    assert not answer.done
    assert answer.error_code() == "engine_failed"
    other = two.public if engine is two.private else two.private
    assert other.requests() == []


@pytest.mark.parametrize("whose", ["private", "public"])
@pytest.mark.parametrize("how", ["gone", "busy", "dying", "unregistered", "draining"])
def test_without_its_engine_a_request_waits_or_is_refused(two: Two, whose: str, how: str) -> None:
    engine, key, model = {
        "private": (two.private, two.owner, PRIVATE),
        "public": (two.public, two.stranger, MODEL),
    }[whose]
    other = two.public if engine is two.private else two.private
    if how == "gone":
        engine.kill()
    elif how == "busy":
        engine.faults("status", 503, count=None)
    elif how == "dying":
        engine.faults("die_after_tokens", "0:close", count=None)
    elif how == "unregistered":
        two.catalogue.redis.hdel(redis_keys.INSTANCES, whose)
    else:
        two.catalogue.redis.hset(redis_keys.DRAINED, whose, "x")
    if how in {"unregistered", "draining"}:
        wait_until(lambda: two.ask(key, model, stream=False).status == 503, "instance that is gone")
    for route, stream in EVERY_WAY:
        assert two.ask(key, model, route, stream).status in {502, 503}
    assert other.requests() == []


def room(catalogue: Catalogue, **most: int) -> None:
    """What an allocator gives each instance; `g`: the flex sequences to preempt there."""
    fields = {f"{kind}:{name}": value for name, value in most.items() for kind in ("m", "x")}
    catalogue.redis.hset(redis_keys.room(MODEL), mapping=fields)
    execute(catalogue.redis, grant_call(MODEL))


def test_what_is_preempted_comes_back_to_its_own_and_takes_no_others_slot(
    two: Two, pool: ThreadPoolExecutor
) -> None:
    for engine in (two.private, two.public):
        engine.faults("slow_drip", 10, count=None)
    room(two.catalogue, private=4, public=4)
    asked = {"max_tokens": 120, "ignore_eos": True, "service_tier": "flex"}
    running = pool.submit(two.ask, two.owner, PRIVATE, "chat", True, **asked)
    wait_until(lambda: two.private.counters()["generation"] > 20, "tokens")
    room(two.catalogue, private=0)
    two.catalogue.redis.hset(redis_keys.room(MODEL), "g:private", 1)
    execute(two.catalogue.redis, grant_call(MODEL))
    wait_until(lambda: two.private.counters()["running"] == 0, "place given up")
    # The public engine has room all the time, and a stranger is served there.
    assert two.ask(two.stranger, MODEL, max_tokens=4).status == 200
    two.catalogue.redis.hset(redis_keys.room(MODEL), "g:private", 0)
    room(two.catalogue, private=4)
    answer = running.result()
    assert (answer.status, answer.done) == (200, True)
    two.assert_apart()
    assert len(two.private.requests()) >= 2
    assert len(two.public.requests()) == 1


def test_who_waits_is_not_let_in_elsewhere(two: Two, pool: ThreadPoolExecutor) -> None:
    room(two.catalogue, private=0, public=8)
    waiting = [pool.submit(two.ask, two.owner, PRIVATE, max_tokens=4) for _ in range(4)]
    wait_until(
        lambda: bool(two.catalogue.redis.zcard(redis_keys.waiting_tenants(MODEL, "o"))), "requests that wait"
    )
    served = [two.ask(two.stranger, MODEL, max_tokens=4).status for _ in range(8)]
    assert served == [200] * 8
    assert two.private.requests() == []
    room(two.catalogue, private=8)
    assert [each.result().status for each in waiting] == [200] * 4
    two.assert_apart()


def test_a_session_and_a_prompt_that_others_have_sent_lead_to_no_other_model(
    two: Two, make_engine: EngineMaker
) -> None:
    """With several engines each, so that caches and sessions are looked at."""
    more = {name: make_engine(model=name) for name in (MODEL, PRIVATE)}
    for name, engine in more.items():
        two.catalogue.instance(engine.url, engine.key, name=f"{name}-2", model=name, pool=MODEL, cell=MODEL)
    prompt = "The same long prompt, sent by two tenants. " * 60
    asked = {"messages": [{"role": "user", "content": prompt}], "prompt_cache_key": "s", "max_tokens": 2}
    with two.gateway.client(two.owner) as owner, two.gateway.client(two.stranger) as stranger:
        for _ in range(8):
            for client, model in ((stranger, MODEL), (owner, PRIVATE)):
                answer = client.post(
                    PATHS["chat"], json={**asked, "model": model}, headers={"x-session-id": "s"}
                )
                assert answer.status_code == 200
    two.assert_apart()
    assert two.models_at(more[MODEL]) <= {MODEL}
    assert two.models_at(more[PRIVATE]) <= {PRIVATE}


def test_under_load_and_deaths_nothing_crosses(two: Two, pool: ThreadPoolExecutor) -> None:
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            for engine in (two.private, two.public):
                engine.faults("die_after_tokens", "3:reset")
            stop.wait(0.02)

    disturbing = pool.submit(disturb)
    asked = [(two.owner, PRIVATE), (two.stranger, MODEL), (two.stranger, PRIVATE)] * 60
    answers = [*pool.map(lambda each: two.ask(*each, max_tokens=12).status, asked)]
    stop.set()
    disturbing.result()
    assert {status for (_, model), status in zip(asked, answers, strict=True) if model == MODEL} <= {
        200,
        502,
        503,
    }
    assert answers[2::3] == [404] * 60
    two.assert_apart()
    assert two.models_at(two.private) == {PRIVATE}


_NAMES = st.sampled_from(["a", "b", "b:tuned", "c"])


@given(
    st.lists(
        st.tuples(_NAMES, st.dictionaries(_NAMES, st.just("x"), max_size=2), st.sampled_from(InstanceStatus)),
        max_size=12,
    )
)
@settings(max_examples=examples(200))
def test_of_any_instances_a_model_gets_those_alone_that_serve_it(
    registered: list[tuple[str, dict[str, str], InstanceStatus]],
) -> None:
    feed = Feed(None, None, lambda _: None)  # type: ignore[arg-type]
    entries = [
        InstanceEntry(
            instance=f"i{number}", model=model, pool="p", cell="c", url="http://x", key=None, epoch="e",
            status=status, adapters=adapters,
        )
        for number, (model, adapters, status) in enumerate(registered)
    ]  # fmt: skip
    feed._take_instances(entries)
    for name in ("a", "b", "b:tuned", "c", "unknown"):
        wanted = {
            f"i{number}"
            for number, (model, adapters, _) in enumerate(registered)
            if name in {model, *adapters}
        }
        for route in TEXT_ROUTES:
            found = feed.serving(name, route)
            assert {entry.instance for entry in found} == wanted
            assert all(entry.model == name for entry in found)
