"""Failover: an engine fails in mid-stream, and another one goes on from the text; its caller sees one stream,
its tenant one price.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from billing.wire import redis_keys
from billing.wire.ending import OtherReason
from billing.wire.usage_event import Ending, UsageEvent, UsageSource
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import Catalogue, StartGateway, wait_until
from tests.gateway.asking import Outcome, ask
from tests.gateway.test_preempt import text_of

TOKENS = 40
BUSY = {"running": 50, "waiting": 0, "kv_usage": 0.5}
WITH_USAGE: dict[str, Any] = {"max_tokens": TOKENS, "stream_options": {"include_usage": True}}


@pytest.fixture
def dying(make_engine: EngineMaker, engine: SimEngine, catalogue: Catalogue) -> SimEngine:
    """The first choice; `engine` is the other instance."""
    first = make_engine()
    catalogue.instance(first.url, first.key, name="first")
    catalogue.instance(engine.url, engine.key, name="other", load=BUSY)
    return first


def parts_of(catalogue: Catalogue, answer: Outcome, number: int) -> list[UsageEvent]:
    """Its events, in order; there are no others of it."""
    wait_until(
        lambda: sum(e.request_id.startswith(answer.request_id) for e in catalogue.events()) >= number,
        "usage events",
    )
    found = [event for event in catalogue.events() if event.request_id.startswith(answer.request_id)]
    assert len(found) == number
    return sorted(found, key=lambda event: event.request_id)


def figures(answer: Outcome) -> dict[str, int]:
    """What its usage says, but for the cache's part: an engine names that only at the end."""
    return {name: count for name, count in answer.events[-1]["usage"].items() if isinstance(count, int)}


@pytest.mark.parametrize("route", ["chat", "completions"])
@pytest.mark.parametrize("death", ["reset", "close", "exit"])
def test_fault_27_a_stream_whose_engine_dies_goes_on_elsewhere_as_one_stream_with_one_bill(
    dying: SimEngine,
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    route: str,
    death: str,
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    undisturbed = ask(gateway, key, route, True, **WITH_USAGE)
    dying.faults("die_after_tokens", f"15:{death}")
    answer = ask(gateway, key, route, True, **WITH_USAGE)
    assert (answer.status, answer.done) == (200, True)
    assert text_of(answer, route) == text_of(undisturbed, route)
    assert len({event["id"] for event in answer.events}) == 1
    usage = figures(answer)
    assert usage == figures(undisturbed)
    first, second = parts_of(catalogue, answer, 2)
    assert (first.instance, second.instance) == ("first", "other")
    assert (first.ending, second.ending) == (Ending.COMPLETE, Ending.COMPLETE)
    assert (first.usage_source, second.usage_source) == (UsageSource.CHECKPOINT, UsageSource.ENGINE)
    assert first.billed.prompt == usage["prompt_tokens"]
    assert first.billed.output == 15
    assert second.billed.prompt == 0
    assert second.billed.output == TOKENS - 15
    # the second prefill is ours to pay
    assert second.absorbed.reasons[OtherReason.CONTINUED].prompt > first.billed.prompt
    assert len(engine.requests()) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": None},
        {"seed": 7, "temperature": 0},
        {"presence_penalty": 0},
        {"stop": ["never said by it in all of its life"]},
        {"stop": ["z" * 16]},
        {"stop": ["zzz"]},
    ],
    ids=["plain", "no max_tokens", "greedy seed", "no penalty", "no text yet", "few words", "inside a word"],
)
def test_what_the_text_carries_fails_over(
    dying: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, fields: dict[str, Any]
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    asked = WITH_USAGE | fields
    undisturbed = ask(gateway, key, "chat", True, **asked)
    dying.faults("die_after_tokens", "5:reset")
    answer = ask(gateway, key, "chat", True, **asked)
    assert answer.done
    assert text_of(answer, "chat") == text_of(undisturbed, "chat")
    usage = figures(answer)
    assert usage == figures(undisturbed)
    billed = [event.billed for event in parts_of(catalogue, answer, 2)]
    assert sum(each.output for each in billed) == usage["completion_tokens"]
    assert sum(each.prompt for each in billed) == usage["prompt_tokens"]


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("chat", {"seed": 7}),
        ("chat", {"frequency_penalty": 0.5}),
        ("chat", {"logprobs": True}),
        ("chat", {"n": 2}),
        ("chat", {"response_format": {"type": "json_object"}}),
        ("responses", {}),
        ("messages", {}),
    ],
)
def test_what_depends_on_the_engines_state_ends_with_one_error_and_costs_nothing(
    dying: SimEngine,
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    route: str,
    fields: dict[str, Any],
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    dying.faults("die_after_tokens", "5:reset")
    answer = ask(gateway, key, route, True, **fields)
    assert not answer.done
    assert answer.error_code() == "engine_failed"
    (event,) = parts_of(catalogue, answer, 1)
    assert (event.ending, event.billed.output, event.units_mu) == (Ending.ENGINE_DIED, 0, 0)
    assert engine.requests() == []


def test_fault_32_a_request_with_which_two_engines_died_is_tried_on_no_third_and_by_no_gateway(
    dying: SimEngine,
    engine: SimEngine,
    make_engine: EngineMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
) -> None:
    third = make_engine()
    catalogue.instance(third.url, third.key, name="third", load=BUSY)
    for one in (dying, engine, third):
        one.faults("die_after_tokens", "3:reset", count=None)
    key, other = catalogue.key(catalogue.tenant("ten_a")), catalogue.key(catalogue.tenant("ten_b"))
    gateways = start_gateway(), start_gateway()
    answer = ask(gateways[0], key, "chat", True, max_tokens=TOKENS)
    assert not answer.done
    assert answer.error_code() == "engine_failed"
    assert sum(len(one.requests()) for one in (dying, engine, third)) == 2
    events = parts_of(catalogue, answer, 2)
    assert [event.ending for event in events] == [Ending.ENGINE_DIED] * 2
    assert sum(event.billed.output + event.billed.prompt for event in events) == 0
    assert [event.absorbed.output for event in events] == [3] * 2

    # An answer to its end would take it out of the quarantine: what asks before the news gets none.
    for one in (dying, engine, third):
        one.reset()
        one.faults("status", "400", count=None)
    wait_until(
        lambda: ask(gateways[1], key, "chat", True, max_tokens=TOKENS).status == 503, "news of the quarantine"
    )
    for one in (dying, engine, third):
        one.reset()
    for gateway in gateways:
        refused = ask(gateway, key, "chat", True, max_tokens=TOKENS)
        assert (refused.status, refused.error_code()) == (503, "request_quarantined")
        assert refused.headers["x-should-retry"] == "false"
        assert ask(gateway, key, "chat", True, max_tokens=TOKENS + 1).done
        assert ask(gateway, other, "chat", True, max_tokens=TOKENS).done
    held = catalogue.redis.zrange(redis_keys.QUARANTINE, 0, -1)
    assert [len(str(each).partition(" ")[0]) for each in held] == [64, 64]
    assert 0 < catalogue.redis.pttl(redis_keys.QUARANTINE) <= 600_000


def test_fault_32_a_request_that_is_sent_again_after_an_engine_died_with_it_counts_on(
    dying: SimEngine, engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    """A message cannot be resumed, so that each time it is sent it meets one engine."""
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    dying.faults("die_after_tokens", "3:reset")
    assert ask(gateway, key, "messages", True).error_code() == "engine_failed"
    assert ask(gateway, key, "messages", True).done, "an engine lives with it"
    for one in (engine, dying):
        one.faults("die_after_tokens", "3:reset", count=None)
    answers = [ask(gateway, key, "messages", True) for _ in range(4)]
    assert [answer.error_code() for answer in answers] == ["engine_failed"] * 2 + ["request_quarantined"] * 2
    assert ask(gateway, key, "messages", True, max_tokens=7).error_code() == "engine_failed", (
        "another request"
    )


def test_a_request_that_three_engines_refuse_to_go_on_with_is_tried_on_no_fourth(
    dying: SimEngine,
    engine: SimEngine,
    make_engine: EngineMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
) -> None:
    more = [make_engine(), make_engine()]
    for at, one in enumerate(more):
        catalogue.instance(one.url, one.key, name=f"more{at}", load=BUSY)
    every = [dying, engine, *more]
    for one in every:
        one.faults("status", "500", count=None)
    key = catalogue.key(catalogue.tenant("ten_a"))
    answer = ask(start_gateway(), key, "chat", True, max_tokens=TOKENS)
    assert answer.error_code() == "engine_failed"
    assert sum(len(one.requests()) for one in every) == 3
    assert catalogue.redis.zcard(redis_keys.QUARANTINE) == 0


def test_without_another_instance_the_stream_says_that_its_engine_failed(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    engine.faults("die_after_tokens", "3:reset")
    answer = ask(start_gateway(), key, "chat", True, max_tokens=TOKENS)
    assert answer.error_code() == "engine_failed"
    (event,) = parts_of(catalogue, answer, 1)
    assert (event.ending, event.billed.output) == (Ending.ENGINE_DIED, 0)


def test_a_text_that_was_whole_when_its_engine_died_is_not_made_longer(
    dying: SimEngine, engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    """All tokens and the finish reason had come, and neither usage nor the end of the stream."""
    key = catalogue.key(catalogue.tenant("ten_a"))
    dying.faults("die_after_tokens", "8:reset")
    answer = ask(start_gateway(), key, "chat", True, max_tokens=8)
    assert answer.error_code() == "engine_failed"
    assert engine.requests() == []
    (event,) = parts_of(catalogue, answer, 1)
    assert (event.ending, event.billed.output) == (Ending.ENGINE_DIED, 0)


def test_fault_41_a_stream_that_was_resumed_and_outlasts_the_drain_is_absorbed_in_all_its_parts(
    dying: SimEngine,
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
) -> None:
    key, gateway = catalogue.key(catalogue.tenant("ten_a")), start_gateway(TAAS_DRAIN_S="0.5")
    dying.faults("die_after_tokens", "5:reset")
    engine.faults("slow_drip", 50, count=None)
    asked = pool.submit(ask, gateway, key, "chat", True, max_tokens=1000)
    wait_until(lambda: sum(each["output"] for each in engine.truth().values()) > 1, "second part")
    assert gateway.terminate() == 0
    answer = asked.result(timeout=30)
    assert answer.error_code() == "gateway_stopped"
    for event in parts_of(catalogue, answer, 2):
        assert (event.ending, event.billed.prompt, event.billed.output) == (Ending.GATEWAY_STOPPED, 0, 0)
        assert event.absorbed.output == event.produced.output > 0
    assert catalogue.redis.zcard(redis_keys.open_requests("sim")) == 0


def test_fault_33_streams_of_an_engine_that_stands_still_go_on_elsewhere(
    make_engine: EngineMaker,
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    pool: ThreadPoolExecutor,
) -> None:
    """It takes connections and answers nothing: the silence is measured by its own first tokens."""
    still = make_engine("--decode-ms", "20")
    catalogue.instance(still.url, still.key, name="still")
    catalogue.instance(engine.url, engine.key, name="other", load=BUSY)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    for _ in range(4):
        assert ask(gateway, key, "chat", True, max_tokens=2).headers["x-taas-class"]
    began = pool.submit(ask, gateway, key, "chat", True, **WITH_USAGE)
    wait_until(lambda: still.counters()["running"] == 1, "running stream")
    before = len(engine.requests())
    wait_until(lambda: sum(each["output"] for each in still.truth().values()) > 8 + 5, "its tokens")
    with still.standing_still():
        whole = pool.submit(ask, gateway, key, "chat", False, max_tokens=2)
        silent = pool.submit(ask, gateway, key, "messages", True, max_tokens=2)
        answers = [found.result(timeout=30) for found in (began, whole, silent)]
    assert [answer.status for answer in answers] == [200] * 3
    assert (answers[0].done, answers[2].done) == (True, True)
    assert len(engine.requests()) >= before + 1
    assert {event.instance for event in parts_of(catalogue, answers[0], 2)} == {"still", "other"}
    assert answers[0].events[-1]["usage"]["completion_tokens"] == TOKENS
