"""An engine that fails before its first token: the other one answers, and where there is none the caller
is told when to come back.
"""

import socket
from collections.abc import Callable

import pytest

from billing.wire.ending import Ending
from billing.wire.usage_event import UsageEvent
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import Catalogue, GatewayProcess, StartGateway
from tests.fixtures.valkey import free_port
from tests.gateway.asking import EVERY_WAY, ROUTES, TOKENS, Outcome, ask, assert_nothing_leaks, the_event

# Makes an engine look busy, so that the other one is asked first.
BUSY = {"running": 50, "waiting": 0, "kv_usage": 0.5}


def bad_and_good(catalogue: Catalogue, bad: SimEngine, good: SimEngine) -> str:
    """Two instances, the bad one asked first; returns a key."""
    catalogue.instance(bad.url, bad.key, name="bad")
    catalogue.instance(good.url, good.key, name="good", load=BUSY)
    return catalogue.key(catalogue.tenant("ten_a"))


def only(catalogue: Catalogue, engine: SimEngine) -> str:
    """One instance; returns a key."""
    catalogue.instance(engine.url, engine.key)
    return catalogue.key(catalogue.tenant("ten_a"))


def check_answered_by_the_other(catalogue: Catalogue, outcome: Outcome, good: SimEngine) -> UsageEvent:
    """One answer, one event, on the second instance, one bill."""
    assert outcome.status == 200, outcome.text
    event = the_event(catalogue, outcome)
    truth = list(good.truth().values())[-1]
    assert event.instance == "good"
    assert event.ending is Ending.COMPLETE
    assert (event.billed.prompt, event.billed.output) == (truth["prompt"], truth["output"])
    assert event.billed.output == TOKENS
    assert event.absorbed.output == event.absorbed.prompt == 0
    return event


def check_none_left(catalogue: Catalogue, outcome: Outcome, *engines: SimEngine) -> None:
    """503, when to come back, and nothing to pay."""
    assert outcome.status == 503, outcome.text
    assert outcome.error_code() == "no_instance"
    assert 0 < int(outcome.headers["retry-after-ms"]) <= 60_000
    assert_nothing_leaks(outcome, *engines)
    event = the_event(catalogue, outcome)
    assert event.ending is Ending.ENGINE_DIED
    assert event.produced.output == event.billed.output == event.units_mu == 0


def test_fault_25_a_refused_connection_is_answered_by_the_other_engine(
    engine: SimEngine,
    make_engine: EngineMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    conserved: Callable[[], None],
) -> None:
    bad = make_engine()
    bad.kill()
    key = bad_and_good(catalogue, bad, engine)
    gateway = start_gateway()
    for route, stream in EVERY_WAY:
        check_answered_by_the_other(catalogue, ask(gateway, key, route, stream), engine)
    conserved()


def test_fault_25_none_left_is_503_with_a_time_to_come_back(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    bad = make_engine()
    bad.kill()
    key = only(catalogue, bad)
    for route, stream in EVERY_WAY:  # each with a gateway that has not seen it fail yet
        check_none_left(catalogue, ask(start_gateway(), key, route, stream), bad)


def test_fault_25_no_instance_at_all_says_when_to_come_back(
    catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    outcome = ask(start_gateway(), catalogue.key(catalogue.tenant("ten_a")), "chat")
    assert (outcome.status, outcome.error_code()) == (503, "no_instance")
    assert int(outcome.headers["retry-after-ms"]) > 0
    assert catalogue.events() == []


def test_fault_25_a_name_that_does_not_resolve_fails_over(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, conserved: Callable[[], None]
) -> None:
    catalogue.instance("http://no-such-host.invalid:8000", "k", name="bad")
    catalogue.instance(engine.url, engine.key, name="good", load=BUSY)
    key = catalogue.key(catalogue.tenant("ten_a"))
    check_answered_by_the_other(catalogue, ask(start_gateway(), key, "chat"), engine)
    conserved()


def test_fault_25_an_engine_that_accepts_nothing_fails_over(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):  # the kernel accepts, nobody ever answers
        catalogue.instance(f"http://127.0.0.1:{port}", "k", name="bad", abort=False)
        catalogue.instance(engine.url, engine.key, name="good", load=BUSY)
        key = catalogue.key(catalogue.tenant("ten_a"))
        gateway = start_gateway(TAAS_FIRST_TOKEN_DEADLINE_S="2.0", TAAS_CHECKPOINT_MS="50")
        check_answered_by_the_other(catalogue, ask(gateway, key, "chat", True), engine)


@pytest.mark.parametrize("how", ["silent", "headers"])
def test_fault_25_a_silent_engine_is_given_up_inside_the_first_token_budget(
    engine: SimEngine,
    make_engine: EngineMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    conserved: Callable[[], None],
    how: str,
) -> None:
    bad = make_engine()
    bad.faults("hang", how, count=None)
    key = bad_and_good(catalogue, bad, engine)
    for route in ROUTES:  # a gateway each, which does not yet avoid the silent one
        gateway = start_gateway(TAAS_FIRST_TOKEN_DEADLINE_S="2.0", TAAS_CHECKPOINT_MS="50")
        # Had the silent one used up the whole budget, this would be a 504.
        check_answered_by_the_other(catalogue, ask(gateway, key, route, True), engine)
    conserved()


@pytest.mark.parametrize("how", ["silent", "headers"])
def test_fault_12_a_hanging_engine_ends_at_the_deadline_and_only_that_request(
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    conserved: Callable[[], None],
    how: str,
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway(TAAS_FIRST_TOKEN_DEADLINE_S="0.5", TAAS_CHECKPOINT_MS="50")
    for route in ("chat", "messages"):
        engine.faults("hang", how)
        outcome = ask(gateway, key, route, True)
        check_deadline(catalogue, outcome, engine)
        assert ask(gateway, key, route, True).done
    conserved()


def test_fault_12_a_whole_answer_ends_at_the_deadline_of_the_request(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, conserved: Callable[[], None]
) -> None:
    key = only(catalogue, engine)
    engine.faults("hang", "silent")
    outcome = ask(start_gateway(TAAS_REQUEST_DEADLINE_S="0.5", TAAS_CHECKPOINT_MS="50"), key, "chat")
    check_deadline(catalogue, outcome, engine)
    conserved()


def check_deadline(catalogue: Catalogue, outcome: Outcome, engine: SimEngine) -> None:
    """504 while the caller still waits, and nothing to pay."""
    assert outcome.status == 504, outcome.text
    assert outcome.error_code() == "deadline_exceeded"
    assert_nothing_leaks(outcome, engine)
    event = the_event(catalogue, outcome)
    assert event.ending is Ending.DEADLINE
    assert event.billed.output == event.produced.output == 0


@pytest.mark.parametrize("death", ["reset", "close", "exit"])
def test_fault_26_a_death_before_the_first_token_is_tried_again_elsewhere(
    engine: SimEngine,
    make_engine: EngineMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    conserved: Callable[[], None],
    death: str,
) -> None:
    bad = make_engine()
    bad.faults("die_before_first_token", death, count=None)
    key = bad_and_good(catalogue, bad, engine)
    gateway = start_gateway()
    for route, stream in EVERY_WAY:
        check_answered_by_the_other(catalogue, ask(gateway, key, route, stream), engine)
    assert "engine failed before its first token" in gateway.log()
    conserved()


def test_fault_26_each_route_is_tried_again_elsewhere_after_a_death_before_the_first_token(
    engine: SimEngine,
    make_engine: EngineMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    conserved: Callable[[], None],
) -> None:
    bad = make_engine()
    bad.faults("die_before_first_token", "reset", count=None)
    key = bad_and_good(catalogue, bad, engine)
    for route in ROUTES:  # a gateway each, which knows nothing of the earlier failures
        check_answered_by_the_other(catalogue, ask(start_gateway(), key, route, True), engine)
    assert len(bad.requests()) == len(ROUTES)
    conserved()


def test_fault_26_a_death_before_the_first_token_with_none_left_costs_nothing(
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    conserved: Callable[[], None],
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    for route, stream in EVERY_WAY:
        engine.faults("die_before_first_token", "reset", count=None)
        outcome = ask(gateway, key, route, stream)
        assert outcome.status in {502, 503}
        assert outcome.error_code() in {"engine_failed", "no_instance"}
        assert_nothing_leaks(outcome, engine)
        event = the_event(catalogue, outcome)
        assert event.ending is Ending.ENGINE_DIED
        assert event.units_mu == event.produced.output == 0
        engine.reset()
        assert ask(gateway, key, route, stream).status == 200
    conserved()


def gateway_of(
    catalogue: Catalogue, start_gateway: StartGateway, engine: SimEngine
) -> tuple[GatewayProcess, str]:
    """A gateway over one engine, and a key."""
    key = only(catalogue, engine)
    return start_gateway(), key


def test_fault_31_a_400_is_passed_on_cleaned_and_costs_nothing(
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    conserved: Callable[[], None],
) -> None:
    gateway, key = gateway_of(catalogue, start_gateway, engine)
    for route, stream in EVERY_WAY:
        engine.faults("status", 400)
        outcome = ask(gateway, key, route, stream)
        assert (outcome.status, outcome.error_code()) == (400, "engine_refused")
        assert_nothing_leaks(outcome, engine)
        event = the_event(catalogue, outcome)
        assert event.ending is Ending.REFUSED_BY_ENGINE
        assert event.units_mu == event.produced.prompt == 0
    conserved()


STATUSES = [(429, 503, "overloaded"), (500, 502, "engine_failed"), (503, 502, "engine_failed")]


@pytest.mark.parametrize("status", [status for status, _, _ in STATUSES])
def test_fault_31_a_full_or_failing_engine_is_replaced_once(
    engine: SimEngine,
    make_engine: EngineMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    conserved: Callable[[], None],
    status: int,
) -> None:
    bad = make_engine()
    bad.faults("status", status, count=None)
    key = bad_and_good(catalogue, bad, engine)
    gateway = start_gateway()
    for route, stream in EVERY_WAY:
        check_answered_by_the_other(catalogue, ask(gateway, key, route, stream), engine)
    assert len(bad.requests()) >= 1
    conserved()


@pytest.mark.parametrize(("status", "told", "code"), STATUSES)
def test_fault_31_three_failing_engines_are_asked_once_each_and_no_fourth(
    make_engine: EngineMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    status: int,
    told: int,
    code: str,
) -> None:
    engines = [make_engine() for _ in range(4)]
    for at, one in enumerate(engines):
        one.faults("status", status, count=None)
        catalogue.instance(one.url, one.key, name=f"i{at}")
    key = catalogue.key(catalogue.tenant("ten_a"))
    for asked, (route, stream) in enumerate(EVERY_WAY, 1):
        outcome = ask(start_gateway(), key, route, stream)  # one that has not seen them fail yet
        assert (outcome.status, outcome.error_code()) == (told, code)
        assert ("retry-after-ms" in outcome.headers) is (told == 503)
        assert_nothing_leaks(outcome, *engines)
        assert sum(len(one.requests()) for one in engines) == 3 * asked
        event = the_event(catalogue, outcome)
        assert event.ending is Ending.ENGINE_ERROR
        assert event.units_mu == 0
