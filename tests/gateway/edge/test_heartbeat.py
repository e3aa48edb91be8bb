"""A stream that has nothing to say yet is kept alive: what was sent for that is no answer, and costs
nobody anything.
"""

from concurrent.futures import ThreadPoolExecutor

import anthropic
import openai
import pytest

from billing.wire import redis_keys
from billing.wire.ending import Ending
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway, wait_until
from tests.gateway.asking import ROUTES, TOKENS, Outcome, ask, body, the_event
from tests.gateway.test_faults_before_first_token import bad_and_good, only

# A heartbeat after less than half a second, and half of a deadline of two for the first of two engines.
IMPATIENT = {"TAAS_HEARTBEAT_S": "0.4", "TAAS_FIRST_TOKEN_DEADLINE_S": "2"}
COMMENT, PING = ": ping\n\n", 'event: ping\ndata: {"type": "ping"}\n\n'


def beats(outcome: Outcome) -> int:
    """How many heartbeats came before anything else."""
    beat, count, rest = PING if outcome.route == "messages" else COMMENT, 0, outcome.text
    while rest.startswith(beat):
        count, rest = count + 1, rest.removeprefix(beat)
    assert beat not in rest
    return count


@pytest.mark.parametrize("route", ROUTES)
def test_another_engine_answers_after_a_heartbeat(
    route: str, engine: SimEngine, make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    bad = make_engine()
    key = bad_and_good(catalogue, bad, engine)
    bad.faults("hang", "silent")
    outcome = ask(start_gateway(**IMPATIENT), key, route, True)
    assert outcome.status == 200
    assert outcome.done
    assert beats(outcome) >= 1
    # Which of the two would answer was not known when the head went out.
    assert "x-taas-instance" not in outcome.headers
    assert outcome.headers["x-taas-class"] == "on_demand"
    event = the_event(catalogue, outcome)
    assert event.instance == "good"
    assert event.ending is Ending.COMPLETE
    assert event.billed.output == event.delivered.output == TOKENS
    assert event.first_token_ms is not None
    assert event.first_token_ms - event.started_ms >= 1000, "a heartbeat is no first token"


@pytest.mark.parametrize("route", ROUTES)
def test_what_fails_after_a_heartbeat_is_told_in_the_stream(
    route: str, engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    key = only(catalogue, engine)
    engine.faults("hang", "silent")
    outcome = ask(start_gateway(**IMPATIENT), key, route, True)
    assert outcome.status == 200
    assert not outcome.done
    assert beats(outcome) >= 2
    assert outcome.error_code() == "deadline_exceeded"
    if route == "responses":
        assert outcome.events[-1]["sequence_number"] == 0, "nothing came before it"
    event = the_event(catalogue, outcome)
    assert event.ending is Ending.DEADLINE
    assert event.billed.prompt == event.billed.output == event.units_mu == 0


def test_none_before_its_time_and_none_in_whole_answers(
    slow: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    key = only(catalogue, slow)
    gateway = start_gateway(TAAS_HEARTBEAT_S="0.4")
    # Tokens come every few milliseconds for longer than the interval.
    streamed = ask(gateway, key, "chat", True, max_tokens=100)
    assert streamed.done
    assert COMMENT not in streamed.text
    assert "x-taas-instance" in streamed.headers
    assert ask(gateway, key, "chat", False, max_tokens=100).json["usage"]["completion_tokens"] == 100


def test_a_stream_that_stops_in_the_middle_is_kept_alive_too(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    key = only(catalogue, engine)
    engine.faults("stall_after_tokens", 3)
    outcome = ask(start_gateway(TAAS_HEARTBEAT_S="0.4", TAAS_REQUEST_DEADLINE_S="2"), key, "responses", True)
    assert outcome.error_code() == "deadline_exceeded"
    assert outcome.text.count(COMMENT) >= 2
    assert not outcome.text.startswith(COMMENT)
    numbers = [event["sequence_number"] for event in outcome.events]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 3


def test_zero_switches_it_off(engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway) -> None:
    key = only(catalogue, engine)
    engine.faults("hang", "silent")
    outcome = ask(start_gateway(TAAS_HEARTBEAT_S="0", TAAS_FIRST_TOKEN_DEADLINE_S="2"), key, "chat", True)
    assert outcome.status == 504
    assert outcome.error_code() == "deadline_exceeded"


def test_who_waits_for_room_hears_of_it(
    slow: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.instance(slow.url, slow.key)
    catalogue.redis.hset(redis_keys.room(MODEL), mapping={"m:i1": 1, "x:i1": 1})
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_HEARTBEAT_S="0.4", TAAS_WAIT_ON_DEMAND_S="1")
    held = pool.submit(ask, gateway, key, "chat", True, max_tokens=400)
    wait_until(lambda: slow.counters()["running"] == 1, "held stream")
    late = ask(gateway, key, "messages", True)
    assert late.status == 200
    assert beats(late) >= 1
    assert late.error_code() == "rate_limit_exceeded"
    # Neither was known when the head went out.
    assert "x-taas-class" not in late.headers
    assert "anthropic-ratelimit-requests-limit" not in late.headers
    assert held.result().done
    assert [event.ending for event in catalogue.await_events(1)] == [Ending.COMPLETE]


def test_the_sdks_pass_over_heartbeats_and_raise_what_follows(
    engine: SimEngine, make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    bad = make_engine()
    key = bad_and_good(catalogue, bad, engine)
    gateway = start_gateway(**IMPATIENT)
    chat, messages = body("chat", True), body("messages", True)
    asked = {name: value for name, value in body("responses", True).items() if name != "stream"}
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as one,
        anthropic.Anthropic(base_url=gateway.url, api_key=key, max_retries=0) as other,
    ):
        bad.faults("hang", "silent")
        chunks = list(one.chat.completions.create(**chat))
        assert chunks[-1].choices[0].finish_reason == "length"
        bad.faults("hang", "silent")
        with one.responses.stream(**asked) as stream:
            assert stream.get_final_response().status == "incomplete"
        bad.faults("hang", "silent")
        events = list(other.messages.create(**messages))
        assert (events[0].type, events[-1].type) == ("message_start", "message_stop")

        bad.faults("hang", "silent", count=None)
        engine.faults("hang", "silent", count=None)
        with pytest.raises(openai.APIError) as refused:
            list(one.chat.completions.create(**chat))
        assert refused.value.code == "deadline_exceeded"
        with pytest.raises(openai.APIError), one.responses.stream(**asked) as stream:
            stream.until_done()
        with pytest.raises(anthropic.APIStatusError) as stopped:
            list(other.messages.create(**messages))
        assert stopped.value.body["error"]["type"] == "timeout_error"  # type: ignore[index]
