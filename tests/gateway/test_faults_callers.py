"""Faults of callers against a running gateway: keys, models, disconnects."""

import json
import socket
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from billing.wire.ending import Ending
from loadtest import plain_http
from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until
from tests.fixtures.valkey import free_port

CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell a long story."}],
    "max_tokens": 400,
    "ignore_eos": True,
}
CANARY = "canary-5f1c"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "Bearer sk-' OR 1=1--")],
        [("authorization", "Basic abc")],
        [("authorization", "Bearer " + "x" * 8000)],
        [("authorization", b"Bearer sk-\xff\xfe")],
        [("authorization", "Bearer sk-a"), ("authorization", "Bearer sk-a")],
        [("authorization", "Bearer {key}"), ("x-api-key", "sk-other")],
    ],
)
def test_fault_17_every_bad_key_gets_the_same_answer(
    headers: list[tuple[str, str | bytes]],
    engine: SimEngine,
    catalogue: Catalogue,
    start_gateway: StartGateway,
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    sent = [(name, value.format(key=key) if isinstance(value, str) else value) for name, value in headers]
    answer = plain_http.post(gateway.url + "/v1/chat/completions", json=CHAT, headers=sent)  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.json()["error"]["message"] == "Incorrect API key provided."


def test_fault_17_an_expired_key_is_no_key_and_fault_20_an_admin_key_is_no_tenants(
    catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"), expires_at_ms=1)
    gateway = start_gateway()
    with gateway.client(key) as client:
        assert client.get("/v1/models").status_code == 401
    for method, path in (
        ("GET", "models"),
        ("POST", "chat/completions"),
        ("POST", "messages"),
        ("GET", "files"),
    ):
        for name, value in (("authorization", "Bearer {}"), ("x-api-key", "{}")):
            headers = {name: value.format("sk-admin-" + "a" * 43)}
            answer = plain_http.request(method, f"{gateway.url}/v1/{path}", headers=headers, json={})
            assert (answer.status_code, path) == (403, path), answer.text
            assert "use an API key" in answer.json()["error"]["message"]


def test_fault_14_unknown_and_not_yours_cannot_be_told_apart(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.model("mine", visible=["ten_b"], owner="ten_b")
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    with gateway.client(key) as client:
        hidden = client.post("/v1/chat/completions", json=CHAT | {"model": "mine"})
        unknown = client.post("/v1/chat/completions", json=CHAT | {"model": "nope"})
    assert hidden.status_code == unknown.status_code == 404
    assert hidden.text.replace("mine", "nope") == unknown.text


def test_fault_08_what_only_the_gateway_may_set_is_refused_by_name(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    with gateway.client(key) as client:
        for name in (
            "cache_salt",
            "priority",
            "kv_transfer_params",
            "chat_template",
            "prompt_embeds",
            "request_id",
        ):
            answer = client.post("/v1/chat/completions", json=CHAT | {name: "x"})
            assert answer.status_code == 400, name
            assert answer.json()["error"]["param"] == name
    assert not engine.requests()


def raw_request(gateway: GatewayProcess, key: str, path: str, body: dict[str, object]) -> socket.socket:
    """A request on a bare socket, to be cut at will."""
    payload = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    )
    connection.sendall(head.encode() + payload)
    return connection


def read_until(connection: socket.socket, needle: bytes) -> bytes:
    seen = b""
    while needle not in seen:
        piece = connection.recv(65536)
        assert piece, seen[-500:]
        seen += piece
    return seen


MESSAGES = {
    "model": MODEL,
    "max_tokens": 400,
    "messages": [{"role": "user", "content": "Tell a long story."}],
}
RESPONSES = {"model": MODEL, "max_output_tokens": 400, "input": "Tell a long story."}
COMPLETIONS = {
    "model": MODEL,
    "max_tokens": 400,
    "prompt": ["Tell a story.", "And one more."],
    "ignore_eos": True,
}
ROUTES = [
    ("/v1/chat/completions", CHAT, b"content"),
    ("/v1/chat/completions", CHAT | {"n": 3}, b"content"),
    ("/v1/completions", COMPLETIONS, b"text"),
    ("/v1/messages", MESSAGES, b"text_delta"),
    ("/v1/responses", RESPONSES, b"output_text.delta"),
]


@pytest.mark.parametrize(("path", "body", "token"), ROUTES)
@pytest.mark.parametrize("when", ["after_head", "in_the_middle"])
def test_fault_42_a_stream_cut_by_its_caller_is_billed_to_what_was_produced(
    path: str,
    body: dict[str, object],
    token: bytes,
    when: str,
    make_engine: EngineMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
) -> None:
    engine = make_engine("--decode-ms", "20")
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    connection = raw_request(gateway, key, path, body | {"stream": True})
    if when == "after_head":
        read_until(connection, b"\r\n\r\n")
    elif when == "in_the_middle":
        read_until(connection, token)
        read_until(connection, token)
    connection.close()
    (event,) = catalogue.await_events(1)
    assert event.ending is Ending.CLIENT_DISCONNECT
    counted = engine.counters()
    assert (event.produced.prompt, event.produced.output) == (counted["prompt"], counted["generation"])
    assert event.billed.output == event.produced.output < 400 * event.samples
    assert counted["running"] == 0
    assert set(event.absorbed.reasons) <= {"shared_prompt"}


def test_fault_42_callers_that_leave_at_once_cost_what_their_events_say(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, conserved: Callable[[], None]
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    for path, body, _ in ROUTES * 4:
        raw_request(gateway, key, path, body | {"stream": True}).close()
    with gateway.client(key) as client:  # one that stays, so that those before it have been dealt with
        assert client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1}).status_code == 200
    wait_until(lambda: engine.counters()["running"] + engine.counters()["waiting"] == 0, "quiet engine")
    conserved()
    assert all(event.ending in {Ending.CLIENT_DISCONNECT, Ending.COMPLETE} for event in catalogue.events())


@pytest.mark.parametrize(("path", "body", "token"), ROUTES)
def test_fault_42_a_plain_request_that_its_caller_leaves_is_stopped_and_billed(
    path: str,
    body: dict[str, object],
    token: bytes,
    make_engine: EngineMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
) -> None:
    engine = make_engine("--decode-ms", "20")
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    connection = raw_request(gateway, key, path, body)
    wait_until(lambda: engine.counters()["generation"] > 4, "tokens")
    connection.close()
    (event,) = catalogue.await_events(1)
    assert event.ending is Ending.CLIENT_DISCONNECT
    counted = engine.counters()
    assert (event.produced.prompt, event.produced.output) == (counted["prompt"], counted["generation"])
    assert 0 < event.billed.output < 400 * event.samples


def test_fault_42_a_caller_that_leaves_after_the_last_token_is_billed_once(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, conserved: Callable[[], None]
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    connection = raw_request(gateway, key, "/v1/chat/completions", CHAT | {"stream": True, "max_tokens": 3})
    read_until(connection, b'"finish_reason":"')
    connection.close()
    (event,) = catalogue.await_events(1)
    assert event.billed.output == 3
    conserved()


def test_fault_05_a_caller_that_never_reads_is_cut_off_and_billed(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    engine = make_engine("--decode-ms", "0", "--context", "200000")
    catalogue.model(context_tokens=200_000)
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_WRITE_STALL_S="1")
    connection = raw_request(
        gateway, key, "/v1/chat/completions", CHAT | {"stream": True, "max_tokens": 150_000}
    )
    (event,) = catalogue.await_events(1)
    assert event.ending in {Ending.CLIENT_STALLED, Ending.CLIENT_DISCONNECT}
    counted = engine.counters()
    assert event.billed.output == event.produced.output == counted["generation"]
    # How far an engine gets before it is stopped is its speed; what reached the caller is far less.
    assert event.delivered.output < 150_000
    connection.close()


def test_whoever_leaves_is_no_refusal_and_whoever_is_late_is_one(
    slow: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(slow.url, slow.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    metrics_port = free_port()
    gateway = start_gateway(TAAS_GATEWAY_METRICS_PORT=str(metrics_port), TAAS_BODY_DEADLINE_S="1")

    def refused() -> dict[str, float]:
        page = plain_http.get(f"http://127.0.0.1:{metrics_port}/metrics").text
        return {
            sample.labels["which"]: sample.value
            for metric in text_string_to_metric_families(page)
            for sample in metric.samples
            if sample.name == "taas_refusals_total"
        }

    path = "/v1/chat/completions"
    with raw_request(gateway, key, path, CHAT | {"max_tokens": 500}):
        wait_until(lambda: any(seen["path"] == path for seen in slow.requests()), "request at the engine")
    (event,) = catalogue.await_events(1)
    assert event.ending is Ending.CLIENT_DISCONNECT
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 100\r\n\r\n{{"
    ).encode()
    address = ("127.0.0.1", gateway.port)
    with socket.create_connection(address, timeout=20) as leaves:
        leaves.sendall(head)
    with socket.create_connection(address, timeout=20) as late:
        late.sendall(head)
        assert late.recv(100).startswith(b"HTTP/1.1 408 ")
    with gateway.client(key) as client:
        client.post(path, json={})
    wait_until(lambda: "missing_required_parameter" in refused(), "the last of them")
    assert refused() == {"request_timeout": 1, "missing_required_parameter": 1}


def test_fault_24_no_prompt_and_no_key_in_logs_and_metrics(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    with gateway.client(key) as client:
        for fault in (None, "garbage", "die_before_first_token", "status"):
            if fault is not None:
                engine.faults(fault, {"status": 500, "garbage": "html"}.get(fault), count=2)
            client.post(
                "/v1/chat/completions",
                json=CHAT | {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 2},
            )
    assert CANARY not in gateway.log()
    assert key not in gateway.log()
