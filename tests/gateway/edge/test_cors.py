"""Web pages of other origins: refused by default, and with a setting told so on every answer, whoever
makes it.
"""

from collections.abc import Iterator

import pytest

from gateway.edge.cors import parse_origins
from tests.gateway.listening import Listening, listening, parse_head, responses_of

PAGE = "https://app.example.com"
ORIGIN = b"Host: x\r\nOrigin: https://app.example.com\r\n"
OTHER = b"Host: x\r\nOrigin: https://evil.example.com\r\n"
PREFLIGHT = (
    b"OPTIONS /v1/chat/completions HTTP/1.1\r\nConnection: close\r\nAccess-Control-Request-Method: POST\r\n"
)
# Answers of the application, and what the listener says itself.
ANSWERS = {
    "good": (b"GET /one HTTP/1.1\r\n%b\r\n", 200),
    "refused_by_the_application": (b"POST /early HTTP/1.1\r\n%bContent-Length: 3\r\n\r\nabc", 401),
    "bug": (b"GET /bug HTTP/1.1\r\n%b\r\n", 500),
    "too_large": (b"POST /body HTTP/1.1\r\n%bContent-Length: 999999999\r\n\r\n", 413),
    "bad_head": (b"POST /one HTTP/1.1\r\n%bTransfer-Encoding: gzip\r\n\r\n", 400),
    "trailer": (b"POST /body HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n", 400),
    "slow_body": (b"POST /body HTTP/1.1\r\n%bContent-Length: 3\r\n\r\na", 408),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Listening]:
    with listening(
        cors_origins=f"{PAGE}, http://localhost:3000", body_deadline_s=0.5, keep_alive_s=0.5
    ) as running:
        yield running


@pytest.mark.parametrize(("request_bytes", "status"), ANSWERS.values(), ids=ANSWERS.keys())
def test_every_answer_may_be_read_by_an_allowed_page_only(
    server: Listening, request_bytes: bytes, status: int
) -> None:
    for sent, allowed in ((ORIGIN, PAGE), (OTHER, None), (b"Host: x\r\n", None)):
        ((answered, headers, _),) = responses_of(server.ask(request_bytes % sent))
        assert answered == status
        assert headers.get("access-control-allow-origin") == allowed
        assert headers["vary"] == "Origin"
        exposed = headers.get("access-control-expose-headers", "").split(", ")
        assert ("x-request-id" in exposed) is (allowed is not None)
        assert "access-control-allow-credentials" not in headers


def test_a_preflight_allows_what_the_sdks_send(server: Listening) -> None:
    wanted = [
        "authorization", "x-api-key", "content-type", "idempotency-key", "anthropic-version",
        "anthropic-beta", "anthropic-dangerous-direct-browser-access", "x-stainless-lang",
        "x-stainless-retry-count", "openai-organization", "x-taas-strict",
    ]  # fmt: skip
    asked = b"Access-Control-Request-Headers: " + ", ".join(wanted).encode() + b", x-evil,\r\n\r\n"
    status, headers = parse_head(server.ask(PREFLIGHT + ORIGIN + asked).rstrip())
    assert status == 204
    assert headers["access-control-allow-origin"] == PAGE
    assert headers["access-control-allow-methods"] == "GET, HEAD, POST, DELETE"
    allowed = headers["access-control-allow-headers"].split(", ")
    assert set(wanted) <= set(allowed)
    assert not {"x-evil", ""} & set(allowed)
    assert int(headers["access-control-max-age"]) > 0
    assert headers["x-request-id"].startswith("req_")
    assert not server.app.ran or "/v1/chat/completions" not in server.app.ran


def test_a_preflight_of_another_page_gets_no_permission(server: Listening) -> None:
    status, headers = parse_head(server.ask(PREFLIGHT + OTHER + b"\r\n").rstrip())
    assert status == 204
    assert not [name for name in headers if name.startswith("access-control-")]
    assert headers["vary"] == "Origin"


def test_a_preflight_leaves_the_connection_to_the_request_after_it(server: Listening) -> None:
    preflight = PREFLIGHT.replace(b"Connection: close\r\n", b"") + ORIGIN + b"\r\n"
    received = server.ask(preflight + b"GET /one HTTP/1.1\r\nConnection: close\r\n" + ORIGIN + b"\r\n")
    head, _, rest = received.partition(b"\r\n\r\n")
    assert parse_head(head)[0] == 204
    assert responses_of(rest)[0][0] == 200


def test_options_that_is_no_preflight_goes_to_the_application(server: Listening) -> None:
    server.app.ran.clear()
    server.ask(b"OPTIONS /one HTTP/1.1\r\nConnection: close\r\n" + ORIGIN + b"\r\n")
    assert server.app.ran == ["/one"]


def test_all_pages_may_be_allowed() -> None:
    with listening(cors_origins="*", keep_alive_s=0.5) as server:
        ((_, headers, _),) = responses_of(server.ask(ANSWERS["good"][0] % OTHER))
        assert headers["access-control-allow-origin"] == "*"


def test_without_the_setting_nothing_is_said_and_the_application_is_asked() -> None:
    with listening(keep_alive_s=0.5) as server:
        for request in (
            ANSWERS["good"][0] % ORIGIN,
            ANSWERS["bad_head"][0] % ORIGIN,
            PREFLIGHT + ORIGIN + b"\r\n",
        ):
            ((_, headers, _),) = responses_of(server.ask(request))
            assert not [name for name in headers if name.startswith("access-control-") or name == "vary"]
        assert "/v1/chat/completions" in server.app.ran


@pytest.mark.parametrize(
    "text",
    [
        "app.example.com",
        "https://app.example.com/",
        "https://a/b",
        "https://*.example.com",
        "null",
        "https://",
    ],
)
def test_what_no_browser_sends_as_an_origin_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        parse_origins(text)


def test_origins_are_compared_as_browsers_spell_them() -> None:
    assert parse_origins(" https://App.Example.com ,http://localhost:3000,") == {
        b"https://app.example.com",
        b"http://localhost:3000",
    }
