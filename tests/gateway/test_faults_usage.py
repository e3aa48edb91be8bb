"""Engines that lie about usage are never believed; callers who try to use without being metered are
metered all the same.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from billing.wire.ending import Ending, OtherReason
from billing.wire.usage_event import UsageEvent, UsageSource
from loadtest import plain_http
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import Catalogue, StartGateway, wait_until
from tests.gateway.asking import EVERY_WAY, PATHS, ROUTES, TOKENS, ask, body, the_event

# Lies that show on every route, streamed or not.
PLAIN_LIES = {
    "missing": {"usage_missing", "usage_malformed"},
    "negative": {"usage_negative"},
    "huge": {"usage_above_max_tokens"},
    "huge_prompt": {"usage_malformed"},
    "cached_gt_prompt": {"usage_cached_above_prompt", "usage_negative"},
}
CONTINUOUS = ("chat", "completions")


def only(catalogue: Catalogue, engine: SimEngine) -> str:
    """One instance; returns a key."""
    catalogue.instance(engine.url, engine.key)
    return catalogue.key(catalogue.tenant("ten_a"))


def check_quarantined(event: UsageEvent, anomalies: set[str]) -> None:
    """Flagged, not billed, and no figure beyond what the request could produce."""
    assert event.anomaly in anomalies
    assert event.billed.prompt == event.billed.output == event.units_mu == 0
    assert 0 <= event.produced.output == event.absorbed.output <= TOKENS
    assert 0 <= event.produced.cached <= event.produced.prompt < 100
    assert set(event.absorbed.reasons) <= {OtherReason.USAGE_ANOMALY}


@pytest.mark.parametrize("lie", PLAIN_LIES)
def test_fault_30_a_lie_is_flagged_and_never_billed(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, lie: str
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    for route, stream in EVERY_WAY:
        engine.faults("usage", lie)
        outcome = ask(gateway, key, route, stream)
        assert outcome.status == 200
        event = the_event(catalogue, outcome)
        check_quarantined(event, PLAIN_LIES[lie])
        assert event.ending is Ending.COMPLETE
        if stream:
            assert event.produced.output == TOKENS, (route, lie)


def test_fault_30_figures_that_go_back_are_flagged_where_they_can_be_seen(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    for route in CONTINUOUS:
        engine.faults("usage", "backwards")
        event = the_event(catalogue, ask(gateway, key, route, True))
        check_quarantined(event, {"usage_backwards"})
        assert event.produced.output == TOKENS


def test_fault_30_an_explicit_zero_is_billed_as_zero(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    for route, stream in EVERY_WAY:
        engine.faults("usage", "zero")
        event = the_event(catalogue, ask(gateway, key, route, stream))
        assert (event.produced.prompt, event.produced.output, event.units_mu) == (0, 0, 0)
        assert event.usage_source is UsageSource.ENGINE


def test_fault_30_a_huge_figure_does_not_eat_the_quota_while_it_streams(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    slow = make_engine("--decode-ms", "100")
    catalogue.instance(slow.url, slow.key)
    limit = {"model": "*", "requests_per_minute": None, "units_per_minute": 2000, "concurrency": None}
    key = catalogue.key(catalogue.tenant("ten_a", limits=[limit]))
    gateway = start_gateway(TAAS_CHECKPOINT_MS="50")
    slow.faults("usage", "huge")
    first = ask(gateway, key, "chat", True)  # eight tokens take longer than several checkpoints
    assert first.status == 200
    check_quarantined(the_event(catalogue, first), {"usage_above_max_tokens"})
    assert ask(gateway, key, "chat", True).done


async def leave_after_the_first_piece(client: httpx.AsyncClient, route: str, **fields: Any) -> None:
    """Ask for a stream, read one piece, go away."""
    async with client.stream("POST", PATHS[route], json=body(route, True, **fields)) as answer:
        assert answer.status_code == 200
        async for _ in answer.aiter_raw():
            return


def test_fault_43_asking_for_no_usage_changes_nothing_on_the_bill(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, conserved: Callable[[], None]
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    for route in CONTINUOUS:
        for options in (None, {"include_usage": False}, {"include_usage": True}):
            outcome = ask(gateway, key, route, True, stream_options=options)
            assert outcome.done, outcome.text
            event = the_event(catalogue, outcome)
            assert event.billed.output == TOKENS
            assert any(chunk.get("usage") for chunk in outcome.events) is (options == {"include_usage": True})
    conserved()


def test_fault_43_every_route_is_metered_by_the_same_counters(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, conserved: Callable[[], None]
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    for route, stream in EVERY_WAY:
        event = the_event(catalogue, ask(gateway, key, route, stream))
        assert event.billed.output == TOKENS
        assert event.billed.prompt > 0
    for fields in ({"n": 3}, {"max_tokens": 1}, {"logprobs": True}):
        for stream in (True, False):
            the_event(catalogue, ask(gateway, key, "chat", stream, **fields))
    for fields in ({"echo": True}, {"prompt": ["a b c", "d e"]}, {"max_tokens": 1, "n": 2}, {"stop": ["e"]}):
        for stream in (True, False):
            outcome = ask(gateway, key, "completions", stream, **fields)
            assert outcome.status in {200, 400}, outcome.text
    conserved()


def test_fault_43_echo_of_the_prompt_alone_is_no_way_round_the_bill(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, conserved: Callable[[], None]
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    for stream in (True, False):
        outcome = ask(gateway, key, "completions", stream, echo=True, max_tokens=0)
        assert outcome.status == 200
        assert the_event(catalogue, outcome).billed.prompt > 0
    conserved()


def test_fault_43_leaving_at_the_first_token_is_billed_to_what_was_produced(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    slow = make_engine("--decode-ms", "20")
    key = only(catalogue, slow)
    gateway = start_gateway()

    async def leave() -> None:
        headers = {"authorization": f"Bearer {key}"}
        async with plain_http.AsyncClient(base_url=gateway.url, headers=headers, timeout=30) as client:
            for route in ROUTES:
                await leave_after_the_first_piece(client, route, **output_limit(route, 500))

    asyncio.run(leave())
    events = catalogue.await_events(len(ROUTES))
    check_exact(slow, catalogue, len(ROUTES))
    assert {event.ending for event in events} == {Ending.CLIENT_DISCONNECT}
    assert all(0 < event.billed.output < 100 for event in events)
    assert all(event.billed.prompt > 0 for event in events)


def output_limit(route: str, tokens: int) -> dict[str, int]:
    """The field that limits the output of a route."""
    return {"max_output_tokens" if route == "responses" else "max_tokens": tokens}


def check_exact(engine: SimEngine, catalogue: Catalogue, requests: int) -> None:
    """Each of so many requests has one event, exact by the engine's own word, and all together what its
    counters say.
    """
    wait_until(lambda: engine.counters()["running"] == 0, "an idle engine")
    events, counters = catalogue.await_events(requests), engine.counters()
    assert len(events) == len({event.request_id for event in events}) == requests
    produced = sum(event.produced.prompt for event in events), sum(event.produced.output for event in events)
    assert produced == (counters["prompt"], counters["generation"])
    assert all(event.billed.output == event.produced.output for event in events)


def test_fault_43_a_hundred_requests_cancelled_at_once_are_all_billed_exactly(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    slow = make_engine("--decode-ms", "10")
    key = only(catalogue, slow)
    gateway = start_gateway()

    async def cancel_all() -> None:
        headers = {"authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=200)
        async with (
            plain_http.AsyncClient(
                base_url=gateway.url, headers=headers, timeout=60, limits=limits
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            for at in range(100):
                route = ROUTES[at % len(ROUTES)]
                group.create_task(leave_after_the_first_piece(client, route, **output_limit(route, 1000)))

    asyncio.run(cancel_all())
    check_exact(slow, catalogue, 100)
    assert ask(gateway, key, "chat").status == 200


def test_fault_43_requests_cancelled_before_their_head_leave_nothing_unmetered(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    slow = make_engine("--decode-ms", "10")
    key = only(catalogue, slow)
    gateway = start_gateway()

    async def send_and_leave(pause_s: float) -> None:
        content = json.dumps(body("chat", False, max_tokens=1000)).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        head = (
            f"POST {PATHS['chat']} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
            f"{key}\r\ncontent-length: {len(content)}\r\n"
        )
        writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + content)
        await writer.drain()
        await asyncio.wait([asyncio.create_task(reader.read(1))], timeout=pause_s)
        writer.transport.abort()

    async def leave_all() -> None:
        async with asyncio.TaskGroup() as group:
            for at in range(60):
                group.create_task(send_and_leave(at * 0.005))

    asyncio.run(leave_all())
    assert ask(gateway, key, "chat").status == 200
    wait_until(lambda: slow.counters()["running"] == 0, "an idle engine", timeout_s=5)
    check_exact(slow, catalogue, len(catalogue.events()))
    assert len(slow.truth()) <= len(catalogue.events())
