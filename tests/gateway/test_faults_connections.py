"""Engines that misbehave on the wire in ways the simulated one cannot: a connection accepted late, an
answer that never ends.
"""

import json
import socket

from billing.wire import redis_keys
from billing.wire.ending import Ending
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway, wait_until
from tests.gateway.asking import PATHS, body

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def framed(events: bytes) -> bytes:
    """One chunk of HTTP's framing, without the chunk that ends it."""
    return b"%x\r\n%b\r\n" % (len(events), events)


def whole_stream() -> bytes:
    """A good chat stream of one token."""
    common = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    usage = {"prompt_tokens": 5, "total_tokens": 6, "completion_tokens": 1}
    last = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}
    chunks = [common | {"choices": [last], "usage": usage}, common | {"choices": [], "usage": usage}]
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def post(key: str) -> bytes:
    """A streamed chat request as bytes."""
    content = json.dumps(body("chat", True)).encode()
    head = (
        f"POST {PATHS['chat']} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: "
        f"{len(content)}\r\n"
    )
    return head.encode() + b"content-type: application/json\r\n\r\n" + content


def test_fault_28_an_answer_whose_framing_never_ends_holds_nothing_open(
    catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        catalogue.instance(f"http://127.0.0.1:{listening.getsockname()[1]}", None)
        key = catalogue.key(catalogue.tenant("ten_a"))
        gateway = start_gateway()
        with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
            caller.sendall(post(key))
            engine_side, _ = listening.accept()
            with engine_side:
                engine_side.settimeout(5)
                assert engine_side.recv(65536).startswith(b"POST /v1/chat/completions")
                engine_side.sendall(HEAD + framed(whole_stream()))
                (event,) = catalogue.await_events(1)
                assert (event.ending, event.billed.output) == (Ending.COMPLETE, 1)
                assert engine_side.recv(65536) == b""  # given up, not kept
                caller.settimeout(5)
                answer = b""
                while b"0\r\n\r\n" not in answer:
                    answer += caller.recv(65536)
        assert b"data: [DONE]" in answer


def test_fault_42_a_caller_who_leaves_before_the_engine_is_reached_costs_the_engine_nothing(
    catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        port = listening.getsockname()[1]
        catalogue.instance(f"http://127.0.0.1:{port}", None)
        key = catalogue.key(catalogue.tenant("ten_a"))
        gateway = start_gateway(TAAS_CONNECT_TIMEOUT_S="5")
        with socket.create_connection(("127.0.0.1", port)):  # fills the queue: the next one must wait
            with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
                caller.sendall(post(key))
                opened = redis_keys.open_requests(MODEL)
                wait_until(lambda: catalogue.redis.zcard(opened) == 1, "a reservation")
            listening.settimeout(5)
            listening.accept()[0].close()  # the filler
        late, _ = listening.accept()
        with late:
            late.settimeout(5)
            assert late.recv(65536) == b""
    (event,) = catalogue.await_events(1)
    assert event.ending is Ending.CLIENT_DISCONNECT
    assert event.produced.output == event.units_mu == 0
