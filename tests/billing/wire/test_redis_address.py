"""One URL for every process: what is read from it, what is refused, and that no error shows a password."""

import ssl

import pytest

from billing.wire.redis_address import OPTIONS, RedisAddressError, parse_redis_url
from tests.fixtures.secure_stores import Certificates


def test_an_address_is_read_from_its_url() -> None:
    address = parse_redis_url("redis://user:p%2Fw@example.test:6390/2")
    assert (address.host, address.port, address.database) == ("example.test", 6390, 2)
    assert (address.username, address.password) == ("user", "p/w")
    assert "p/w" not in repr(address)
    assert str(address) == "example.test:6390"
    assert parse_redis_url("redis://").host == "127.0.0.1"
    assert parse_redis_url("redis://[::1]").host == "::1"
    assert str(parse_redis_url("redis://[::1]:6390")) == "[::1]:6390"
    assert parse_redis_url("unix:///run/redis.sock?db=1").unix_path == "/run/redis.sock"
    assert parse_redis_url("unix://:secret@/run/redis.sock?db=1").password == "secret"
    assert parse_redis_url("unix:///run/redis.sock?db=1").database == 1
    assert parse_redis_url("redis://h/?db=3").database == 3


@pytest.mark.parametrize("password", ["a:b", "a+b", "a b", "ä€", "[x", "x]y", "a%b", "a/b#c?d@e", "=&;,'\""])
def test_every_password_can_be_given(password: str) -> None:
    from urllib.parse import quote

    address = parse_redis_url(f"redis://:{quote(password, safe='')}@h:1/0")
    assert address.password == password
    assert address.client_arguments()["password"] == password


@pytest.mark.parametrize(
    "url",
    [
        "redis://:{}/b@h:6379/0", "redis://:{}#b@h", "redis://:{}?b@h/0", "redis://:{}@b@h",
        "redis://:{}@b/c@h", "redis://:{}@b?c@h",
        "redis://:{}%zz@h", "redis://u:{}/@h", "redis://:b/{}@h:6379/0", "redis://:b#{}@h",
        "redis://:b?{}@h/0", "redis://:b?x={}@h/0",
        "redis://:b@{}@h", "redis://:1/{}", "redis://:{}", "redis://h/{}", "redis://h?{}=1", "redis://h#{}",
        "redis://h:{}", "redis://[{}", "redis://:b\n{}@h", "redis://:{}\u2100@b@h", "{}", "{}://h",
        "http://:{}@h", "redis://:{}@h:1,g:2", "redis://h?db={}", "rediss://h?ssl_cert_reqs={}",
        "rediss://h?ssl_check_hostname={}", "unix://{}/run/x", "unix://:{}@", "redis://:{}@h:99999/0",
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_used_is_refused_in_one_line_without_any_part_of_the_password(url: str) -> None:
    with pytest.raises(RedisAddressError) as failure:
        parse_redis_url(url.replace("{}", "s3same-Open"))
    text = str(failure.value)
    assert text
    assert "\n" not in text
    assert not any(piece in text for piece in ("s3same", "Open", "s3SAME".lower()))


@pytest.mark.parametrize(
    "url", ["redis://:a/b@h", "redis://:a#b@h", "redis://:a?b@h", "redis://:a@b@h", "redis://:a%b@h"]
)
def test_an_unescaped_password_is_told_how_to_be_written(url: str) -> None:
    with pytest.raises(RedisAddressError, match="percent-encode"):
        parse_redis_url(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h?socket_timeout=3", "unknown option 'socket_timeout'; known are " + ", ".join(OPTIONS)),
        ("redis://h?db=1&db=2", "db is given twice"),
        ("redis://h/1?db=1", "given twice"),
        ("redis://h?ssl_certfile=/x", "begin the URL with rediss://"),
        ("rediss://h?ssl_keyfile=/x", "give ssl_certfile too"),
        (
            "rediss://h?ssl_ca_certs=/no/such/ca.pem",
            "ssl_ca_certs: /no/such/ca.pem cannot be read: No such file",
        ),
        ("rediss://h?ssl_ca_certs=", "ssl_ca_certs names no file"),
        ("redis+sentinel://h", "Cluster and Sentinel are not supported.*Give the address of one server"),
        ("redis://a:1,b:2", "several servers"),
        ("valkey://h", "begins with redis://"),
        ("redis://h:0", "port 0"),
    ],
)
def test_what_is_refused_is_named(url: str, said: str) -> None:
    with pytest.raises(RedisAddressError, match=said):
        parse_redis_url(url)


def test_both_clients_are_given_the_same_tls(certificates: Certificates) -> None:
    files = "&".join(f"{name}={certificates.path(file)}" for name, file in
                     {"ssl_ca_certs": "ca.pem", "ssl_certfile": "client.pem",
                     "ssl_keyfile": "client.key"}.items())  # fmt: skip
    address = parse_redis_url(f"rediss://user:pw@h:1/2?{files}&ssl_check_hostname=false")
    assert address.tls is not None
    context = address.tls.context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)
    arguments = address.client_arguments()
    assert arguments["ssl"] is True
    assert arguments["ssl_certfile"] == certificates.path("client.pem")
    assert arguments["ssl_check_hostname"] is False
    unchecked = parse_redis_url("rediss://h?ssl_cert_reqs=none").tls
    assert unchecked is not None
    assert unchecked.context().verify_mode == ssl.CERT_NONE


def test_a_key_of_another_certificate_is_refused(certificates: Certificates) -> None:
    mixed = f"ssl_certfile={certificates.path('client.pem')}&ssl_keyfile={certificates.path('server.key')}"
    with pytest.raises(RedisAddressError, match="no certificate with its"):
        parse_redis_url(f"rediss://h?{mixed}")
