"""Files and batches as a gateway passes them on, and lines of batches as it takes them."""

import hashlib
import time

import httpx

from billing.wire.batch_line import LINES_PATH, LineTicket
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway
from tests.fixtures.valkey import free_port

SERVICE_KEY = "a-service-key"
CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 3,
    "service_tier": "flex",
}
PATHS = ("/v1/files", "/v1/files/file-1", "/v1/files/file-1/content", "/v1/batches", "/v1/batches/batch_1",
         "/v1/messages/batches", "/v1/messages/batches/msgbatch_1/results")  # fmt: skip


def ticket(key: str, line: int = 0, attempt: int = 1, for_ms: int = 60_000) -> LineTicket:
    return LineTicket(
        key_hash=hashlib.sha256(key.encode()).hexdigest(),
        batch="batch_0123456789abcdef",
        line=line,
        attempt=attempt,
        until_ms=int(time.time() * 1000) + for_ms,
    )


def send(url: str, bearer: str) -> httpx.Response:
    return httpx.post(
        f"{url}{LINES_PATH}/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {bearer}"},
        trust_env=False, timeout=30,
    )  # fmt: skip


def test_without_batches_there_is_no_such_route(start_gateway: StartGateway, catalogue: Catalogue) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_BATCH="0", TAAS_SERVICE_KEY=SERVICE_KEY)
    with gateway.client(key) as client:
        for path in PATHS:
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error"].get("code", "route_not_found")) == (
                404,
                "route_not_found",
            )
        assert "/v1/files" not in client.get("/openapi.json").json()["paths"]
    assert send(gateway.url, ticket(key).signed(SERVICE_KEY)).status_code == 404


def test_a_batch_service_that_is_away_is_503_in_the_callers_dialect(
    start_gateway: StartGateway, catalogue: Catalogue
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway(TAAS_BATCH_URL=f"http://127.0.0.1:{free_port()}")
    with gateway.client(key) as client:
        answer = client.get("/v1/batches")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "batch_unavailable")
        assert answer.headers["retry-after"] == "1"
        answer = client.get("/v1/messages/batches")
        assert answer.json()["error"]["type"] == "overloaded_error"
        uploaded = client.post(
            "/v1/files", files={"file": ("f", b"x" * 3_000_000)}, data={"purpose": "batch"}
        )
        assert uploaded.status_code == 503
        for path in ("/v1/files", "/v1/batches", "/v1/messages/batches"):
            packed = client.post(path, content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
            assert packed.status_code == 415, f"fault 4: {path} takes what is compressed"
    with gateway.client("sk-unknown") as client:
        assert client.get("/v1/batches").status_code == 401


def test_a_line_is_served_for_the_key_of_its_ticket(
    start_gateway: StartGateway, catalogue: Catalogue, engine: SimEngine
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    catalogue.model()
    catalogue.instance(engine.url, engine.key)
    gateway = start_gateway(TAAS_SERVICE_KEY=SERVICE_KEY)
    one = ticket(key, line=17, attempt=2)
    answer = send(gateway.url, one.signed(SERVICE_KEY))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == one.request_id == "req_0123456789abcdef00110002"
    (event,) = catalogue.await_events(1)
    assert (event.request_id, event.line, event.tenant) == (one.request_id, one.name, "ten_a")


def test_a_ticket_that_has_lapsed_or_is_not_ours_is_refused(
    start_gateway: StartGateway, catalogue: Catalogue
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    gone = catalogue.key(catalogue.tenant("ten_b"), expires_at_ms=1)
    gateway = start_gateway(TAAS_SERVICE_KEY=SERVICE_KEY)
    refused = [
        ticket(key, for_ms=-1).signed(SERVICE_KEY), ticket(key).signed("another"), ticket(key).signed(""),
        ticket(gone).signed(SERVICE_KEY), ticket("sk-unknown").signed(SERVICE_KEY), key,
    ]  # fmt: skip
    for bearer in refused:
        assert send(gateway.url, bearer).status_code == 401
    with gateway.client(ticket(key).signed(SERVICE_KEY)) as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 401, "a ticket is for lines only"
        assert client.get("/v1/models").status_code == 401
