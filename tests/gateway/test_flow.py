"""A request through the whole gateway: real Valkey, the simulated engine, real HTTP."""

import json
import time
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from billing.wire.ending import Ending
from billing.wire.usage_event import UsageSource
from loadtest import plain_http
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway, wait_until
from tests.fixtures.valkey import free_port

CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Say something short about the sea."}],
    "max_tokens": 8,
}


def test_a_plain_request_is_answered_and_billed_exactly(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, conserved: Callable[[], None]
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    with gateway.client(key) as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["x-taas-class"] == "on_demand"
    (event,) = catalogue.await_events(1)
    assert event.ending is Ending.COMPLETE
    assert event.usage_source is UsageSource.ENGINE
    assert event.billed.prompt == body["usage"]["prompt_tokens"]
    assert event.billed.output == body["usage"]["completion_tokens"] == 8
    assert event.request_id == answer.headers["x-request-id"]
    conserved()


def test_a_stream_is_passed_on_without_usage_and_billed_exactly(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, conserved: Callable[[], None]
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    chunks = []
    with (
        gateway.client(key) as client,
        client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer,
    ):
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunks.append(json.loads(line[6:]))
        assert line in {"", "data: [DONE]"}
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)
    (event,) = catalogue.await_events(1)
    assert event.ending is Ending.COMPLETE
    assert event.billed.output == event.delivered.output == 8
    conserved()


def test_only_streams_say_when_their_tokens_came(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    metrics_port = free_port()
    gateway = start_gateway(TAAS_GATEWAY_METRICS_PORT=str(metrics_port))
    with gateway.client(key) as client:
        for route, body in (
            ("chat/completions", CHAT),
            ("chat/completions", CHAT | {"stream": True}),
            ("messages", CHAT),
        ):
            assert client.post(f"/v1/{route}", json=body).status_code == 200
        counting = {"model": MODEL, "messages": CHAT["messages"]}
        assert client.post("/v1/messages/count_tokens", json=counting).status_code == 200
    catalogue.await_events(3)

    def counts(family: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for metric in text_string_to_metric_families(
            plain_http.get(f"http://127.0.0.1:{metrics_port}/metrics").text
        ):
            for sample in metric.samples:
                if sample.name == f"{family}_count":
                    found[sample.labels["route"]] = sample.value
        return found

    wait_until(lambda: sum(counts("taas_request_duration_seconds").values()) == 4, "figures of all four")
    for family in ("taas_time_to_first_token_seconds", "taas_time_per_output_token_seconds"):
        assert {route: count for route, count in counts(family).items() if count} == {"chat": 1}, family


def test_the_engine_sees_only_what_the_gateway_decides(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    with gateway.client(key) as client:
        answer = client.post(
            "/v1/chat/completions",
            json=CHAT,
            headers={"X-Request-Id": "mine", "X-Tenant": "ten_b", "X-Forwarded-For": "1.2.3.4"},
        )
    assert answer.headers["x-request-id"] != "mine"
    (seen,) = [request for request in engine.requests() if request["path"] == "/v1/chat/completions"]
    names = {name.lower() for name, _ in seen["headers"]}
    assert names == {"host", "authorization", "content-type", "content-length", "x-request-id"}
    assert key not in json.dumps(seen)
    assert len(seen["body"]["cache_salt"]) == 64


def test_tokens_are_held_for_all_that_is_asked_for_and_given_back(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a", limits=[{"model": "*", "tokens_per_day": 1_000}]))
    gateway = start_gateway()
    with gateway.client(key) as client:
        first = client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 600})
        catalogue.await_events(1)
        second = client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 600})
        never = client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1_001})
    assert [answer.status_code for answer in (first, second, never)] == [200, 200, 429]
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 400
    used = first.json()["usage"]["total_tokens"]
    held = int(first.headers["x-ratelimit-remaining-tokens"]) - int(
        second.headers["x-ratelimit-remaining-tokens"]
    )
    # What was not produced has been given back, and next to nothing of a day has passed.
    assert used - 2 <= held <= used
    assert "1000 tokens per day" in never.json()["error"]["message"]
    assert never.headers["x-should-retry"] == "false"


def test_limits_are_told_and_refusals_say_when(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    limit = {"model": "*", "requests_per_minute": 2, "units_per_minute": None, "concurrency": None}
    key = catalogue.key(catalogue.tenant("ten_a", limits=[limit]))
    gateway = start_gateway()
    with gateway.client(key) as client:
        answers = [client.post("/v1/chat/completions", json=CHAT) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert answers[0].headers["x-ratelimit-remaining-requests"] == "1"
    assert 0 < int(answers[2].headers["retry-after-ms"]) <= 30_000
    assert answers[2].headers["x-ratelimit-limit-requests"] == "2"
    assert answers[2].headers["x-ratelimit-remaining-requests"] == "0"
    # Nothing of the refused one is in the bucket; the first may have drained a little by now.
    assert 30_000 < int(answers[2].headers["x-ratelimit-reset-requests"].removesuffix("ms")) <= 60_000
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert len(catalogue.await_events(2)) == 2


def test_a_request_larger_than_its_limit_is_told_not_to_come_back(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    limit = {"model": MODEL, "requests_per_minute": None, "units_per_minute": 10, "concurrency": None}
    key = catalogue.key(catalogue.tenant("ten_a", limits=[limit]))
    gateway = start_gateway()
    with gateway.client(key) as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 429
    assert answer.headers["x-should-retry"] == "false"


def test_models_are_listed_as_far_as_the_key_may_see(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.model("theirs", visible=["ten_b"])
    catalogue.model("inside", visible="internal")
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    with gateway.client(key) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [MODEL]
        unknown, hidden = client.get("/v1/models/nope"), client.get("/v1/models/theirs")
        assert unknown.status_code == hidden.status_code == 404
        assert unknown.text.replace("nope", "theirs") == hidden.text
        assert client.get(f"/v1/models/{MODEL}").json()["id"] == MODEL


def test_fault_19_revoked_key_is_refused_within_a_second_on_every_process(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateways = [start_gateway(), start_gateway()]
    for gateway in gateways:
        with gateway.client(key) as client:
            assert client.get("/v1/models").status_code == 200
    catalogue.revoke(key)
    for gateway in gateways:
        with gateway.client(key) as client:
            wait_until(lambda: client.get("/v1/models").status_code == 401, "refusal", timeout_s=5.0)


def test_what_is_no_request_id_is_no_request(catalogue: Catalogue, start_gateway: StartGateway) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    with gateway.client(key) as client:
        for asked in ("req_1", "req_" + "A" * 24, "req_" + "0" * 24 + "%0a", "req_" + "0" * 24 + "-2", "%00"):
            answer = client.get(f"/v1/usage/requests/{asked}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found"), asked


def test_a_stored_response_is_refused_by_name(catalogue: Catalogue, start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    with plain_http.Client(base_url=gateway.url) as client:
        for method, rest in (
            ("GET", "resp_1"),
            ("DELETE", "resp_1"),
            ("POST", "resp_1/cancel"),
            ("GET", "resp_1/input_items"),
        ):
            answer = client.request(method, f"/v1/responses/{rest}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found"), rest
            assert "stateless" in answer.json()["error"]["message"]


def test_unknown_paths_and_methods_are_refused_in_the_dialects_form(
    catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    gateway = start_gateway()
    with plain_http.Client(base_url=gateway.url) as client:
        for path in ("/v1/nothing", "//v1//models", "/v1/models/", "/v1/%6dodels"):
            answer = client.get(path)
            assert answer.status_code in {401, 404}, path
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        for path in ("/v1/chat/completions", "/v1/chat/completions/"):
            wrong_method = client.get(path)
            assert wrong_method.status_code == 405
            assert wrong_method.headers["allow"] == "POST"
        anthropic = client.get("/v1/messages")
        assert anthropic.json()["type"] == "error"


def test_every_answer_has_its_id_where_the_sdk_of_the_dialect_looks_for_it(
    catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    anthropic = {"anthropic-version": "2023-06-01"}
    with gateway.client(key) as client:
        for path in ("/v1/models", f"/v1/models/{MODEL}", "/healthz", "/openapi.json", "/v1/nothing"):
            asked, told = client.get(path), client.get(path, headers=anthropic)
            assert asked.headers["x-request-id"].startswith("req_"), path
            assert "request-id" not in asked.headers, path
            assert (
                told.headers["request-id"] == told.headers["x-request-id"] != asked.headers["x-request-id"]
            ), path
        wrong = client.get("/v1/messages/nothing")
        assert wrong.headers["request-id"] == wrong.headers["x-request-id"] == wrong.json()["request_id"]
        no_http = client.post("/v1/messages", headers={"Host": "x#"})
        assert no_http.json()["error"]["details"]["error_code"] == "invalid_http"
        assert (
            no_http.headers["request-id"] == no_http.headers["x-request-id"] == no_http.json()["request_id"]
        )


def test_a_refused_method_is_not_timed_from_the_machines_start(
    catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    gateway = start_gateway()
    began_at = time.monotonic()
    answer = plain_http.get(gateway.url + "/v1/chat/completions")
    assert int(answer.headers["openai-processing-ms"]) <= (time.monotonic() - began_at) * 1000


def test_the_openapi_document_names_every_route(catalogue: Catalogue, start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    document = plain_http.get(gateway.url + "/openapi.json").json()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages",
                 "/v1/messages/count_tokens", "/tokenize", "/v1/models",
                 "/v1/usage/me", "/v1/usage/requests/{request_id}"):  # fmt: skip
        assert path in document["paths"], path
