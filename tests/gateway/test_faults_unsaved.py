"""SIGTERM while neither Redis nor the journal's disk takes what has been settled: the gateway waits, and
says when it lost something.
"""

import resource
import socket
from contextlib import ExitStack

import psutil
import redis

from billing.wire.ending import Ending
from gateway.process.serve import SETTLES_LOST
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import Catalogue, GatewayProcess, StartGateway, wait_until
from tests.fixtures.valkey import ValkeyProcess
from tests.gateway.asking import PATHS, body

ANSWERS = 4


def disk(gateway: GatewayProcess, *, full: bool) -> None:
    """No file of the process grows any more (its log neither), or they do again."""
    assert gateway.process is not None
    room = 0 if full else resource.RLIM_INFINITY
    psutil.Process(gateway.process.pid).rlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))


def listens(gateway: GatewayProcess) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", gateway.port)) == 0


def answers_without_a_place(
    gateway: GatewayProcess, catalogue: Catalogue, valkey: ValkeyProcess, engine: SimEngine
) -> None:
    """Whole answers are given, and their settles find neither Redis nor room on the disk; then SIGTERM."""
    key = catalogue.key(catalogue.tenant("ten_a"))
    engine.faults("slow_drip", 20, count=None)
    with ExitStack() as stack, gateway.client(key) as caller:
        streams = []
        for _ in range(ANSWERS):
            asked = body("chat", stream=True, max_tokens=40)
            answer = stack.enter_context(caller.stream("POST", PATHS["chat"], json=asked))
            lines = answer.iter_lines()
            next(lines)
            streams.append(lines)
        valkey.kill()
        disk(gateway, full=True)
        for lines in streams:
            assert "data: [DONE]" in list(lines)
    assert gateway.process is not None
    gateway.process.terminate()
    wait_until(lambda: not listens(gateway), "the end of the listener")


def test_it_waits_until_the_disk_has_room_and_nothing_is_lost(
    start_gateway: StartGateway, own_valkey: ValkeyProcess, engine: SimEngine
) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        catalogue = Catalogue(client)
        catalogue.model()
        catalogue.instance(engine.url, engine.key)
        gateway = start_gateway(own_valkey.url)
        answers_without_a_place(gateway, catalogue, own_valkey, engine)
        assert gateway.process is not None
        assert gateway.process.poll() is None
        disk(gateway, full=False)
        assert gateway.process.wait(30) == 0
        own_valkey.start()
        gateway.start()
        assert [event.ending for event in catalogue.await_events(ANSWERS)] == [Ending.COMPLETE] * ANSWERS


def test_it_waits_until_redis_is_back_and_nothing_is_lost(
    start_gateway: StartGateway, own_valkey: ValkeyProcess, engine: SimEngine
) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        catalogue = Catalogue(client)
        catalogue.model()
        catalogue.instance(engine.url, engine.key)
        gateway = start_gateway(own_valkey.url)
        answers_without_a_place(gateway, catalogue, own_valkey, engine)
        own_valkey.start()
        assert gateway.process is not None
        assert gateway.process.wait(30) == 0
        assert [event.ending for event in catalogue.await_events(ANSWERS)] == [Ending.COMPLETE] * ANSWERS


def test_what_is_lost_in_the_end_is_said_by_the_exit_status(
    start_gateway: StartGateway, own_valkey: ValkeyProcess, engine: SimEngine
) -> None:
    with redis.Redis(port=own_valkey.port, decode_responses=True) as client:
        catalogue = Catalogue(client)
        catalogue.model()
        catalogue.instance(engine.url, engine.key)
        gateway = start_gateway(own_valkey.url, TAAS_UNSAVED_WAIT_S="1")
        answers_without_a_place(gateway, catalogue, own_valkey, engine)
        assert gateway.process is not None
        assert gateway.process.wait(30) == SETTLES_LOST
