"""What is dropped from a request: the caller, the receipt and the metrics name it, the engine never sees
it.
"""

from typing import Any

import pytest

from loadtest import plain_http
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway
from tests.fixtures.valkey import free_port
from tests.gateway.asking import EVERY_WAY, PATHS, ask, body, the_event

UNKNOWN: dict[str, Any] = {"brand_new_hint": {"a": "secret"}, "tools": [{"type": "web_search"}]}


@pytest.mark.parametrize(("route", "stream"), EVERY_WAY)
def test_what_is_dropped_is_named_to_the_caller_and_in_the_event_and_to_no_engine(
    catalogue: Catalogue, start_gateway: StartGateway, engine: SimEngine, route: str, stream: bool
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    unknown = UNKNOWN if route != "completions" else {"brand_new_hint": 1, "tools": [{"type": "web_search"}]}
    outcome = ask(gateway, key, route, stream, **unknown)
    assert outcome.done or outcome.status == 200
    named = ("brand_new_hint", "tools" if route == "completions" else "tools[0]")
    assert outcome.headers["x-taas-ignored"] == ", ".join(named)
    assert the_event(catalogue, outcome).ignored == ("other", named[1])
    assert "x-taas-ignored" not in ask(gateway, key, route, stream).headers
    with_unknown, without = (entry["body"] for entry in engine.requests() if entry["path"] == PATHS[route])
    assert {name for name in with_unknown if name != "request_id"} == {
        name for name in without if name != "request_id"
    }


def test_a_strict_caller_is_refused_by_name_before_anything_runs(
    catalogue: Catalogue, start_gateway: StartGateway, engine: SimEngine
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    with start_gateway().client(key) as client:
        for value, status in (("1", 400), ("0", 200)):
            answer = client.post(
                PATHS["chat"], json=body("chat", **UNKNOWN), headers={"x-taas-strict": value}
            )
            assert answer.status_code == status
        good = client.post(PATHS["chat"], json=body("chat"), headers={"x-taas-strict": "1"})
        error = client.post(
            PATHS["messages"],
            json=body("messages", messages=[{"role": "user", "content": "hi", "surprise": 1}]),
            headers={"x-taas-strict": "1"},
        ).json()
    assert good.status_code == 200
    assert "messages[0].surprise" in error["error"]["message"]


def test_the_metric_counts_known_names_and_puts_the_rest_together(
    catalogue: Catalogue, start_gateway: StartGateway, engine: SimEngine
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    port = free_port()
    gateway = start_gateway(TAAS_GATEWAY_METRICS_PORT=str(port))
    ask(gateway, key, "chat", brand_new_hint=1, another=2, store=True)
    page = plain_http.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    assert 'taas_ignored_fields_total{name="other"} 2.0' in page
    assert 'taas_ignored_fields_total{name="store"} 1.0' in page


def test_the_input_tokens_of_a_response_are_counted_as_its_answer_counts_them(
    catalogue: Catalogue, start_gateway: StartGateway, engine: SimEngine
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    asked = body("responses", instructions="Be brief.") | {
        "input": [{"role": "user", "content": "How long is this?"}]
    }
    with gateway.client(key) as client:
        counted = client.post("/v1/responses/input_tokens", json=asked)
        answered = client.post("/v1/responses", json=asked)
        refused = client.post(
            "/v1/responses/input_tokens", json={"model": MODEL, "previous_response_id": "resp_1"}
        )
    tokens = answered.json()["usage"]["input_tokens"]
    assert counted.json() == {"object": "response.input_tokens", "input_tokens": tokens}
    assert refused.json()["error"]["param"] == "previous_response_id"
    counts = {event.route: event.produced.prompt for event in catalogue.await_events(2)}
    assert counts == {"input_tokens": 0, "responses": tokens}


def test_a_text_is_scored_without_an_answer_and_what_the_engine_made_is_billed(
    catalogue: Catalogue, start_gateway: StartGateway, engine: SimEngine
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    outcome = ask(start_gateway(), key, "completions", max_tokens=0, echo=True, logprobs=1)
    assert outcome.status == 200
    event = the_event(catalogue, outcome)
    assert (event.billed.output, event.anomaly) == (outcome.json["usage"]["completion_tokens"], None)
