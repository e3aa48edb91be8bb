"""What `/metrics` says of requests that wait in a gateway: how many, how long, and how it ended. There is
no room until the test makes some.
"""

import json
import re
import socket
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from billing.cell.execute import execute
from billing.cell.scripts import grant_call
from billing.wire import redis_keys
from billing.wire.ending import Ending
from gateway.errors import (
    ClientDisconnected,
    DependencyUnavailable,
    GatewayError,
    NoInstance,
    QuotaExceeded,
    RequestStopped,
)
from gateway.redis.connection import RedisUnavailable
from gateway.waiting.queue import WaitEnd
from loadtest import plain_http
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until
from tests.gateway.asking import PATHS, Outcome, ask, body
from tests.gateway.test_waiting import instance_goes

REQUEST = json.dumps(body("chat")).encode()


class Pages:
    """What `/metrics` of a gateway's processes say together."""

    def __init__(self, gateway: GatewayProcess, processes: int = 1) -> None:
        wait_until(lambda: len(gateway.metrics_ports()) == processes, "page of each process")
        self._ports = gateway.metrics_ports()

    def series(self, name: str) -> dict[str, float]:
        """Sums by labels (`asked="auto",ending="client_disconnect"`), without those that are 0."""
        total: dict[str, float] = defaultdict(float)
        for port in self._ports:
            page = plain_http.get(f"http://127.0.0.1:{port}/metrics").text
            for labels, value in re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", page, re.MULTILINE):
                total[labels] += float(value)
        return {labels: value for labels, value in total.items() if value}

    def await_series(self, name: str, expected: dict[str, float]) -> None:
        """Until they say so."""
        wait_until(lambda: self.series(name) == expected, f"{name} {expected}")


def make_room(catalogue: Catalogue, most: int) -> None:
    catalogue.redis.hset(redis_keys.room(MODEL), mapping={"m:i1": most, "x:i1": most})
    execute(catalogue.redis, grant_call(MODEL))


def waiting(catalogue: Catalogue) -> int:
    lines = [key for kind in "ofr" for key in catalogue.redis.scan_iter(f"{{c:{MODEL}}}:wl:{kind}:*")]
    return sum(catalogue.redis.zcard(line) for line in lines)


@contextmanager
def caller_that_waits(gateway: GatewayProcess, key: str) -> Iterator[None]:
    """One that leaves at the end."""
    with closing(socket.create_connection(("127.0.0.1", gateway.port))) as connection:
        head = (
            f"POST {PATHS['chat']} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: "
            "application/json\r\n"
        )
        connection.sendall(f"{head}content-length: {len(REQUEST)}\r\n\r\n".encode() + REQUEST)
        yield


def test_who_waits_how_long_and_how_it_ended_over_all_processes(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.instance(engine.url, engine.key)
    make_room(catalogue, 0)
    gateway = start_gateway(TAAS_GATEWAY_PROCESSES="2", TAAS_WAIT_ON_DEMAND_S="60", TAAS_WAIT_FLEX_S="0.2")
    pages, key = Pages(gateway, 2), catalogue.key(catalogue.tenant("ten_a"))
    assert pages.series("taas_requests_waiting") == pages.series("taas_waits_total") == {}
    late: list[Future[Outcome]] = [pool.submit(ask, gateway, key, "chat") for _ in range(4)]
    late += [pool.submit(ask, gateway, key, "chat", service_tier="default")]
    with caller_that_waits(gateway, key):
        pages.await_series("taas_requests_waiting", {'asked="auto"': 5, 'asked="default"': 1})
        assert pages.series("taas_waiting_bytes")[""] >= 6 * (len(REQUEST) - 50)
        assert ask(gateway, key, "chat", service_tier="flex").status == 429
        pages.await_series("taas_waits_total", {'asked="flex",ending="out_of_time"': 1})
    ends = {'asked="flex",ending="out_of_time"': 1.0, 'asked="auto",ending="client_disconnect"': 1.0}
    pages.await_series("taas_waits_total", ends)
    make_room(catalogue, 9)
    assert [answer.result().status for answer in late] == [200] * 5
    ends |= {'asked="auto",ending="admitted"': 4, 'asked="default",ending="admitted"': 1}
    pages.await_series("taas_waits_total", ends)
    assert pages.series("taas_requests_waiting") == pages.series("taas_waiting_bytes") == {}
    assert pages.series("taas_wait_seconds_count") == {
        'asked="auto"': 5,
        'asked="default"': 1,
        'asked="flex"': 1,
    }
    assert pages.series("taas_wait_seconds_sum")['asked="flex"'] >= 0.2
    assert 'asked="flex",le="0.1"' not in pages.series("taas_wait_seconds_bucket")


@pytest.mark.parametrize(
    ("bound", "end"),
    [
        ({"TAAS_WAIT_REQUESTS": "1"}, "too_many"),
        ({"TAAS_WAIT_BYTES": str(2 * len(REQUEST) - 1)}, "too_large"),
    ],
)
def test_who_may_not_wait_because_of_a_bound_of_the_process_is_counted_by_it(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, bound: dict[str, str], end: str
) -> None:
    catalogue.instance(engine.url, engine.key)
    make_room(catalogue, 0)
    gateway = start_gateway(**bound)
    pages, key = Pages(gateway), catalogue.key(catalogue.tenant("ten_a"))
    with caller_that_waits(gateway, key):
        pages.await_series("taas_requests_waiting", {'asked="auto"': 1})
        with gateway.client(key) as client:
            refused = client.post(
                PATHS["chat"], content=REQUEST, headers={"content-type": "application/json"}
            )
        assert refused.status_code == 503
        pages.await_series("taas_waits_total", {f'asked="auto",ending="{end}"': 1})
        assert pages.series("taas_requests_waiting") == {'asked="auto"': 1}
        assert pages.series("taas_wait_seconds_count") == {}


def test_a_limit_that_comes_and_an_instance_that_goes_meanwhile_are_ends_of_their_own(
    engine: SimEngine, catalogue: Catalogue, start_gateway: StartGateway, pool: ThreadPoolExecutor
) -> None:
    catalogue.instance(engine.url, engine.key)
    make_room(catalogue, 0)
    gateway = start_gateway(TAAS_WAIT_ON_DEMAND_S="60")
    pages, key = Pages(gateway), catalogue.key(catalogue.tenant("ten_a", on_demand=False))
    (channel,) = catalogue.redis.pubsub_channels("taas:wake:*")

    # Its contract takes it later; then the contract is gone, and its tenant has no other right.
    bucket = redis_keys.contract_bucket(MODEL, "ten_a")
    seconds, micros = catalogue.redis.time()
    full = {"id": "c", "rate": 1_000, "burst": 1_000, "of": "queue", "spill": -1, "u": 5_000_000}
    catalogue.redis.hset(
        bucket, mapping=full | {"end": (seconds + 86_400) * 1000, "t": seconds * 1_000_000 + micros}
    )
    late = pool.submit(ask, gateway, key, "chat")
    pages.await_series("taas_requests_waiting", {'asked="auto"': 1})
    catalogue.redis.delete(bucket)
    catalogue.redis.publish(channel, "*")
    assert late.result().status == 403
    pages.await_series("taas_waits_total", {'asked="auto",ending="refused"': 1})

    other = catalogue.key(catalogue.tenant("ten_b"))
    late = pool.submit(ask, gateway, other, "chat")
    wait_until(lambda: waiting(catalogue) == 1, "waiting request")
    instance_goes(catalogue, late)
    assert late.result().status == 503
    pages.await_series(
        "taas_waits_total", {'asked="auto",ending="refused"': 1, 'asked="auto",ending="no_instance"': 1}
    )
    assert pages.series("taas_requests_waiting") == {}


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (ClientDisconnected(), WaitEnd.CLIENT_DISCONNECT),
        (RequestStopped(Ending.OPERATOR_STOP), WaitEnd.STOPPED),
        (QuotaExceeded("room", "There was no room.", 1), WaitEnd.OUT_OF_TIME),
        (DependencyUnavailable(), WaitEnd.OUT_OF_TIME),
        (NoInstance(1), WaitEnd.NO_INSTANCE),
        (RedisUnavailable("gone", unknown_outcome=True), WaitEnd.LOST),
    ],
)
def test_what_ends_a_wait_names_its_end(error: GatewayError | RedisUnavailable, end: WaitEnd) -> None:
    assert WaitEnd.of(error) is end
