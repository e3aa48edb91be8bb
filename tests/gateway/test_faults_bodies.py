"""Bodies that are large, slow or many: taken up to the model's cap, held within the memory that there is
for them.
"""

import base64
import contextlib
import json
import os
import select
import socket
from collections.abc import Iterator

import psutil

from loadtest import plain_http
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until
from tests.gateway.asking import PATHS, ask, body
from tests.gateway.listening import read_response

MIB = 1024 * 1024
PHOTO = "data:image/jpeg;base64," + base64.b64encode(os.urandom(5_000_000)).decode()


def with_photo(model: str = MODEL) -> bytes:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": PHOTO}}]
    return json.dumps(
        body("chat") | {"model": model, "messages": [{"role": "user", "content": parts}]}
    ).encode()


def rss_bytes(gateway: GatewayProcess) -> int:
    assert gateway.process is not None
    return int(psutil.Process(gateway.process.pid).memory_info().rss)


def head(key: str, framing: str) -> bytes:
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", framing)
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextlib.contextmanager
def connections(gateway: GatewayProcess, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=60))
            for _ in range(count)
        ]


def send_most(sock: socket.socket, data: bytes) -> int:
    """As much as the other side takes now; it may have closed."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        while sent < len(data):
            sent += sock.send(data[sent : sent + MIB])
    return sent


def test_a_photograph_is_taken_where_the_models_entry_has_room_for_it(
    start_gateway: StartGateway, catalogue: Catalogue, engine: SimEngine
) -> None:
    catalogue.model("eyes", max_body_bytes=8_000_000)
    catalogue.model("private", max_body_bytes=30_000_000, owner="ten_b", visible=["ten_b"])
    catalogue.model("small", max_body_bytes=2048)
    catalogue.instance(engine.url, engine.key)
    catalogue.instance(engine.url, engine.key, name="i2", model="eyes")
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    with gateway.client(key) as client:
        url = PATHS["chat"]
        taken = client.post(url, content=with_photo("eyes"))
        # How the simulated engine likes photographs is not asked here: it was sent one.
        assert taken.status_code in {200, 400}, taken.text
        assert "body" not in taken.text or taken.status_code == 200
        for content, cap_bytes in (
            (with_photo(), 4 * MIB),  # read, and then the model is known
            (b" " * 8_000_001, 8_000_000),  # the largest model that this tenant sees, before a byte is read
            (
                json.dumps(
                    body("chat", model="small", messages=[{"role": "user", "content": "x" * 2048}])
                ).encode(),
                2048,
            ),
        ):
            refused = client.post(url, content=content)
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
            assert f" {cap_bytes} bytes" in refused.json()["error"]["message"]


def test_100_connections_of_one_key_stay_within_its_memory_and_others_are_served(
    start_gateway: StartGateway, catalogue: Catalogue, engine: SimEngine
) -> None:
    catalogue.instance(engine.url, engine.key)
    limits = [{"model": "*", "requests_per_minute": 1000, "concurrency": 1}]
    key = catalogue.key(catalogue.tenant("ten_a", limits=limits))
    other = catalogue.key(catalogue.tenant("ten_b"))
    gateway = start_gateway(TAAS_RECEIVE_BYTES_PER_TENANT=str(8 * MIB), TAAS_RECEIVE_WAIT_S="1")
    assert ask(gateway, key, "chat").status == ask(gateway, other, "chat").status == 200
    before = rss_bytes(gateway)
    content = b" " * (4 * MIB)
    with connections(gateway, 100) as socks:
        left = dict.fromkeys(socks, content[:-1])
        for sock in socks:
            sock.sendall(head(key, f"Content-Length: {len(content)}"))

        def all_but_two_are_answered() -> bool:
            for sock, rest in left.items():
                left[sock] = rest[send_most(sock, rest) :]
            assert rss_bytes(gateway) - before < 80 * MIB
            return len(select.select(socks, [], [], 0)[0]) >= 98

        wait_until(all_but_two_are_answered, "answers", timeout_s=60)
        assert ask(gateway, other, "chat").status == 200
        refused = select.select(socks, [], [], 0)[0]
        for sock in refused:
            sock.setblocking(True)
            status, headers, text = read_response(sock)
            assert (status, json.loads(text)["error"]["code"]) == (429, "rate_limit_exceeded")
            assert int(headers["retry-after-ms"]) >= 1000
        assert len(refused) == 98
    wait_until(lambda: ask(gateway, key, "chat").status == 200, "the key to be served again")


def test_memory_is_given_back_however_a_body_ends(
    start_gateway: StartGateway, catalogue: Catalogue, engine: SimEngine
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    # Room for one body, and no patience: what is not given back refuses the next one.
    gateway = start_gateway(
        TAAS_MAX_BODY_BYTES=str(MIB), TAAS_RECEIVE_BYTES_PER_TENANT=str(MIB), TAAS_RECEIVE_WAIT_S="0",
        TAAS_BODY_DEADLINE_S="1",
    )  # fmt: skip
    piece = b" " * 100_000

    def left_behind(framing: str, sent: bytes) -> None:
        with connections(gateway, 1) as (sock,):
            sock.sendall(head(key, framing) + sent)

    def too_slow(framing: str, sent: bytes) -> None:
        def answer() -> int:
            with connections(gateway, 1) as (sock,):
                sock.sendall(head(key, framing) + sent)
                return read_response(sock)[0]

        # Who left before it is noticed in a moment; until then there is no room.
        wait_until(lambda: answer() == 408, "a body that is received, and too slow", timeout_s=60)

    chunk = b"%x\r\n%b\r\n" % (len(piece), piece)
    declared, chunked = f"Content-Length: {MIB}", "Transfer-Encoding: chunked"
    broken = chunk + b"nonsense\r\n"
    for end in (left_behind, too_slow):
        end(declared, piece)
        end(chunked, 2 * chunk)
    left_behind(chunked, broken)
    left_behind(chunked, 20 * chunk)
    left_behind("Content-Length: 10\r\nExpect: 100-continue", b"")

    def whole_one_is_taken() -> bool:
        spaced = b" " * (MIB - 1000) + json.dumps(body("chat")).encode()
        with gateway.client(key) as client:
            return client.post(PATHS["chat"], content=spaced).status_code == 200

    wait_until(whole_one_is_taken, "a body of the whole size to be taken", timeout_s=60)
    assert all(whole_one_is_taken() for _ in range(3))


def test_bodies_without_a_key_are_not_held(start_gateway: StartGateway, catalogue: Catalogue) -> None:
    gateway = start_gateway()
    before = rss_bytes(gateway)
    with connections(gateway, 50) as socks:
        for sock in socks:
            sock.sendall(head("sk-wrong", f"Content-Length: {4 * MIB}"))
            send_most(sock, b" " * (4 * MIB - 1))
        for sock in socks:
            sock.setblocking(True)
            assert read_response(sock)[0] == 401
        assert rss_bytes(gateway) - before < 40 * MIB
    assert plain_http.get(f"{gateway.url}/healthz").status_code == 200
