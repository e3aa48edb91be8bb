"""Which pages of metrics are listed: those of processes that live by Redis's clock."""

import socket

import pytest
import redis
from prometheus_client import CollectorRegistry

from billing.wire import redis_keys
from billing.wire.metrics_page import MetricsPage
from billing.wire.redis_address import parse_redis_url
from billing.wire.scrape_targets import LEASE_MS, ScrapeTarget, address_of, read_targets, renew, withdraw
from loadtest import plain_http
from tests.fixtures.gateway import wait_until
from tests.fixtures.valkey import ValkeyProcess

ONE = ScrapeTarget("gateway", "10.0.0.1:9101")
TWO = ScrapeTarget("billing", "10.0.0.1:9102")


def now_ms(client: redis.Redis) -> int:
    seconds, micros = client.time()  # type: ignore[misc]
    return int(seconds) * 1000 + micros // 1000


def test_what_says_that_it_is_there_is_listed_until_it_leaves_or_its_lease_ends(
    raw_redis: redis.Redis,
) -> None:
    renew(raw_redis, ONE, now_ms(raw_redis))
    renew(raw_redis, TWO, now_ms(raw_redis))
    renew(raw_redis, ScrapeTarget("worker", "10.0.0.1:9110"), now_ms(raw_redis) - LEASE_MS - 1)
    assert read_targets(raw_redis) == [TWO, ONE]
    assert raw_redis.zcard(redis_keys.SCRAPE_TARGETS) == 2, "what has lapsed does not pile up"
    withdraw(raw_redis, ONE)
    assert read_targets(raw_redis) == [TWO]


def test_a_lease_from_before_the_clock_went_back_does_not_count_and_a_renewal_does(
    raw_redis: redis.Redis,
) -> None:
    renew(raw_redis, ONE, now_ms(raw_redis) + 3_600_000)
    assert read_targets(raw_redis) == []
    renew(raw_redis, ONE, now_ms(raw_redis))
    assert read_targets(raw_redis) == [ONE]


def test_a_member_that_is_none_takes_no_other_away(raw_redis: redis.Redis) -> None:
    renew(raw_redis, ONE, now_ms(raw_redis))
    bad = {
        b"\xff": now_ms(raw_redis) + 1_000,
        "[]": now_ms(raw_redis) + 1_000,
        "{}": now_ms(raw_redis) + 1_000,
    }
    raw_redis.zadd(redis_keys.SCRAPE_TARGETS, bad)  # type: ignore[arg-type]
    assert read_targets(raw_redis) == [ONE]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.0.0.5", "10.0.0.5:9101"),
        ("::1", "[::1]:9101"),
        ("metrics.internal", "metrics.internal:9101"),
        ("0.0.0.0", "127.0.0.1:9101"),
        ("::", "127.0.0.1:9101"),
    ],
)
def test_an_address_is_one_that_others_can_use(host: str, address: str) -> None:
    assert address_of(host, 9101, parse_redis_url("redis://127.0.0.1:6390/0")) == address


def test_a_page_is_listed_while_it_is_there_and_knows_its_version_and_clock(
    raw_redis: redis.Redis, valkey_url: str
) -> None:
    registry = CollectorRegistry()
    where = {"host": "127.0.0.1", "ports": [0], "redis_address": parse_redis_url(valkey_url)}
    with MetricsPage("worker", registry, **where) as page:  # type: ignore[arg-type]
        target = ScrapeTarget("worker", f"127.0.0.1:{page.port}")
        wait_until(lambda: read_targets(raw_redis) == [target], "target")
        ahead_s = registry.get_sample_value("taas_clock_ahead_of_redis_seconds")
        assert ahead_s is not None
        assert abs(ahead_s) < 60, "Redis is on this machine"
    assert read_targets(raw_redis) == []


def test_a_page_is_there_while_redis_is_not_and_listed_when_it_comes(own_valkey: ValkeyProcess) -> None:
    own_valkey.kill()
    where = {"host": "127.0.0.1", "ports": [0], "redis_address": parse_redis_url(own_valkey.url)}
    with MetricsPage("worker", CollectorRegistry(), **where) as page:  # type: ignore[arg-type]
        assert "taas_build_info{" in plain_http.get(f"http://127.0.0.1:{page.port}/metrics").text
        own_valkey.start()
        with redis.Redis.from_url(own_valkey.url) as client:
            wait_until(lambda: len(read_targets(client)) == 1, "target")


def test_the_first_free_port_is_taken(valkey_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as soon_free:
        ports = [taken.getsockname()[1], soon_free.getsockname()[1]]
        where = {"host": "127.0.0.1", "ports": ports, "redis_address": parse_redis_url(valkey_url)}
        with pytest.raises(OSError, match="in use"):
            MetricsPage("worker", CollectorRegistry(), **where)  # type: ignore[arg-type]
        soon_free.close()
        with MetricsPage("worker", CollectorRegistry(), **where) as page:  # type: ignore[arg-type]
            assert page.port == ports[1]
