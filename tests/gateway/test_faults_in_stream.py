"""An engine that fails after its first token, or says what is no answer: one error object, no end that
looks like success, nothing billed.
"""

from collections.abc import Callable

import anthropic
import openai
import psutil
import pytest

from billing.wire.ending import Ending
from billing.wire.usage_event import UsageEvent, UsageSource
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway
from tests.gateway.asking import ROUTES, TEXT, TOKENS, Outcome, ask, assert_nothing_leaks, the_event

SAID = [{"role": "user", "content": TEXT}]
# Routes whose chunks carry the engine's count, so that what was produced is known to the token.
COUNTED_BY_ENGINE = {"chat", "completions"}
# Routes whose events tell their order; those of messages do not.
NUMBERED = ("chat", "completions", "responses")
# A late chunk looks like a count that goes back, which is no reason to take an answer from its caller.
ONLY_THE_COUNT_GOES_BACK = {("chat", "out_of_order"), ("completions", "out_of_order")}


def only(catalogue: Catalogue, engine: SimEngine) -> str:
    """One instance; returns a key."""
    catalogue.instance(engine.url, engine.key)
    return catalogue.key(catalogue.tenant("ten_a"))


def check_broken_off(catalogue: Catalogue, outcome: Outcome, engine: SimEngine, code: str) -> UsageEvent:
    """A stream that says that it failed, and that nobody pays for."""
    assert outcome.status == 200
    assert not outcome.done
    assert sum("error" in event and event["error"] is not None for event in outcome.events) == 1
    assert outcome.error_code() == code
    assert_nothing_leaks(outcome, engine)
    event = the_event(catalogue, outcome)
    assert event.billed.output == event.billed.prompt == event.units_mu == 0
    assert event.absorbed.output == event.produced.output > 0
    return event


@pytest.mark.parametrize("death", ["reset", "close"])
def test_fault_27_a_death_after_k_tokens_is_one_error_and_absorbed_to_the_token(
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    death: str,
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    for route in ROUTES:
        for tokens in (1, 5):
            engine.faults("die_after_tokens", f"{tokens}:{death}")
            event = check_broken_off(catalogue, ask(gateway, key, route, True), engine, "engine_failed")
            assert event.ending is Ending.ENGINE_DIED
            assert event.produced.output == event.delivered.output == tokens
            assert set(event.absorbed.reasons) == {Ending.ENGINE_DIED}
            if route in COUNTED_BY_ENGINE:
                truth = engine.truth()[event.request_id]
                assert event.produced.prompt == event.absorbed.prompt == truth["prompt"]
                assert event.produced.output == truth["output"]
        assert ask(gateway, key, route, True).done


def test_fault_27_a_kill_in_mid_stream_ends_only_its_own_streams(
    engine: SimEngine,
    make_engine: EngineMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
) -> None:
    dying = make_engine()
    dying.faults("die_after_tokens", "3:exit")
    catalogue.instance(dying.url, dying.key, name="dying")
    catalogue.instance(
        engine.url, engine.key, name="good", load={"running": 50, "waiting": 0, "kv_usage": 0.5}
    )
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    event = check_broken_off(catalogue, ask(gateway, key, "messages", True), dying, "engine_failed")
    assert (event.instance, event.produced.output) == ("dying", 3)
    after = ask(gateway, key, "chat", True)
    assert after.done
    assert the_event(catalogue, after).instance == "good"


def test_fault_27_a_whole_answer_that_dies_is_an_error_and_costs_nothing(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    for route in ROUTES:
        engine.faults("die_after_tokens", "5", count=None)
        outcome = ask(gateway, key, route)
        engine.reset()
        assert outcome.status == 503
        assert outcome.error_code() == "no_instance"
        event = the_event(catalogue, outcome)
        assert (event.ending, event.units_mu, event.billed.output) == (Ending.ENGINE_DIED, 0, 0)


@pytest.mark.parametrize("tokens", ["3", ""])
def test_fault_28_a_clean_end_without_its_last_events_is_no_success(
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    tokens: str,
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    for route in ROUTES:
        engine.faults("end_without_done", tokens)
        event = check_broken_off(catalogue, ask(gateway, key, route, True), engine, "engine_failed")
        assert event.ending is Ending.ENGINE_DIED
        assert event.produced.output == int(tokens or TOKENS)
        assert event.usage_source in {UsageSource.CHECKPOINT, UsageSource.COUNTED}


WITHOUT_TOKENS = ("html", "not_sse", "long_line", "gzip", "bad_chunk", "truncated_json", "binary")


@pytest.mark.parametrize("kind", WITHOUT_TOKENS)
def test_fault_29_garbage_is_502_within_bounded_memory(
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    conserved: Callable[[], None],
    kind: str,
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    assert ask(gateway, key, "chat", True).done
    before = resident_bytes(gateway)
    for route in ROUTES:
        for stream in (True, False):
            engine.faults("garbage", kind)
            outcome = ask(gateway, key, route, stream)
            assert (outcome.status, outcome.error_code()) == (502, "upstream_protocol_error"), (route, stream)
            assert_nothing_leaks(outcome, engine)
            event = the_event(catalogue, outcome)
            assert event.ending is Ending.PROTOCOL_ERROR
            assert event.units_mu == event.produced.output == 0
            assert ask(gateway, key, "chat").status == 200  # else its breaker would open
    assert resident_bytes(gateway) - before < 16 * 1024 * 1024
    assert ask(gateway, key, "chat", True).done
    conserved()


@pytest.mark.parametrize("kind", ["html", "not_sse", "bad_chunk"])
def test_fault_29_where_an_engine_sends_garbage_another_one_answers(
    engine: SimEngine, make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway, kind: str
) -> None:
    mad = make_engine()
    mad.faults("garbage", kind, count=None)
    catalogue.instance(mad.url, mad.key, name="mad")
    catalogue.instance(
        engine.url, engine.key, name="good", load={"running": 50, "waiting": 0, "kv_usage": 0.5}
    )
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    for stream in (True, False, True):
        outcome = ask(gateway, key, "chat", stream)
        assert outcome.status == 200
        event = the_event(catalogue, outcome)
        assert (event.instance, event.billed.output) == ("good", TOKENS)
    assert len(mad.requests()) == 1, "it is left alone for a moment"


def resident_bytes(gateway: GatewayProcess) -> int:
    """Memory of the gateway and its children."""
    assert gateway.process is not None
    one = psutil.Process(gateway.process.pid)
    return sum(process.memory_info().rss for process in [one, *one.children(recursive=True)])


def test_fault_29_an_event_that_comes_twice_or_too_late_is_never_billed(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    for route, kind in [(route, kind) for route in NUMBERED for kind in ("duplicate", "out_of_order")]:
        engine.faults("garbage", kind)
        outcome = ask(gateway, key, route, True)
        event = the_event(catalogue, outcome)
        assert event.units_mu == event.billed.output == 0
        if (route, kind) in ONLY_THE_COUNT_GOES_BACK:
            assert event.anomaly == "usage_backwards"
            assert event.absorbed.output == event.produced.output == TOKENS
        else:
            assert not outcome.done
            assert outcome.error_code() == "upstream_protocol_error"
            assert event.ending is Ending.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("fault", "value", "code"),
    [("die_after_tokens", "3", "engine_failed"), ("end_without_done", "3", "engine_failed")],
)
def test_fault_27_the_openai_sdk_raises(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, fault: str, value: str, code: str
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    engine.faults(fault, value, count=3)
    with openai.OpenAI(api_key=key, base_url=f"{gateway.url}/v1", max_retries=0) as client:
        with pytest.raises(openai.APIError) as chat:
            list(client.chat.completions.create(model=MODEL, messages=SAID, max_tokens=TOKENS, stream=True))  # type: ignore[arg-type]
        with pytest.raises(openai.APIError) as completion:
            list(client.completions.create(model=MODEL, prompt=TEXT, max_tokens=TOKENS, stream=True))
        with pytest.raises(openai.APIError) as response:
            list(client.responses.create(model=MODEL, input=TEXT, max_output_tokens=TOKENS, stream=True))
    assert {raised.value.code for raised in (chat, completion, response)} == {code}
    assert all(event.units_mu == 0 for event in catalogue.await_events(3))


@pytest.mark.parametrize(("fault", "value"), [("die_after_tokens", "3"), ("end_without_done", "3")])
def test_fault_27_the_anthropic_sdk_raises(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, fault: str, value: str
) -> None:
    key = only(catalogue, engine)
    gateway = start_gateway()
    engine.faults(fault, value)
    with (
        anthropic.Anthropic(api_key=key, base_url=gateway.url, max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError) as raised,
    ):
        list(client.messages.create(model=MODEL, messages=SAID, max_tokens=TOKENS, stream=True))  # type: ignore[arg-type]
    assert "engine_failed" in str(raised.value.body)
    assert catalogue.await_events(1)[0].units_mu == 0


def test_faults_25_and_31_are_raised_by_the_sdks_with_their_codes(
    engine: SimEngine, make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    dead = make_engine()
    dead.kill()
    key = only(catalogue, dead)
    gateway = start_gateway()
    with (
        openai.OpenAI(api_key=key, base_url=f"{gateway.url}/v1", max_retries=0) as client,
        pytest.raises(openai.InternalServerError) as unavailable,
    ):
        client.responses.create(model=MODEL, input=TEXT, max_output_tokens=TOKENS)
    assert (unavailable.value.status_code, unavailable.value.code) == (503, "no_instance")
    assert unavailable.value.request_id is not None
    with (
        anthropic.Anthropic(api_key=key, base_url=gateway.url, max_retries=0) as client_a,
        pytest.raises(anthropic.APIStatusError) as overloaded,
    ):
        client_a.messages.create(model=MODEL, messages=SAID, max_tokens=TOKENS)  # type: ignore[arg-type]
    assert overloaded.value.status_code == 503
