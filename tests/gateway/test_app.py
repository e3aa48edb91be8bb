"""Which paths and methods the application takes, and in which form it says no; asked of a gateway process."""

import json

import pytest

from loadtest import plain_http
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway
from tests.gateway.asking import PATHS, body

LISTINGS = ("/v1/models", f"/v1/models/{MODEL}", "/healthz", "/health", "/readyz", "/openapi.json")


def test_head_is_taken_wherever_get_is(start_gateway: StartGateway, catalogue: Catalogue) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    with start_gateway().client(key) as client:
        for path in LISTINGS:
            whole, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (whole.status_code, b""), path
            assert head.headers["content-length"] == str(len(whole.content))
            assert head.headers["x-request-id"].startswith("req_")
        for path in (
            "/v1/capacity",
            "/v1/usage/me",
            "/v1/usage/checkpoints",
            "/v1/usage/requests/req_0",
            "/v1/models/none",
            "/nowhere",
        ):
            assert client.head(path).status_code == client.get(path).status_code != 405, path
        refused = client.head(PATHS["chat"])
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        assert client.delete("/v1/models").headers["allow"] == "GET, HEAD"
        assert client.head("/v1/models", headers={"authorization": "Bearer sk-wrong"}).status_code == 401


def test_health_has_two_names(start_gateway: StartGateway, catalogue: Catalogue) -> None:
    gateway = start_gateway()
    for path in ("/health", "/healthz"):
        answer = plain_http.get(gateway.url + path)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_a_trailing_slash_is_taken_without_a_redirect(
    start_gateway: StartGateway, catalogue: Catalogue, engine: SimEngine
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    catalogue.instance(engine.url, engine.key)
    gateway = start_gateway()
    with gateway.client(key) as client:
        for path in LISTINGS:
            assert client.get(f"{path}/").json() == client.get(path).json(), path
        for route, path in PATHS.items():
            assert client.post(f"{path}/", json=body(route)).status_code == 200, path
        assert client.get(PATHS["chat"] + "/").status_code == 405
        # One is taken off, not all.
        assert client.post(PATHS["chat"] + "//", json=body("chat")).status_code == 404
    with gateway.client("sk-wrong") as stranger:
        assert stranger.get("/v1/models/").status_code == 401
        assert stranger.post(PATHS["chat"] + "/", json=body("chat")).status_code == 401


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/messages/"])
def test_an_absolute_form_target_is_served_by_its_path(
    start_gateway: StartGateway, catalogue: Catalogue, path: str
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    # As a client sends it that takes the gateway for a proxy.
    with plain_http.Client(proxy=gateway.url, headers={"authorization": f"Bearer {key}"}) as client:
        answer = client.get(f"http://api.example.com{path}")
    assert answer.status_code == (200 if path == "/v1/models/" else 405)
    assert answer.headers["x-request-id"].startswith("req_")


def test_pages_may_read_every_error_where_origins_are_set(
    start_gateway: StartGateway, catalogue: Catalogue
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a", limits=[{"model": "*", "requests_per_minute": 0}]))
    origin = "https://app.example.com"
    gateway = start_gateway(TAAS_CORS_ORIGINS=origin)
    asked = body("chat")
    with gateway.client(key) as client:
        client.headers["origin"] = origin
        answers = {
            401: client.get("/v1/models", headers={"authorization": "Bearer sk-wrong"}),
            404: client.get("/nowhere"),
            405: client.get(PATHS["chat"]),
            413: client.post(PATHS["chat"], content=b" " * 5 * 1024 * 1024),
            503: client.post(PATHS["chat"], json=asked),
        }
        catalogue.instance("http://127.0.0.1:1", None)
        limited = client.post(PATHS["chat"], json=asked)
        while limited.status_code == 503:
            limited = client.post(PATHS["chat"], json=asked)
        answers[429] = limited
        preflight = client.options(PATHS["chat"], headers={"access-control-request-method": "POST"})
    assert preflight.status_code == 204
    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["vary"] == "Origin"
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        own = {name for name in answer.headers if name.startswith(("x-", "retry-after", "openai-"))}
        assert own <= exposed
        assert json.loads(answer.content)["error"]["message"]
