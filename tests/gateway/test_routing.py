"""A model with several instances: prompts that begin alike go to the same engine, which has them cached."""

import re
from typing import Any

import httpx

from billing.wire import redis_keys
from billing.wire.cached_prompt import CachedPrompt, lost_message
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import Catalogue, GatewayProcess, StartGateway, wait_until
from tests.gateway.asking import ask

LONG = "The tide comes in and the tide goes out again. " * 60


def page(gateway: GatewayProcess) -> str:
    (port,) = gateway.metrics_ports()
    return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text


def figure(gateway: GatewayProcess, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", page(gateway), re.MULTILINE)
    return float(found[1]) if found else 0.0


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def served(engines: list[SimEngine]) -> list[int]:
    return [len(engine.requests()) for engine in engines]


def test_prompts_that_begin_alike_go_to_the_engine_that_has_them_cached(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    engines = [make_engine() for _ in range(4)]
    for number, engine in enumerate(engines):
        catalogue.instance(engine.url, engine.key, name=f"i{number}")
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    for number in range(6):
        outcome = ask(gateway, key, "chat", stream=number % 2 == 0, **said(LONG + f"And {number}?"))
        assert outcome.status == 200, outcome.text
    assert sorted(served(engines)) == [0, 0, 0, 6]
    first, *others = catalogue.await_events(6)
    assert first.decision is not None
    assert (first.decision["routed"], first.decision["cached_expected"]) == ("load", 0)
    for event in others:
        assert event.decision is not None
        assert event.decision["routed"] == "prefix"
        assert abs(event.decision["cached_expected"] - event.produced.cached) < 0.25 * event.produced.cached
    assert figure(gateway, 'taas_routed_requests_total{why="prefix"}') == 5
    expected, found = (
        figure(gateway, f'taas_routed_cached_tokens_total{{which="{which}"}}')
        for which in ("expected", "found")
    )
    assert found == sum(event.produced.cached for event in others)
    assert abs(expected - found) < 0.2 * found


def test_another_tenants_prompt_is_not_expected_there(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    for number, engine in enumerate([make_engine(), make_engine()]):
        catalogue.instance(engine.url, engine.key, name=f"i{number}")
    gateway = start_gateway()
    for tenant in ("ten_a", "ten_b"):
        assert ask(gateway, catalogue.key(catalogue.tenant(tenant)), "chat", **said(LONG)).status == 200
    events = catalogue.await_events(2)
    assert [event.decision and event.decision["routed"] for event in events] == ["load", "load"]
    assert [event.produced.cached for event in events] == [0, 0]


def test_a_request_that_an_engine_failed_says_that_it_went_elsewhere(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    engines = [make_engine(), make_engine()]
    for number, engine in enumerate(engines):
        catalogue.instance(engine.url, engine.key, name=f"i{number}")
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    assert ask(gateway, key, "chat", **said(LONG)).status == 200
    has_it = engines[0] if engines[0].requests() else engines[1]
    has_it.faults("status", 500)
    assert ask(gateway, key, "chat", **said(LONG)).status == 200
    assert catalogue.await_events(2)[1].decision["routed"] == "next"  # type: ignore[index]


def test_a_single_instance_is_no_choice(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    assert ask(gateway, key, "chat", **said(LONG)).status == 200
    (event,) = catalogue.await_events(1)
    assert event.decision is not None
    assert "routed" not in event.decision
    assert "taas_routed_requests_total{" not in page(gateway)


def test_two_gateways_send_the_same_prompt_to_the_same_engine(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    engines = [make_engine() for _ in range(4)]
    for number, engine in enumerate(engines):
        catalogue.instance(engine.url, engine.key, name=f"i{number}")
    gateways, key = [start_gateway(), start_gateway()], catalogue.key(catalogue.tenant("ten_a"))
    for gateway in gateways:  # nothing tells them apart, so each alone would choose the same
        assert ask(gateway, key, "chat", **said(LONG)).status == 200
    assert sorted(served(engines)) == [0, 0, 0, 2]
    wait_until(lambda: len(catalogue.events()) == 2, "two events")


def test_what_an_engine_has_lost_is_not_expected_there(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    """An engine that tells of its cache is told which prompt a request has, in hashes."""
    engines = [make_engine(), make_engine()]
    for number, engine in enumerate(engines):
        catalogue.instance(engine.url, engine.key, name=f"i{number}", cache_events=True)
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    for number in range(2):
        assert ask(gateway, key, "chat", **said(LONG + f"And {number}?")).status == 200
    first, second = catalogue.await_events(2)
    assert second.decision is not None
    assert (second.instance, second.decision["routed"]) == (first.instance, "prefix")
    (engine,) = [each for each in engines if each.requests()]
    told = CachedPrompt.from_text(dict(engine.requests()[0]["headers"])["x-session-id"])
    assert 3 <= len(told.beginnings) <= 8
    assert [ends for _, ends in told.beginnings] == sorted(ends for _, ends in told.beginnings)
    hashes = [(told.seed, [rest for rest, _ in told.beginnings])]
    catalogue.redis.publish(redis_keys.LOST_CHANNEL, b"not a message")
    assert catalogue.redis.publish(redis_keys.LOST_CHANNEL, lost_message(first.instance, "e1", hashes)) == 1
    wait_until(lambda: routed(gateway, key, catalogue) == "load", "a choice by load alone")
    assert routed(gateway, key, catalogue) == "prefix", "it was sent there again"
    for each in engines:
        catalogue.redis.publish(
            redis_keys.LOST_CHANNEL, lost_message("i0" if each is engines[0] else "i1", "e1", None)
        )
    wait_until(lambda: routed(gateway, key, catalogue) == "load", "a choice by load alone")


def routed(gateway: GatewayProcess, key: str, catalogue: Catalogue) -> str:
    before = len(catalogue.events())
    assert ask(gateway, key, "chat", **said(LONG + f"And {before}?")).status == 200
    decision = catalogue.await_events(before + 1)[-1].decision
    assert decision is not None
    return str(decision["routed"])


def test_an_engine_that_tells_nothing_is_told_nothing(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    engines = [make_engine(), make_engine()]
    for number, engine in enumerate(engines):
        catalogue.instance(engine.url, engine.key, name=f"i{number}")
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    assert ask(gateway, key, "chat", **said(LONG)).status == 200
    (request,) = [each for engine in engines for each in engine.requests()]
    assert "x-session-id" not in dict(request["headers"])
