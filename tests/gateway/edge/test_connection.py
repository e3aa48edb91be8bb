"""What a request must look like to be run at all, tried with raw bytes on a real socket."""

import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.gateway.listening import (
    Listening,
    listening,
    parse_head,
    read_all,
    read_response,
    responses_of,
    until,
)

GET = b"GET /one HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /body HTTP/1.1\r\nHost: x\r\n"
POISON = b"GET /poison HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer other\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Listening]:
    with listening() as running:
        yield running


@pytest.fixture(autouse=True)
def _forget(server: Listening) -> None:
    server.app.ran.clear()
    server.app.left.clear()


def check_error(received: bytes, status: int, code: str) -> None:
    """Exactly one answer: an error in OpenAI's form with a request id, and the end of the connection."""
    ((answered, headers, body),) = responses_of(received)
    assert answered == status, received
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]
    assert headers["x-request-id"].startswith("req_")
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/json"


SMUGGLING = {
    "cl_and_te": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te_and_cl": CHUNKED + b"Content-Length: 4\r\n\r\n0\r\n\r\n",
    "te_space_before_colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "te_tab_before_colon": POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "te_not_last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "te_other_first": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "te_identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "te_unknown": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "te_twice": CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te_vertical_tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "te_in_http_1_0": b"POST /body HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "cl_twice": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "cl_twice_the_same": POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "cl_list": POST + b"Content-Length: 1, 1\r\n\r\na",
    "cl_plus": POST + b"Content-Length: +1\r\n\r\na",
    "cl_negative": POST + b"Content-Length: -1\r\n\r\na",
    "cl_hex": POST + b"Content-Length: 0x1\r\n\r\na",
    "cl_empty": POST + b"Content-Length: \r\n\r\na",
    "cl_overflow": POST + b"Content-Length: 99999999999999999999\r\n\r\na",
    "bare_lf_in_line": b"GET /one HTTP/1.1\nHost: x\r\n\r\n",
    "bare_lf_after_header": b"GET /one HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
    "bare_lf_at_end": GET + b"\n",
    "bare_cr_in_header": GET + b"A: b\rC: d\r\n\r\n",
    "obs_fold": GET + b"A: b\r\n c\r\n\r\n",
    "obs_fold_of_te": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "space_before_first_header": b"GET /one HTTP/1.1\r\n A: b\r\nHost: x\r\n\r\n",
    "no_colon": GET + b"Ab\r\n\r\n",
    "empty_header_name": GET + b": b\r\n\r\n",
    "header_name_not_a_token": GET + b"A(b: c\r\n\r\n",
    "nul_in_header": GET + b"A: b\0c\r\n\r\n",
    "control_in_header": GET + b"A: b\x01c\r\n\r\n",
    "bad_chunk_end": CHUNKED + b"\r\n3\r\nabcX\r\n0\r\n\r\n",
    "chunk_longer_than_said": CHUNKED + b"\r\n3\r\nabcd\r\n0\r\n\r\n",
    "chunk_bare_lf": CHUNKED + b"\r\n3\nabc\n0\n\n",
    "chunk_size_negative": CHUNKED + b"\r\n-3\r\nabc\r\n0\r\n\r\n",
    "chunk_size_hex_prefix": CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "chunk_size_overflow": CHUNKED + b"\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "chunk_size_space": CHUNKED + b"\r\n3 \r\nabc\r\n0\r\n\r\n",
    "chunk_extension_lf": CHUNKED + b"\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
    "one_trailer": CHUNKED + b"\r\n0\r\nAuthorization: Bearer other\r\n\r\n",
    "two_trailers": CHUNKED + b"\r\n0\r\nA: b\r\nAuthorization: Bearer other\r\n\r\n",
    "no_host": b"GET /one HTTP/1.1\r\n\r\n",
    "two_hosts": GET + b"Host: y\r\n\r\n",
    "two_hosts_the_same": GET + b"Host: x\r\n\r\n",
    "http_0_9": b"GET /one HTTP/0.9\r\nHost: x\r\n\r\n",
    "http_2_0": b"GET /one HTTP/2.0\r\nHost: x\r\n\r\n",
    "http_1_2": b"GET /one HTTP/1.2\r\nHost: x\r\n\r\n",
    "http_2_preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls_hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("request_bytes", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_fault_06_ambiguous_request_gets_400_and_nothing_after_it_runs(
    server: Listening, request_bytes: bytes
) -> None:
    check_error(server.ask(request_bytes + POISON), 400, "invalid_http")
    assert "/poison" not in server.app.ran


@pytest.mark.parametrize("request_bytes", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_fault_06_ambiguous_request_gets_400_when_it_comes_byte_by_byte(
    server: Listening, request_bytes: bytes
) -> None:
    with server.connect() as sock:
        sock.setsockopt(6, 1, 1)
        try:
            for index in range(len(request_bytes)):
                sock.send(request_bytes[index : index + 1])
            sock.sendall(POISON)
        except (BrokenPipeError, ConnectionResetError):
            pytest.fail("answered with a reset")
        check_error(read_all(sock), 400, "invalid_http")
    assert "/poison" not in server.app.ran


@pytest.mark.parametrize("request_bytes", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_fault_06_a_good_request_before_it_is_answered_first(server: Listening, request_bytes: bytes) -> None:
    first, second = responses_of(server.ask(GET + b"\r\n" + request_bytes + POISON))
    assert first[0] == 200
    assert json.loads(first[2])["ran"] == "/one"
    assert second[0] == 400
    assert "/poison" not in server.app.ran


def test_fault_06_answers_keep_their_order_while_an_earlier_request_still_runs(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /hold?order HTTP/1.1\r\nHost: x\r\n\r\n" + SMUGGLING["cl_and_te"] + POISON)
        until(lambda: "order" in server.app.held, "the first to run")
        server.app.release("order")
        first, second = responses_of(read_all(sock))
    assert (first[0], second[0]) == (200, 400)
    assert server.app.ran == ["/hold"]


def test_fault_06_a_trailer_never_becomes_a_header(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(CHUNKED + b"\r\n3\r\nabc\r\n")
        until(lambda: server.app.ran == ["/body"], "the request to run")
        sock.sendall(b"0\r\nAuthorization: Bearer other\r\n\r\n" + POISON)
        check_error(read_all(sock), 400, "invalid_http")
    until(lambda: server.app.left == ["/body"], "the broken request to be told that nobody waits for it")
    assert server.app.ran == ["/body"]


@pytest.mark.parametrize(
    "head",
    [
        GET + b"A: " + b"b" * 65536 + b"\r\n\r\n",
        GET + b"".join(b"A-%d: b\r\n" % index for index in range(500)) + b"\r\n",
        GET + b"".join(b"A-%d: %b\r\n" % (index, b"c" * 1000) for index in range(40)) + b"\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["64_kib_header", "500_headers", "40_kib_in_40_headers", "9_kb_target"],
)
def test_fault_06_head_that_is_too_large_gets_400(server: Listening, head: bytes) -> None:
    check_error(server.ask(head + POISON), 400, "invalid_http")
    assert server.app.ran == []


def test_fault_06_endless_header_is_cut_off_without_its_end(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(GET + b"A: ")
        for _ in range(200):
            sock.sendall(b"b" * 4096)
        check_error(read_all(sock), 400, "invalid_http")


def test_fault_06_body_in_a_million_chunks_is_refused(server: Listening) -> None:
    check_error(server.ask(CHUNKED + b"\r\n" + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n"), 400, "invalid_http")


@pytest.mark.parametrize(
    "host", [b"x/?", b"x#", b"x?y", b"a@b", b"x/y", b"x y", b"", b"x:port", b"x\\y", b"[::1", b"x:1:2"]
)
def test_fault_07_host_that_is_more_than_a_host_gets_400(server: Listening, host: bytes) -> None:
    check_error(server.ask(b"GET /one HTTP/1.1\r\nHost: " + host + b"\r\n\r\n" + POISON), 400, "invalid_http")
    assert server.app.ran == []


@pytest.mark.parametrize("host", [b"x", b"api.example.com:8000", b"127.0.0.1", b"[::1]:8000", b"my_service"])
def test_fault_07_real_hosts_are_served(server: Listening, host: bytes) -> None:
    assert server.ask(b"GET /one HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )


@pytest.mark.parametrize("target", [b"*", b"one", b"/one#two", b"x:443"])
def test_fault_07_target_that_is_not_a_path_gets_400(server: Listening, target: bytes) -> None:
    check_error(server.ask(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n" + POISON), 400, "invalid_http")
    assert server.app.ran == []


def test_fault_07_connect_gets_400(server: Listening) -> None:
    check_error(server.ask(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n" + POISON), 400, "invalid_http")


@pytest.mark.parametrize("method", [b"FOO", b"get", b"GETT", b"X" * 60])
def test_fault_07_unknown_method_gets_405(server: Listening, method: bytes) -> None:
    check_error(server.ask(method + b" /one HTTP/1.1\r\nHost: x\r\n\r\n" + POISON), 405, "method_not_allowed")
    assert server.app.ran == []


@pytest.mark.parametrize("path", ["//v1//models", "/v1/%2e%2e/models", "/v1/models/", "/a/../b"])
def test_fault_07_the_application_sees_the_raw_path(server: Listening, path: str) -> None:
    assert server.ask(b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path.encode()).startswith(
        b"HTTP/1.1 200"
    )
    assert server.app.ran == [path]


def test_errors_on_anthropic_paths_have_its_form(server: Listening) -> None:
    received = server.ask(b"POST /v1/messages HTTP/1.1\r\n\r\n")
    ((status, _, body),) = responses_of(received)
    assert status == 400
    assert json.loads(body)["type"] == "error"


def test_http_1_0_is_served_and_closed_without_chunks(server: Listening) -> None:
    received = server.ask(b"GET /stream?pieces=2&size=3 HTTP/1.0\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    status, headers = parse_head(head)
    assert status == 200
    assert headers["connection"] == "close"
    assert "transfer-encoding" not in headers
    assert body == b"xxxxxx"


def test_a_stream_is_chunked_and_the_connection_lives_on(server: Listening) -> None:
    request = b"GET /stream?pieces=2&size=3 HTTP/1.1\r\nHost: x\r\n\r\n" + GET + b"Connection: close\r\n\r\n"
    first, _, rest = server.ask(request).partition(b"0\r\n\r\n")
    assert first.endswith(b"transfer-encoding: chunked\r\n\r\n3\r\nxxx\r\n3\r\nxxx\r\n")
    assert responses_of(rest)[0][0] == 200


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"anything"])
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
def test_an_offered_upgrade_is_ignored_and_the_body_is_read(
    server: Listening, upgrade: bytes, framing: bytes
) -> None:
    head = (
        POST
        + b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: "
        + upgrade
        + b"\r\n"
    )
    first, second = responses_of(server.ask(head + framing + GET + b"Connection: close\r\n\r\n"))
    assert (first[0], json.loads(first[2])["bytes"]) == (200, 3)
    assert (second[0], json.loads(second[2])["ran"]) == (200, "/one")
    assert ["host", "x"] in json.loads(second[2])["headers"]


def test_fault_06_an_offered_upgrade_hides_nothing_from_the_checks(server: Listening) -> None:
    head = POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    check_error(
        server.ask(head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n0\r\n\r\n" + POISON),
        400,
        "invalid_http",
    )
    check_error(
        server.ask(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n" + POISON),
        400,
        "invalid_http",
    )
    assert "/poison" not in server.app.ran


def test_pipelined_requests_are_answered_in_order(server: Listening) -> None:
    requests = [b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % index for index in range(40)]
    bodies = [POST + b"Content-Length: 4\r\n\r\nabcd", CHUNKED + b"\r\n5\r\nabcde\r\n0\r\n\r\n"]
    last = GET + b"Connection: close\r\n\r\n"
    answers = [
        json.loads(body) for _, _, body in responses_of(server.ask(b"".join(requests + bodies) + last))
    ]
    assert [one.get("ran") or one["bytes"] for one in answers] == [
        *(f"/{index}" for index in range(40)),
        4,
        5,
        "/one",
    ]


def test_pipelined_requests_in_single_bytes_are_answered_in_order(server: Listening) -> None:
    request = (
        b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
        + POST
        + b"Content-Length: 4\r\n\r\nabcd"
        + GET
        + b"Connection: close\r\n\r\n"
    )
    with server.connect() as sock:
        for index in range(len(request)):
            sock.send(request[index : index + 1])
        answers = [json.loads(body) for _, _, body in responses_of(read_all(sock))]
    assert [one.get("ran") or one["bytes"] for one in answers] == ["/a", 4, "/one"]


def test_more_pipelined_requests_than_anyone_sends_are_refused_after_the_first(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /hold?many HTTP/1.1\r\nHost: x\r\n\r\n" + (GET + b"\r\n") * 500)
        until(lambda: "many" in server.app.held, "the first to run")
        server.app.release("many")
        answers = responses_of(read_all(sock))
    assert answers[0][0] == 200
    assert answers[-1][0] == 400
    assert len(answers) < 100


def test_nothing_runs_after_connection_close(server: Listening) -> None:
    ((status, headers, _),) = responses_of(server.ask(GET + b"Connection: close\r\n\r\n" + POISON))
    assert status == 200
    assert headers["connection"] == "close"
    assert server.app.ran == ["/one"]


def test_expect_continue_is_told_to_go_on(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert json.loads(read_response(sock)[2])["bytes"] == 3


def test_an_answer_before_the_body_has_come_closes_the_connection(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        status, headers, _ = read_response(sock)
        assert (status, headers["connection"]) == (401, "close")
        sock.sendall(b"x" * 97 + POISON)
        assert read_all(sock) == b""
    assert server.app.ran == ["/early"]


@pytest.mark.parametrize("path", [b"/bug", b"/head-bug"])
def test_a_bug_before_the_first_piece_becomes_an_error_in_form(server: Listening, path: bytes) -> None:
    check_error(server.ask(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path), 500, "internal_error")


def test_a_bug_after_the_answer_leaves_the_connection_to_the_next_request(server: Listening) -> None:
    late = b"GET /late-bug HTTP/1.1\r\nHost: x\r\n\r\n"
    answers = responses_of(
        server.ask(late * 2 + b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    )
    assert [status for status, _, _ in answers] == [200, 200, 200]


def test_a_response_header_cannot_make_another(server: Listening) -> None:
    received = server.ask(b"GET /header HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"set-cookie" not in received
    check_error(received, 500, "internal_error")


def test_head_gets_no_body(server: Listening) -> None:
    received = server.ask(b"HEAD /one HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200")
    assert received.endswith(b"\r\n\r\n")


def test_the_application_can_cut_its_caller_off(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /abort HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    until(lambda: server.app.left == ["/abort"], "it to be told")


def test_cutting_off_after_the_answer_leaves_the_connection_to_the_next_request(server: Listening) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
        status, _, body = read_response(sock)
        assert (status, json.loads(body)) == (200, {"stalled_ms": 0.0})
        sock.sendall(GET + b"\r\n")
        assert read_response(sock)[0] == 200
    assert server.app.left == []


def test_refusals_are_counted_by_code(server: Listening) -> None:
    def counted() -> float:
        value = server.metrics.registry.get_sample_value("taas_refusals_total", {"which": "invalid_http"})
        return value or 0.0

    before = counted()
    server.ask(GET + b"Host: y\r\n\r\n")
    assert counted() == before + 1
