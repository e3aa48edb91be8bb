"""Request targets that are URLs (absolute-form, RFC 9112 §3.2.2): taken by their path, with an authority
that is nothing but one.
"""

import json
from collections.abc import Iterator

import pytest

from tests.gateway.edge.test_connection import CHUNKED, POISON, check_error
from tests.gateway.listening import Listening, listening, responses_of


@pytest.fixture(scope="module")
def server() -> Iterator[Listening]:
    with listening() as running:
        yield running


@pytest.fixture(autouse=True)
def _forget(server: Listening) -> None:
    server.app.ran.clear()


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://x/one", "/one"),
        (b"HTTP://api.example.com:8000/one", "/one"),
        (b"https://[::1]:8000/one?a=b", "/one"),
        (b"http://x", "/"),
        (b"http://x?a=b", "/"),
        (b"http://x//one", "//one"),
        (b"http://x/http://y/one", "/http://y/one"),
    ],
)
def test_absolute_form_is_routed_by_its_path(server: Listening, target: bytes, path: str) -> None:
    received = server.ask(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200")
    assert server.app.ran == [path]


def test_the_authority_of_an_absolute_form_stands_for_the_host_header(server: Listening) -> None:
    request = b"GET http://api.example.com/one HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n"
    ((_, _, body),) = responses_of(server.ask(request))
    assert ["host", "api.example.com"] in json.loads(body)["headers"]
    assert "other" not in body.decode()


@pytest.mark.parametrize(
    "target",
    [
        b"http:///one", b"http://", b"http://?a", b"http://a@x/one", b"http://x:port/one",
        b"http://x:1:2/one", b"http://x\\y/one",
        b"http://[::1/one", b"http://x/one#two", b"http:/x/one", b"http:x", b"ftp://x/one", b"file:///one",
        b"xhttp://x/one",
    ],
)  # fmt: skip
def test_fault_07_absolute_form_that_is_no_plain_http_url_gets_400(server: Listening, target: bytes) -> None:
    check_error(server.ask(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n" + POISON), 400, "invalid_http")
    assert server.app.ran == []


def test_fault_06_absolute_form_does_not_spare_the_host_header(server: Listening) -> None:
    check_error(server.ask(b"GET http://x/one HTTP/1.1\r\n\r\n" + POISON), 400, "invalid_http")
    two = b"GET http://x/one HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"
    check_error(server.ask(two + POISON), 400, "invalid_http")
    assert server.app.ran == []


def test_a_refusal_takes_its_form_from_the_path_of_an_absolute_form(server: Listening) -> None:
    slow = CHUNKED.replace(b"/body", b"http://x/v1/messages") + b"\r\n0\r\nA: b\r\n\r\n"
    ((status, _, body),) = responses_of(server.ask(slow))
    assert status == 400
    assert json.loads(body)["type"] == "error"
